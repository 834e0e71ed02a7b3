"""Velocity networks that are known in closed form, with an additive parameter to differentiate."""

import torch
from torch import Tensor, nn

from wfimagevae.objective.options import MeanFlowOptions


def plain(**options) -> MeanFlowOptions:
    """Uniform times and no dropped conditions, but for what is given."""
    defaults = {"time_distribution": "uniform", "cfg_dropout_prob": 0.0}
    return MeanFlowOptions().changed(**defaults | options)


class GaussianField(nn.Module):
    """Exact velocities, and average velocities, for independent data N(mean, std^2).

    The marginal at t is N(t mean, sd_t^2), sd_t^2 = (1 - t)^2 + t^2 std^2, and the flow takes
    x_a to b mean + sd_b / sd_a (x_a - a mean). ``offset`` and ``slope`` are added to it: where
    the exact field minimises a loss, their gradients vanish at zero.
    """

    num_classes, has_average_velocity = 0, True
    takes_text = is_conditional = False

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean, self.std = mean, std
        self.offset = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.slope = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def _sd(self, t: Tensor) -> Tensor:
        return ((1 - t) ** 2 + t**2 * self.std**2).sqrt()

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        rate = (t * self.std**2 - (1 - t)) / self._sd(t) ** 2
        return self.mean + rate * (x - t * self.mean)

    def average(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        end = s * self.mean + self._sd(s) / self._sd(t) * (x - t * self.mean)
        return (end - x) / (s - t)

    def forward(self, x: Tensor, t: Tensor, condition=None, t_end=None) -> Tensor:
        t = t.view(-1, 1)
        exact = self.velocity(x, t)
        if t_end is not None:
            s = t_end.view(-1, 1)
            apart = (s - t) > 1e-9
            safe = torch.where(apart, s, t + 0.5)
            exact = torch.where(apart, self.average(x, t, safe), exact)
        return exact + self.offset + self.slope * x


class ConstantClasses(nn.Module):
    """One constant velocity a class, and one for the null class, the last."""

    has_average_velocity = is_conditional = True
    takes_text = False

    def __init__(self, values: list[float]):
        super().__init__()
        self.num_classes = len(values) - 1
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def null_condition(self, count: int, device: torch.device) -> Tensor:
        return torch.full((count,), self.num_classes, device=device)

    def forward(self, x: Tensor, t: Tensor, condition=None, t_end=None) -> Tensor:
        return self.values[condition].view(-1, 1).expand_as(x)
