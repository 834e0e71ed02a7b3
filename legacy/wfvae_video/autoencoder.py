"""What both autoencoders do: encode and decode, whole or in chunks of time, load and save."""

from collections import namedtuple
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from wfvae_video.blocks import Config
from wfvae_video.chunks import Past
from wfvae_video.loading import read_model


class DiagonalGaussian:
    """Independent normal distribution for each latent value, computed in float32.

    ``moments`` are means and log-variances, the latter clamped to [-30, 20], (B, 2 C, T, H, W).
    """

    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.float().chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.var, self.std = self.logvar.exp(), (0.5 * self.logvar).exp()

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw, (B, C, T, H, W)."""
        where = generator or self.mean
        noise = torch.randn(self.mean.shape, generator=generator, device=where.device)
        return self.mean + self.std * noise.to(self.mean)

    def kl(self) -> Tensor:
        """Divergence from the standard normal, summed over all but the batch, (B,)."""
        return 0.5 * (self.mean.square() + self.var - 1.0 - self.logvar).flatten(1).sum(1)


# As those of diffusers; `extra_output` are the Haar coefficients of each level, None where chunked.
EncoderOutput = namedtuple("EncoderOutput", "latent_dist extra_output")
DecoderOutput = namedtuple("DecoderOutput", "sample extra_output")
AutoencoderOutput = namedtuple("AutoencoderOutput", "sample latent_dist extra_output")


class VideoAutoencoder(nn.Module):
    """An autoencoder of clips (B, 3, T, H, W) in [-1, 1]; r and s are its config's factors.

    T frames become 1 + (T - 1) // r latent ones, L of these 1 + r (L - 1) frames. What is over in
    time, and in height and width beyond multiples of s, is dropped at the end.
    """

    config_class: type[Config]
    encoder_class: type[nn.Module]
    decoder_class: type[nn.Module]
    is_finest_first = False  # the decoder's coefficients, too; both halves' stand level by level
    chunk_size: int | None = None  # in frames
    from_pretrained = classmethod(read_model)

    def __init__(self, **values: Any):
        super().__init__()
        self.config = self.config_class(**values)
        self.encoder = self.encoder_class(self.config)
        self.decoder = self.decoder_class(self.config)

    def encode(self, x: Tensor) -> EncoderOutput:
        """Posterior of clips in [-1, 1], (B, 3, T, H, W)."""
        side, factor = self.config.spatial_factor, self.config.temporal_factor
        if x.dim() != 5 or x.shape[1] != 3 or 0 in x.shape or min(x.shape[3:]) < side:
            raise ValueError(f"expected clips (B, 3, T, H, W) from {side} px, got {tuple(x.shape)}")
        x = x[:, :, : 1 + (x.shape[2] - 1) // factor * factor]  # others change nothing before them
        moments, coeffs = self._run(self.encoder, x, self.chunk_size)
        return EncoderOutput(DiagonalGaussian(moments), coeffs)

    def decode(self, z: Tensor) -> DecoderOutput:
        """Clips, not clamped, of latents (B, C, T, H, W) as `encode` gives them."""
        channels = self.config.latent_dim
        if z.dim() != 5 or z.shape[1] != channels or 0 in z.shape:
            raise ValueError(f"latents must be (B, {channels}, T, H, W), got {tuple(z.shape)}")
        size = self.chunk_size and self.chunk_size // self.config.temporal_factor
        sample, levels = self._run(self.decoder, z, size)
        return DecoderOutput(sample, levels[::-1] if self.is_finest_first else levels)

    def forward(
        self, x: Tensor, sample_posterior: bool = True, generator: torch.Generator | None = None
    ) -> AutoencoderOutput:
        """Encodes clips and decodes a sample of their posterior, or its mode."""
        posterior, encoded = self.encode(x)
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        sample, decoded = self.decode(z)
        coeffs = encoded, decoded
        if self.is_finest_first:
            coeffs = tuple(chain.from_iterable(zip(*coeffs, strict=True)))
        return AutoencoderOutput(sample, posterior, coeffs)

    def _run(self, half: nn.Module, x: Tensor, chunk_size: int | None) -> tuple[Tensor, Any]:
        """A half's output for all frames at once, or for 1 + ``chunk_size`` and then as many."""
        past, weight, chunks, results = Past(), next(half.parameters()), [x], []
        if chunk_size and x.shape[2] > 1 + chunk_size:
            first, rest = x.tensor_split((1 + chunk_size,), dim=2)
            chunks = [first, *rest.split(chunk_size, dim=2)]
        for i, chunk in enumerate(chunks):
            past.is_first, past.is_last = i == 0, i == len(chunks) - 1
            packed = chunk.to(weight).contiguous(memory_format=torch.channels_last_3d)
            result, coeffs = half(packed, past)
            results.append(result)
        return torch.cat(results, dim=2), (None, None) if chunk_size else coeffs

    def enable_tiling(self, num_frames: int = 16) -> None:
        """From here on takes clips apart in time, so that memory does not grow with their length.

        Results are those of the whole clip but for rounding; `extra_output` is (None, None).
        ``num_frames`` at a time are a multiple of the temporal factor.
        """
        if self.config.norm_type == "groupnorm":
            raise ValueError(
                "no tiling with norm_type 'groupnorm': its statistics run over all frames of a clip"
            )
        factor = self.config.temporal_factor
        if num_frames < 1 or num_frames % factor:
            raise ValueError(f"num_frames must be a multiple of {factor}, got {num_frames}")
        self.chunk_size = num_frames

    def disable_tiling(self) -> None:
        """Takes clips whole again."""
        self.chunk_size = None
