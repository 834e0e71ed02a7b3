"""Times on the path from noise to data, and those that samplers visit."""

import torch
from torch import Tensor


def expand_times(t: Tensor, x: Tensor) -> Tensor:
    """Times (B,) with as many trailing dimensions of size 1 as ``x`` has: (B, 1, ..., 1)."""
    return t.view(-1, *[1] * (x.dim() - 1))


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Moves times towards the noise, as larger images need: t / (1 + (shift - 1) (1 - t)).

    A shift of 1 leaves them; above 1 there are more of them near the noise, t = 0.

    Source: Esser et al. 2024, arXiv:2403.03206, equation 23, in our direction of time.
    """
    if not shift > 0:
        raise ValueError(f"the time shift must be above 0, got {shift}")
    return t / (1 + (shift - 1) * (1 - t))


def time_grid(num_steps: int, shift: float = 1.0) -> Tensor:
    """The times that a sampler of ``num_steps`` visits: (num_steps + 1,) float64, 0 to 1."""
    if num_steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {num_steps}")
    return shift_times(torch.linspace(0, 1, num_steps + 1, dtype=torch.float64), shift)
