"""The encoder's distribution over latents."""

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


class DiagonalGaussian:
    """Independent normal distribution for each latent value, computed in float32.

    ``moments`` are means and log-variances, the latter clamped to [-30, 20], (B, 2 C, H, W).
    """

    def __init__(self, moments: Tensor):
        if moments.dtype != torch.float64:
            moments = moments.float()
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(*LOGVAR_RANGE)

    @property
    def std(self) -> Tensor:
        return (0.5 * self.logvar).exp()

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
