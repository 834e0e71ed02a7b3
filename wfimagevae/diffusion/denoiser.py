"""What Gaussian samplers share: noise levels, and the data that a network sees in a noisy state."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wfimagevae.diffusion.path import expand_times

Prediction = Literal["epsilon", "data", "v"]
Clip = Literal["static", "none", "dynamic"]

# Of a sample's values, those that dynamic thresholding leaves in range (Imagen's figure).
_KEPT_SHARE = 0.995


class Level(NamedTuple):
    """One level of noise: ``x = alpha * data + sigma * eps``, in Python's float64.

    ``t`` is the timestep that the network is told, 0 the one nearest to data, perhaps between two;
    data themselves are at -1.
    """

    t: float
    alpha_bar: float

    @property
    def alpha(self) -> float:
        return math.sqrt(self.alpha_bar)

    @property
    def sigma(self) -> float:
        return math.sqrt(1 - self.alpha_bar)

    @property
    def ratio(self) -> float:
        """Noise per data, sigma / alpha, which k-diffusion calls sigma; 0 for data."""
        return self.sigma / self.alpha


# Start and end of each step, from noise to data.
LevelSteps = Sequence[tuple[Level, Level]]


class Estimate(NamedTuple):
    """Data and noise that a network sees in a state, (B, C, ...), which they add up to.

    ``spread`` is where it puts the log-variance of a step, 0 the lowest and 1 the highest, (B, C,
    ...); None of a network that has learned none.
    """

    data: Tensor
    eps: Tensor
    spread: Tensor | None


@dataclass(frozen=True)
class Denoiser:
    """Asks a network, ``model(x, t)`` with a float64 scalar t on the CPU, for data and noise.

    ``prediction`` is what the first C channels of its output mean; C more, from -1 to 1, are
    learned variances. ``clip`` says what becomes of data outside [-1, 1]: ``static`` cuts them off;
    ``dynamic`` shrinks each sample by its 99.5 % quantile, if above 1, and cuts off the rest;
    ``none`` leaves them, as latents need.

    Source: Saharia et al. 2022, arXiv:2205.11487, section 2.3 (both thresholds); Nichol and
    Dhariwal 2021, arXiv:2102.09672, equation 15 (variances).
    """

    model: Callable[[Tensor, Tensor], Tensor]
    prediction: Prediction = "epsilon"
    clip: Clip = "static"

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        """What the network sees in a state, (B, C, ...), of a level; in the type of the state."""
        output = self.model(x, torch.tensor(level.t, dtype=torch.float64)).to(x.dtype)
        count = x.shape[1]
        rest = output.shape[:1] + output.shape[2:]
        if rest != x.shape[:1] + x.shape[2:] or output.shape[1] not in (count, 2 * count):
            raise ValueError(f"the {self.prediction} of {tuple(x.shape)} has {tuple(output.shape)}")
        spread = (output[:, count:] + 1) / 2 if output.shape[1] > count else None
        data, eps = recover(self.prediction, output[:, :count], x, level.alpha, level.sigma)
        if self.clip != "none":
            data = clip_data(data, self.clip)
            eps = (x - level.alpha * data) / level.sigma
        return Estimate(data, eps, spread)


def recover(
    prediction: Prediction, output: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Data and noise, each like ``x``, from a network's output for ``x = alpha data + sigma eps``.

    ``v`` is alpha eps - sigma data (Salimans and Ho 2022, arXiv:2202.00512, appendix D).
    """
    if prediction == "epsilon":
        return (x - sigma * output) / alpha, output
    if prediction == "data":
        return output, (x - alpha * output) / sigma
    if prediction == "v":
        return alpha * x - sigma * output, sigma * x + alpha * output
    raise ValueError(f"unknown prediction {prediction!r}; use epsilon, data or v")


def clip_data(data: Tensor, clip: Clip) -> Tensor:
    """Predicted data, (B, ...), brought to [-1, 1], as `Denoiser` says."""
    if clip == "static":
        return data.clamp(-1, 1)
    if clip == "dynamic":
        bound = data.abs().flatten(1).quantile(_KEPT_SHARE, dim=1).clamp_min(1)
        bound = expand_times(bound, data)
        return data.clamp(-bound, bound) / bound
    raise ValueError(f"unknown clipping {clip!r}; use static, dynamic or none")
