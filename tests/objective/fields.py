"""Velocity networks that are known in closed form, with an additive parameter to differentiate."""

import torch
from torch import Tensor, nn

from tests.diffusion import gaussian_flow
from wfimagevae.objective.options import MeanFlowOptions


def plain(**options) -> MeanFlowOptions:
    """Uniform times and no dropped conditions, but for what is given."""
    defaults = {"time_distribution": "uniform", "cfg_dropout_prob": 0.0}
    return MeanFlowOptions().changed(**defaults | options)


class GaussianField(nn.Module):
    """Exact velocities, and average velocities, for independent data N(mean, std^2).

    ``offset`` and ``slope`` are added to them: where the exact field minimises a loss, their
    gradients vanish at zero.
    """

    num_classes, has_average_velocity = 0, True
    takes_text = is_conditional = False

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean, self.std = mean, std
        self.offset = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.slope = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def null_condition(self, count: int, device: torch.device) -> None:
        """There are no classes."""

    def average(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return gaussian_flow.average_velocity(x, t, s, self.mean, self.std)

    def forward(self, x: Tensor, t: Tensor, condition=None, t_end=None) -> Tensor:
        exact = self.average(x, t, t if t_end is None else t_end)
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
