"""Wavelet image autoencoders: train, reconstruct, evaluate, export."""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "ImageBaseAE": "wfimagevae.model.modeling_aebase",
    "ModelRegistry": "wfimagevae.model.registry",
    "WFVAE2ImageModel": "wfimagevae.model.vae.modeling_wfvae2_image",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name in _EXPORTS:  # on first use: importing torch and diffusers takes five seconds
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
