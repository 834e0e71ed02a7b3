"""Blocks of the two halves: residual, attention, modulation by the latent, halving, doubling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.model.modules.normalize import build_activation, build_norm, norm_activation_conv

HIDDEN_CHANNELS = 64  # between a modulation's two convolutions


class Spade(nn.Module):
    """Scales and shifts a norm's result by what two convolutions read off the latent.

    The last of them starts at zero, so a fresh one changes nothing.

    Source: Park et al. 2019, arXiv:1903.07291, with the latent in place of a segmentation map.
    """

    def __init__(self, latent_dim: int, channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(latent_dim, HIDDEN_CHANNELS, 3, padding=1)
        self.conv_out = nn.Conv2d(HIDDEN_CHANNELS, 2 * channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """``x * (1 + scale) + shift`` of x (B, C, H, W), to whose size the latent is brought."""
        if latent.shape[2:] != x.shape[2:]:
            latent = F.interpolate(latent, size=x.shape[2:], mode="bilinear")
            latent = latent.contiguous(memory_format=torch.channels_last)
        hidden = F.relu(self.conv_in(latent), inplace=True)
        scale, shift = self.conv_out(hidden).chunk(2, dim=1)
        return torch.addcmul(shift.to(x.dtype), x, 1 + scale.to(x.dtype))


class AttnBlock2D(nn.Module):
    """One head of self-attention over all H W positions, plus the input.

    With ``latent_dim``, a latent of so many channels modulates the norm.
    """

    def __init__(self, channels: int, norm_type: str = "layernorm", latent_dim: int = 0):
        super().__init__()
        self.norm = build_norm(norm_type, channels)
        self.spade = Spade(latent_dim, channels) if latent_dim else None
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, latent: Tensor | None = None) -> Tensor:
        h = self.norm(x)
        if self.spade is not None:
            h = self.spade(h, latent)
        # One head of tokens, (B, 1, H W, C), a view of channels_last memory. Contiguous, because
        # with a strided last dimension the CPU kernel falls back to holding the whole matrix.
        q, k, v = (
            project(h).permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1).contiguous()
            for project in (self.q, self.k, self.v)
        )
        h = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H W, C)
        h = h.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)  # (B, C, H, W)
        return self.proj_out(h).add_(x)


class ResnetBlock2D(nn.Module):
    """Norm, activation, 3x3, norm, activation, dropout, 3x3, plus the input.

    A 1x1 convolution brings the input to another width. A latent of ``latent_dim`` channels, unless
    that is 0, modulates the norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float = 0.0,
        norm_type: str = "layernorm",
        activation: str = "silu",
        latent_dim: int = 0,
    ):
        super().__init__()
        self.norm1 = build_norm(norm_type, in_channels)
        self.spade1 = Spade(latent_dim, in_channels) if latent_dim else None
        self.activation1 = build_activation(activation, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = build_norm(norm_type, out_channels)
        self.spade2 = Spade(latent_dim, out_channels) if latent_dim else None
        self.activation2 = build_activation(activation, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels == out_channels:
            self.nin_shortcut = nn.Identity()
        else:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, latent: Tensor | None = None) -> Tensor:
        # Norm, activation and convolution are one function where nothing stands between them.
        drops = self.training and self.dropout.p > 0
        if self.spade1 is None:
            h = norm_activation_conv(self.norm1, self.activation1, self.conv1, x)
        else:
            h = self.conv1(self.activation1(self.spade1(self.norm1(x), latent)))
        if self.spade2 is None and not drops:
            h = norm_activation_conv(self.norm2, self.activation2, self.conv2, h)
        else:
            h = self.norm2(h)
            h = h if self.spade2 is None else self.spade2(h, latent)
            h = self.conv2(self.dropout(self.activation2(h)))
        return h.add_(self.nin_shortcut(x))


class Downsample(nn.Module):
    """Convolution, 3x3, of stride 2; one row and one column of zeros at the bottom and right."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Each pixel repeated 2x2, then a 3x3 convolution.

    Both are one transposed convolution of stride 2, whose 4x4 kernel is the 3x3 kernel spread by a
    2x2 box: 16 instead of 36 products per input pixel, and no repeated image in memory.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv.weight.flip(-2, -1).transpose(0, 1)
        # Convolve the (I, O, 3, 3) kernels with a 2x2 box of ones, to (I, O, 4, 4).
        wide = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
        kernel = F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
