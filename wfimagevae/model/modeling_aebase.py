"""Base class of the autoencoders."""

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from wfimagevae.model.modeling_base import RegisteredModel
from wfimagevae.model.modules.posterior import DiagonalGaussian
from wfimagevae.model.registry import ModelRegistry

DEFAULT_SCALE = 0.18215
_CONFIG_KEYS = ("latent_dim", "scale", "shift")

Levels = list[Tensor]


@dataclass
class EncoderOutput(BaseOutput):
    """Posterior, and each level's Haar coefficients, finest first; None where there are none."""

    latent_dist: DiagonalGaussian
    extra_output: Levels | None = None


@dataclass
class DecoderOutput(BaseOutput):
    """Image (B, 3, H, W), and each level's coefficients, coarsest first; None as above."""

    sample: Tensor
    extra_output: Levels | None = None


@dataclass
class AutoencoderOutput(BaseOutput):
    """Reconstruction (B, 3, H, W), posterior, (encoder, decoder) coefficients, decoded latent."""

    sample: Tensor
    latent_dist: DiagonalGaussian
    extra_output: tuple[Levels | None, Levels | None]
    latent: Tensor


class ImageBaseAE(RegisteredModel):
    """An image autoencoder that its config.json describes completely.

    A subclass, here or in a user's own module, is an `nn.Module` with the halves ``encoder`` and
    ``decoder``, ``encode(x)``, which gives an `EncoderOutput`, ``decode(z)``, which gives a
    `DecoderOutput`, `spatial_factor` and `last_layer`. Its ``__init__`` is decorated with
    ``register_to_config``, takes at least ``latent_dim``, ``scale`` and ``shift``, and gives the
    latter two to `set_latent_statistics`.
    """

    # Kernels of the Haar transform, which some checkpoints hold as buffers.
    _passed_over = re.compile(r"wavelet_transform\w*\.(aa|ad|da|dd)$")

    @property
    def spatial_factor(self) -> int:
        """Image pixels per latent pixel, along one side."""
        raise NotImplementedError

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last layer, for the adaptive adversarial weight."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        sample_posterior: bool = True,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> AutoencoderOutput:
        """Encodes images, (B, 3, H, W), and decodes a sample of their posterior, or else its mode.

        The sample's standard normal noise, (B, C, h, w), is ``noise``, or drawn from ``generator``.
        """
        encoded = self.encode(x)
        posterior = encoded.latent_dist
        z = posterior.sample(generator, noise) if sample_posterior else posterior.mode()
        decoded = self.decode(z)
        coeffs = (encoded.extra_output, decoded.extra_output)
        return AutoencoderOutput(decoded.sample, posterior, coeffs, z)

    def normalize_latents(self, z: Tensor) -> Tensor:
        """Latents (B, C, h, w) as a generative model sees them: (z - shift) * scale."""
        return (z - self._per_channel("shift", z)) * self._per_channel("scale", z)

    def denormalize_latents(self, z: Tensor) -> Tensor:
        """Inverse of `normalize_latents`; to be called before `decode`."""
        return z / self._per_channel("scale", z) + self._per_channel("shift", z)

    def _per_channel(self, key: str, z: Tensor) -> Tensor:
        return torch.tensor(self.config[key], dtype=z.dtype, device=z.device).view(1, -1, 1, 1)

    def set_latent_statistics(
        self, shift: Sequence[float] | None, scale: Sequence[float] | None
    ) -> None:
        """Writes the latents' mean and 1 / standard deviation, per channel, into the config.

        None is a mean of 0, and a scale of 0.18215, for all channels. Not one finite number per
        channel, or a scale that is not positive, is a ValueError.
        """
        count = self.config.latent_dim
        shift = [0.0] * count if shift is None else shift
        scale = [DEFAULT_SCALE] * count if scale is None else scale
        statistics = {"shift": [float(v) for v in shift], "scale": [float(v) for v in scale]}
        for name, values in statistics.items():
            if len(values) != count or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} needs {count} finite numbers, got {values}")
        if min(statistics["scale"]) <= 0:
            raise ValueError(f"scale must be positive, got {statistics['scale']}")
        self.register_to_config(**statistics)

    def compile_blocks(self, mode: str | None = None) -> None:
        """Compiles both halves in place, as `torch.compile` does; names in the state dict stay."""
        self.encoder.compile(mode=mode, dynamic=False)
        self.decoder.compile(mode=mode, dynamic=False)

    def enable_tiling(self, tile_size: int = 512, overlap: int = 128) -> None:
        """Refuses tiles of images; a subclass that can blend them overrides this."""
        raise ValueError(f"{type(self).__name__} cannot take images apart into tiles")


def autoencoder_class(name: str) -> type[ImageBaseAE]:
    """The image autoencoder registered as ``name``, or a user's ``package.module:Class``."""
    model_class = ModelRegistry.get_model(name)
    if not (isinstance(model_class, type) and issubclass(model_class, ImageBaseAE)):
        raise ValueError(
            f"model {name!r} is no image autoencoder; use WFVAE2Image, or a class of your own "
            "below wfimagevae.model.ImageBaseAE"
        )
    model_class.check_own_config(name)
    missing = [key for key in _CONFIG_KEYS if key not in inspect.signature(model_class).parameters]
    if missing:
        raise ValueError(f"model {name!r} must take {', '.join(missing)} in its __init__")
    return model_class
