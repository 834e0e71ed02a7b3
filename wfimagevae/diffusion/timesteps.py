"""Which times training draws and sampling visits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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


@dataclass(frozen=True)
class TimeDistribution:
    """From uniform numbers to the times that training draws.

    ``kind`` is ``uniform`` or ``logit_normal``: sigmoid(mean + std z), z standard normal; a mean
    above 0 leans towards the data. The shift of `shift_times` is applied last.
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self):
        if self.kind not in ("uniform", "logit_normal"):
            raise ValueError(f"unknown time distribution {self.kind!r}: uniform or logit_normal")
        if not math.isfinite(self.mean):
            raise ValueError(f"the mean of the logit must be finite, got {self.mean}")
        if not self.std > 0:
            raise ValueError(f"the standard deviation of the logit must be above 0, got {self.std}")

    def __call__(self, uniform: Tensor) -> Tensor:
        """Times in [0, 1] from uniform numbers, (B,) float64, by the inverse distribution."""
        if self.kind == "logit_normal":
            uniform = torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform))
        return shift_times(uniform, self.shift)
