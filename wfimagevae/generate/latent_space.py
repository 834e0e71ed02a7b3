"""An autoencoder's latents as a generative model sees them: (z - shift) * scale, both ways."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wfimagevae.engine.device import autocast
from wfimagevae.generate.autoencoders import Autoencoder
from wfimagevae.model.weight_files import weights_fingerprint


class LatentSpace:
    """Encodes into normalised latents, and decodes them.

    Shift and scale are one number a channel, or one for all.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        shift: Sequence[float],
        scale: Sequence[float],
        precision: str = "fp32",
    ):
        self.autoencoder, self.precision = autoencoder, precision
        device = autoencoder.device
        self.shift = torch.tensor(shift, device=device).view(1, -1, 1, 1)
        self.scale = torch.tensor(scale, device=device).view(1, -1, 1, 1)

    @classmethod
    def of_record(
        cls, autoencoder: Autoencoder, record: Mapping[str, Any], precision: str = "fp32"
    ) -> "LatentSpace":
        """The space of cached latents, whose ``latents.json`` is given.

        Raises:
            ValueError: the autoencoder's weights are not those that made the cache.
        """
        vae, weights = record["vae"], weights_fingerprint(autoencoder.network)
        if weights != vae["fingerprint"]:
            raise ValueError(
                f"the latents were made by {vae['source']} with weights {vae['fingerprint'][:12]}, "
                f"this autoencoder has weights {weights[:12]}; give the one that made them"
            )
        return cls(autoencoder, record["shift"], record["scale"], precision)

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W), to normalised latents, float32 (B, C, h, w).

        With standard normal noise, (B, C, h, w), drawn from the posterior; else its mode.
        """
        images = images.to(self.autoencoder.device, memory_format=torch.channels_last)
        with autocast(images.device, self.precision):
            z, logvar = self.autoencoder.moments(images)
        z = z.float()
        if noise is not None and logvar is not None:
            z = z + (0.5 * logvar.float()).exp() * noise
        return (z - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to images in [-1, 1]; ValueError if values overflow."""
        z = latents.to(self.autoencoder.device).float() / self.scale + self.shift
        with autocast(z.device, self.precision):
            images = self.autoencoder.decode(z).float()
        if not images.isfinite().all():
            raise ValueError(f"decoded images are not finite in {self.precision}; try bf16 or fp32")
        return images.clamp(-1, 1)
