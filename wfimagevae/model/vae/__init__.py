"""Variational autoencoders for images."""

from wfimagevae.model.vae.modeling_wfvae2_image import WFVAE2ImageModel

__all__ = ["WFVAE2ImageModel"]
