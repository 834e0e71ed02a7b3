"""Base class of the autoencoders."""

import re
from collections.abc import Callable

from wfimagevae.model.modeling_base import RegisteredModel
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.weight_files import bare, latest_checkpoint, read_checkpoint_weights

__all__ = [
    "ImageBaseAE",
    "autoencoder_class",
    "bare",
    "latest_checkpoint",
    "read_checkpoint_weights",
]


class ImageBaseAE(RegisteredModel):
    """An image autoencoder that its config.json describes completely.

    Subclasses have ``encode(x)`` with ``.latent_dist``, ``decode(z)`` with ``.sample``,
    ``spatial_factor`` and ``last_layer``.
    """

    # Kernels of the Haar transform, which some checkpoints hold as buffers.
    _passed_over = re.compile(r"wavelet_transform\w*\.(aa|ad|da|dd)$")


def autoencoder_class(name: str) -> type[ImageBaseAE]:
    """The image autoencoder that is registered as ``name``.

    Raises:
        ValueError: no such model, or one of another kind.
    """
    found = ModelRegistry.get_model(name)
    if not _is_autoencoder(found):
        names = [n for n in ModelRegistry.names() if _is_autoencoder(ModelRegistry.get_model(n))]
        raise ValueError(f"model {name!r} is no image autoencoder; use {' or '.join(names)}")
    return found


def _is_autoencoder(builder: Callable) -> bool:
    return isinstance(builder, type) and issubclass(builder, ImageBaseAE)
