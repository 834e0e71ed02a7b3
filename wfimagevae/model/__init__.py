"""Autoencoders and velocity networks, their building blocks, and the autoencoders' losses."""

import importlib

_EXPORTS = {
    "ImageBaseAE": "wfimagevae.model.modeling_aebase",
    "FlowTransformer": "wfimagevae.model.flow.flow_transformer",
    "VelocityModel": "wfimagevae.model.flow.velocity_model",
    "Glide": "wfimagevae.model.glide.glide",
    "read_checkpoint_weights": "wfimagevae.model.weight_files",
    "ModelRegistry": "wfimagevae.model.registry",
    "DecoderImage": "wfimagevae.model.vae.modeling_wfvae2_image",
    "EncoderImage": "wfimagevae.model.vae.modeling_wfvae2_image",
    "WFDownBlockImage": "wfimagevae.model.vae.modeling_wfvae2_image",
    "WFUpBlockImage": "wfimagevae.model.vae.modeling_wfvae2_image",
    "WFVAE2ImageModel": "wfimagevae.model.vae.modeling_wfvae2_image",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
