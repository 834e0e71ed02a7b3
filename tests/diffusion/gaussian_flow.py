"""The flow between a standard normal and N(mean, std^2), independent of it, in closed form.

``x_t = (1 - t) noise + t data`` is N(t mean, sd_t^2) with sd_t^2 = (1 - t)^2 + t^2 std^2, and the
flow keeps a point's distance from the mean in units of sd_t. Times are scalars or (B,).
"""

import torch
from torch import Tensor


def marginal_std(t: Tensor, std: float) -> Tensor:
    """Standard deviation of x_t."""
    return ((1 - t) ** 2 + t**2 * std**2) ** 0.5


def flow_map(x: Tensor, a: Tensor, b: Tensor, mean: float, std: float) -> Tensor:
    """Where the point ``x`` (B, ...) at time ``a`` is at time ``b``."""
    a, b = _like(a, x), _like(b, x)
    return b * mean + marginal_std(b, std) / marginal_std(a, std) * (x - a * mean)


def velocity(x: Tensor, t: Tensor, mean: float, std: float) -> Tensor:
    """dx/dt along the flow, E[data - noise | x_t = x]."""
    t = _like(t, x)
    sd = marginal_std(t, std)
    sd_slope = (t * std**2 - (1 - t)) / sd
    return mean + sd_slope / sd * (x - t * mean)


def average_velocity(x: Tensor, t: Tensor, s: Tensor, mean: float, std: float) -> Tensor:
    """Mean of the velocity from ``t`` to ``s``; the velocity itself where they are equal."""
    gap = _like(s, x) - _like(t, x)
    jump = (flow_map(x, t, s, mean, std) - x) / torch.where(gap == 0, 1, gap)
    return torch.where(gap == 0, velocity(x, t, mean, std), jump)


def _like(t: Tensor, x: Tensor) -> Tensor:
    t = torch.as_tensor(t).to(x)
    return t.view(-1, *[1] * (x.dim() - 1)) if t.dim() else t
