"""How both autoencoders run: features meet Haar bands on the way in, and leave them on the way out.

Source: Li et al. 2024 (WF-VAE), arXiv:2411.17459, sections 3.2 and 3.3.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfvae_video.blocks import CausalConv3d, Config, FrameConv2d, build_mid, build_norm
from wfvae_video.chunks import Past
from wfvae_video.wavelet import AXES_3D, haar, inverse_haar

NUM_BANDS = 24  # eight of three colours, into and out of the network


def run(layers: Iterable[nn.Module], x: Tensor, past: Past) -> Tensor:
    """Layers one after the other."""
    for layer in layers:
        x = layer(x, past)
    return x


class Encoder(nn.Module):
    """Clip (B, 3, T, H, W) to moments (B, 2 C, t, h, w), and Haar coefficients, finest first.

    A subclass makes the other layers, and lists in ``stages`` of each level: layers before it, the
    axes of its transform, and the convolution of its coefficients; in ``tail`` what follows.
    """

    def __init__(self, config: Config, mid_widths: tuple[int, int, int]):
        super().__init__()
        self.mid = build_mid(config, *mid_widths)
        self.norm_out = build_norm(mid_widths[-1], config)
        self.conv_out = CausalConv3d(mid_widths[-1], 2 * config.latent_dim)

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, list[Tensor]]:
        h = coeffs = haar(x, AXES_3D, past.is_first)  # the network sees bands alone, never pixels
        levels = []
        for layers, axes, connect in self.stages:
            coeffs = haar(coeffs[:, :3], axes, past.is_first)
            levels.append(coeffs)
            h = torch.cat([run(layers, h, past), connect(coeffs, past)], dim=1)
        h = self.norm_out(run(self.tail, h, past))
        return self.conv_out(F.silu(h, inplace=True), past), levels


class Decoder(nn.Module):
    """Latent (B, C, t, h, w) to clip (B, 3, T, H, W) and Haar coefficients, coarsest first.

    A subclass makes the other layers, and lists in ``stages`` of each level: layers before it, how
    many of their channels go on, layers that make coefficients of the others, and the axes of their
    transform; in ``tail`` what follows.
    """

    has_activation_out = True

    def __init__(self, config: Config, mid_widths: tuple[int, int, int], width_out: int):
        super().__init__()
        self.conv_in = CausalConv3d(config.latent_dim, mid_widths[0])
        self.mid = build_mid(config, *mid_widths)
        self.norm_out = build_norm(width_out, config)
        self.conv_out = FrameConv2d(width_out, NUM_BANDS)

    def forward(self, z: Tensor, past: Past) -> tuple[Tensor, list[Tensor]]:
        # Each level's coefficients are completed by the picture of the coarser one.
        h, low, levels = z, None, []
        for layers, width, connect, axes in self.stages:
            h, flow = run(layers, h, past).tensor_split((width,), dim=1)
            coeffs = run(connect, flow, past)
            if low is not None:
                past.add_low(connect, coeffs, low)
            levels.append(coeffs)
            low = inverse_haar(coeffs, axes, past.is_first)
        # The last bands complete that picture, too, and become pixels.
        h = self.norm_out(run(self.tail, h, past))
        h = F.silu(h, inplace=True) if self.has_activation_out else h
        coeffs = self.conv_out(h, past)
        past.add_low(self, coeffs, low)
        return inverse_haar(coeffs, AXES_3D, past.is_first), levels
