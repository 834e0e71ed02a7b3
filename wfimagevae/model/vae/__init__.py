"""Variational autoencoders for images."""


def __getattr__(name: str):
    if name == "WFVAE2ImageModel":
        from wfimagevae.model.vae.modeling_wfvae2_image import WFVAE2ImageModel

        return WFVAE2ImageModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
