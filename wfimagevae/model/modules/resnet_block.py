"""Residual block of two 3x3 convolutions."""

from torch import Tensor, nn

from wfimagevae.model.modules.activation import build_activation
from wfimagevae.model.modules.normalize import build_norm, norm_activation_conv
from wfimagevae.model.modules.spade import Spade


class ResnetBlock2D(nn.Module):
    """Norm, activation, 3x3, norm, activation, dropout, 3x3, plus the input.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output; a 1x1 convolution takes another input there.
        dropout: Probability of dropping a value before the second convolution.
        norm_type: ``layernorm`` or ``groupnorm``.
        activation: ``silu``, ``relu`` or ``bezier``.
        latent_dim: Channels of the latent that modulates the norms; 0 takes none.
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
