"""DPM-Solver++(2M) for flows."""

import math
from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Steps, Velocity, evaluate


def dpmpp(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """DPM-Solver++(2M): one evaluation a step, second order by its memory of the last one.

    It integrates the linear part exactly and extrapolates the predicted data in log-SNR. On the
    straight path alpha = t and sigma = 1 - t; the predicted data are ``D = x + (1 - t) v`` and
    lambda = log(alpha / sigma). A step from t to s is ``x_s = sigma_s / sigma_t x + alpha_s (1 -
    e^-h) D'``, h the step in lambda. Lambda is infinite at t = 0 and t = 1, so the first, second
    and last step take D' = D: the first-order step. The steps in lambda next to t = 0 never become
    small; the error falls as h^2 log(1 / h).

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    last_data, last_h = None, math.inf
    for t, s in steps:
        # The data predicted at this step, extrapolated by the last step's to the middle of this.
        data = predicted = x + (1 - t) * evaluate(velocity, x, t)
        h = math.inf if t == 0 or s == 1 else math.log(s / (1 - s)) - math.log(t / (1 - t))
        if math.isfinite(h) and math.isfinite(last_h):
            predicted = data + h / (2 * last_h) * (data - last_data)
        sigma_ratio = (1 - s) / (1 - t)
        # alpha_s (1 - e^-h) without h, which may be infinite: e^-h = (sigma_s t) / (sigma_t s).
        x = sigma_ratio * x + (s - sigma_ratio * t) * predicted
        last_data, last_h = data, h
        yield x
