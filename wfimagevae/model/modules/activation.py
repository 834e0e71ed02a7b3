"""Activations by name; the input-derived cubic Bezier curve."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_VALUES = 5  # t and the four control points


def cubic_bezier(values: Tensor) -> Tensor:
    """Each channel's own cubic Bezier curve, at its own place.

    Takes t before its sigmoid, then the control points p0, p1, p2, p3, C channels each,
    (B, 5 C, H, W), to ``(1-t)^3 p0 + 3 (1-t)^2 t p1 + 3 (1-t) t^2 p2 + t^3 p3``, (B, C, H, W).
    """
    if values.shape[1] % NUM_VALUES:
        raise ValueError(f"five values a channel expected, got {values.shape[1]} channels")
    t, p0, p1, p2, p3 = values.chunk(NUM_VALUES, dim=1)
    t = torch.sigmoid(t)
    # De Casteljau: only convex combinations, so half precision loses no more than its rounding.
    a, b, c = torch.lerp(p0, p1, t), torch.lerp(p1, p2, t), torch.lerp(p2, p3, t)
    return torch.lerp(torch.lerp(a, b, t), torch.lerp(b, c, t), t)


class BezierActivation(nn.Module):
    """Cubic Bezier whose place and control points a 1x1 convolution reads off the input.

    That projection has 5 C^2 + 5 C parameters for C channels, where SiLU and ReLU have none.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.project = nn.Conv2d(channels, NUM_VALUES * channels, 1)
        # Of a normalised input, this gives outputs about as large as SiLU's.
        nn.init.normal_(self.project.weight, std=channels**-0.5)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        return cubic_bezier(self.project(x))


# What needs no parameters is a function, which can work in place.
ELEMENTWISE: dict[str, Callable[..., Tensor]] = {"silu": F.silu, "relu": F.relu}


def build_activation(name: str, channels: int) -> Callable[..., Tensor]:
    """The activation that a config calls ``silu``, ``relu`` or ``bezier``."""
    if name == "bezier":
        return BezierActivation(channels)
    if name not in ELEMENTWISE:
        names = ", ".join((*ELEMENTWISE, "bezier"))
        raise ValueError(f"unknown activation {name!r}; use one of {names}")
    return ELEMENTWISE[name]
