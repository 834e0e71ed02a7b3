"""Base class of the autoencoders."""

import re

from wfimagevae.model.modeling_base import RegisteredModel
from wfimagevae.model.weight_files import bare, latest_checkpoint, read_checkpoint_weights

__all__ = ["ImageBaseAE", "bare", "latest_checkpoint", "read_checkpoint_weights"]


class ImageBaseAE(RegisteredModel):
    """An image autoencoder that its config.json describes completely.

    Subclasses have ``encode(x)`` with ``.latent_dist``, ``decode(z)`` with ``.sample``,
    ``spatial_factor`` and ``last_layer``.
    """

    # Kernels of the Haar transform, which some checkpoints hold as buffers.
    _passed_over = re.compile(r"wavelet_transform\w*\.(aa|ad|da|dd)$")
