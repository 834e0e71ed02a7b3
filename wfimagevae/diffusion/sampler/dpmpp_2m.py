"""DPM-Solver++(2M) for Gaussian diffusions."""

import math
from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.denoiser import Denoiser, LevelSteps
from wfimagevae.diffusion.sampler.grid import Draw


def dpmpp_2m(denoise: Denoiser, x: Tensor, steps: LevelSteps, draw: Draw) -> Iterator[Tensor]:
    """DPM-Solver++(2M): one evaluation a step, second order by its memory of the last one.

    A step of h in lambda = log(alpha / sigma) integrates the linear part exactly and extrapolates
    the predicted data to its middle. Lambda of data is infinite: the last step, and the first,
    which has no memory, are of first order.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    last_data, last_h = None, math.inf
    for now, then in steps:
        data = predicted = denoise(x, now).data
        h = math.log(now.ratio / then.ratio) if then.ratio else math.inf
        if last_data is not None and math.isfinite(h):
            predicted = data + h / (2 * last_h) * (data - last_data)
        shrink = then.sigma / now.sigma
        # alpha' (1 - e^-h) without h, which may be infinite: e^-h = ratio' / ratio.
        x = shrink * x + (then.alpha - shrink * now.alpha) * predicted
        last_data, last_h = data, h
        yield x
