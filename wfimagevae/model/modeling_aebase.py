"""Base class of the autoencoders."""

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from wfimagevae.model.modeling_base import RegisteredModel, compile_each
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.vae.tiling import Tiling

DEFAULT_SCALE = 0.18215
LOGVAR_RANGE = (-30.0, 20.0)

Levels = list[Tensor]


class DiagonalGaussian:
    """Independent normal distribution for each latent value, computed in float32.

    ``moments`` are means and log-variances, the latter clamped to [-30, 20], (B, 2 C, H, W).
    """

    def __init__(self, moments: Tensor):
        if moments.dtype != torch.float64:
            moments = moments.float()
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(*LOGVAR_RANGE)
        self.std = (0.5 * self.logvar).exp()

    def mode(self) -> Tensor:
        return self.mean

    def sample(
        self, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """A draw, differentiable in the moments, (B, C, H, W).

        ``noise`` holds standard normal values to use instead of the generator's, on any device, so
        that each sample can have its own seed.
        """
        if noise is None:
            source = generator.device if generator is not None else self.mean.device
            noise = torch.randn(self.mean.shape, generator=generator, device=source)
        elif noise.shape != self.mean.shape:
            raise ValueError(
                f"noise must have the latent's shape {tuple(self.mean.shape)}, "
                f"got {tuple(noise.shape)}"
            )
        return self.mean + self.std * noise.to(self.mean)

    def kl_of_values(self) -> Tensor:
        """Divergence of each value from the standard normal, (B, C, H, W).

        Source: Kingma and Welling 2014, arXiv:1312.6114, appendix B.
        """
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


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
    `DecoderOutput`, `spatial_factor` and `last_layer`. If these go through `_run`, tiles and slices
    are served once ``use_tiling`` and ``use_slicing`` are False. Its ``__init__`` is decorated with
    ``register_to_config``, takes at least ``latent_dim``, ``scale`` and ``shift``, and gives the
    latter two to `set_latent_statistics`.
    """

    spatial_factor: int  # image pixels per latent pixel, along one side
    last_layer: Tensor  # weight of the decoder's last layer, for the adaptive adversarial weight
    block_out_channels: tuple[int, ...] = ()  # widths, by which diffusers' pipelines count levels
    _group_offload_block_modules = ("encoder", "decoder")
    _configs = (None, None)  # the arguments alone, and the whole
    # Kernels of the Haar transform, which some checkpoints hold as buffers.
    _passed_over = re.compile(r"wavelet_transform\w*\.(aa|ad|da|dd)$")

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> AutoencoderOutput | tuple[Tensor]:
        """Encodes images, (B, 3, H, W), and decodes their posterior's mode, or a sample of it.

        The sample's standard normal noise, (B, C, h, w), is drawn from ``generator``, or ``noise``,
        which asks for a sample. Without ``return_dict`` the result is the reconstruction alone.
        """
        encoded = self.encode(sample)
        posterior, is_drawn = encoded.latent_dist, sample_posterior or noise is not None
        z = posterior.sample(generator, noise) if is_drawn else posterior.mean
        decoded = self.decode(z)
        if not return_dict:
            return (decoded.sample,)
        coeffs = (encoded.extra_output, decoded.extra_output)
        return AutoencoderOutput(decoded.sample, posterior, coeffs, z)

    @property
    def config(self) -> FrozenDict:
        """The arguments, and what else diffusers' clients look up, which follows from them.

        For diffusers' autoencoders z = (latent - mean) / std * scaling_factor is what
        `normalize_latents` gives. Statistics that all channels share are the factors, others the
        lists, never both.
        """
        own = super().config
        if self._configs[0] is own:
            return self._configs[1]
        shift, scale = own["shift"] or [0.0], own["scale"] or [DEFAULT_SCALE]
        is_shared = len({*shift}) == len({*scale}) == 1
        follows = {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": own["latent_dim"],
            "scaling_factor": scale[0] if is_shared else 1.0,
            "shift_factor": shift[0] if is_shared else None,
            "latents_mean": None if is_shared else list(shift),
            "latents_std": None if is_shared else [value and 1 / value for value in scale],
        }
        if self.block_out_channels:
            follows["block_out_channels"] = self.block_out_channels
        self._configs = own, FrozenDict({**follows, **own})  # frozen: a change makes another one
        return self._configs[1]

    def _run(self, half: nn.Module, x: Tensor, factors: tuple) -> tuple[Tensor, Levels | None]:
        """A half's output for a batch, whole, in slices or in tiles, and the levels of a whole."""
        if self.use_slicing and len(x) > 1:
            return torch.cat([self._run(half, one, factors)[0] for one in x.split(1)]), None
        if self.use_tiling and max(x.shape[2:]) > self.tiling.size * factors[0]:
            return self.tiling.run(lambda tile: half(tile)[0], x, factors), None
        return half(x)

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
        statistics = {"shift": list(map(float, shift)), "scale": list(map(float, scale))}
        for name, values in statistics.items():
            if len(values) != count or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} needs {count} finite numbers (latent_dim), got {values}")
        if min(statistics["scale"]) <= 0:
            raise ValueError(f"scale must be positive, got {statistics['scale']}")
        self.register_to_config(**statistics)

    def compile_blocks(self, mode: str | None = None) -> None:
        """Compiles both halves in place, as `torch.compile` does; names in the state dict stay."""
        compile_each([self.encoder, self.decoder], mode)

    def enable_group_offload(self, *args, **options) -> None:
        """As diffusers'; weights that may go to files must be dense, which channels_last is not."""
        nn.Module.to(self, memory_format=torch.contiguous_format)
        super().enable_group_offload(*args, **options)

    # The conventions of diffusers' AutoencoderMixin, whose import takes seconds.

    def enable_tiling(self, tile_size: int = 512, overlap: int | None = None) -> None:
        """From here on takes images larger than a tile apart and blends the parts' results.

        Sizes are in image pixels; neighbours share at least ``overlap``, see `Tiling.from_pixels`.
        Memory then depends on the tile, not on the image. `extra_output` is None, and results
        differ slightly: attention, SPADE's resizing and the borders of convolutions see one tile.
        """
        self._check_parts("images")
        self.tiling = Tiling.from_pixels(tile_size, overlap, self.spatial_factor)
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Takes images whole again."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """From here on takes the images of a batch one by one; `extra_output` is then None."""
        self._check_parts("batches")
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Takes batches whole again."""
        self.use_slicing = False

    def _check_parts(self, what: str) -> None:
        if not hasattr(self, "use_slicing"):
            raise ValueError(f"{type(self).__name__} cannot take {what} apart")


def autoencoder_class(name: str, others: tuple[str, ...] = ()) -> type[ImageBaseAE]:
    """The image autoencoder registered as ``name``, or a user's ``package.module:Class``.

    ``others`` are words beside these that would do where the name was given, for the error.
    """
    others += ("or a class of your own below wfimagevae.model.ImageBaseAE, package.module:Class",)
    model_class = ModelRegistry.get_model(name, ImageBaseAE, others)
    if not (isinstance(model_class, type) and issubclass(model_class, ImageBaseAE)):
        names = ", ".join([*ModelRegistry.names(ImageBaseAE), *others])
        raise ValueError(f"model {name!r} is no image autoencoder; use {names}")
    model_class.check_own_config(name)
    given = inspect.signature(model_class).parameters
    if missing := sorted({"latent_dim", "scale", "shift"} - given.keys()):
        raise ValueError(f"model {name!r} must take {', '.join(missing)} in its __init__")
    return model_class
