"""PatchGAN discriminator with spectral norm that iterates when told to, once per update."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralNormConv2d(nn.Module):
    """Convolution of 4x4 whose weight is divided by its largest singular value.

    State-dict names are those of `torch.nn.utils.spectral_norm` (``weight_orig``, ``weight_u``,
    ``weight_v``, ``bias``). The estimate of the singular value changes in `power_iteration`
    only, not in forward: otherwise accumulating micro-batches would differ from one big batch.

    Source: Miyato et al. 2018, arXiv:1802.05957.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.weight_orig = nn.Parameter(torch.empty(out_channels, in_channels, 4, 4))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.normal_(self.weight_orig, 0.0, 0.02)
        self.register_buffer("weight_u", F.normalize(torch.randn(out_channels), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(in_channels * 16), dim=0))
        self.power_iteration(15)  # an unconverged estimate gives logits of any size

    @torch.no_grad()
    def power_iteration(self, num_iterations: int = 1) -> None:
        """Refines the estimate of the largest singular value's two vectors."""
        matrix = self.weight_orig.flatten(1)  # (out, in * 16)
        for _ in range(num_iterations):
            self.weight_v.copy_(F.normalize(matrix.t() @ self.weight_u, dim=0))
            self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            # The vectors are constants, so the gradient is that of the singular value itself.
            matrix = self.weight_orig.flatten(1)
            sigma = self.weight_u @ (matrix @ self.weight_v)
        return F.conv2d(x, self.weight_orig / sigma, self.bias, self.stride, padding=1)


class NLayerDiscriminator(nn.Module):
    """Scores overlapping patches of an image as real (high) or generated (low).

    ``num_layers`` convolutions have stride 2; widths double up to eightfold.

    Source: Isola et al. 2017, arXiv:1611.07004.
    """

    def __init__(self, num_layers: int = 4, base_channels: int = 64):
        super().__init__()
        # Halve the size num_layers times, then score patches.
        # Stride 2 halves and rounds down; the two layers without it take one pixel each.
        self.min_size = 3 * 2**num_layers  # least height and width that leave one patch logit
        widths = [base_channels * min(2**n, 8) for n in range(num_layers + 1)]
        layers: list[nn.Module] = [SpectralNormConv2d(3, widths[0], 2), nn.LeakyReLU(0.2)]
        for n in range(1, num_layers + 1):
            stride = 2 if n < num_layers else 1
            # The identity keeps the numbering of checkpoints, which had a norm there.
            layers += [SpectralNormConv2d(widths[n - 1], widths[n], stride), nn.Identity()]
            layers += [nn.LeakyReLU(0.2)]
        layers += [SpectralNormConv2d(widths[-1], 1, 1)]
        self.main = nn.Sequential(*layers)

    def power_iteration(self) -> None:
        for layer in self.main:
            if isinstance(layer, SpectralNormConv2d):
                layer.power_iteration()

    def forward(self, images: Tensor) -> Tensor:
        """Patch logits, (B, 1, h, w), of images in [-1, 1], (B, 3, H, W)."""
        return self.main(images)


def gradient_penalty(discriminator: NLayerDiscriminator, images: Tensor) -> Tensor:
    """Squared gradient of each image's mean patch logit in its pixels, summed; batch mean.

    Float32 also under autocast, where gradients of a mean vanish, and not compiled: compiled
    graphs have no second derivative.

    Source: Mescheder et al. 2018, arXiv:1801.04406, R1 (without its weight of a half).
    """
    images = images.detach().requires_grad_()
    with torch.autocast(images.device.type, enabled=False):
        scores = discriminator.main.forward(images).flatten(1).mean(1)  # (B,)
        (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Builds graphs that reach the module's inputs but not its weights."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
