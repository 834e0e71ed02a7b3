"""Ancestral Euler steps for Gaussian diffusions, in the noise level of k-diffusion."""

import math
from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.denoiser import Denoiser, LevelSteps
from wfimagevae.diffusion.sampler.grid import Draw, draw_like


def euler_ancestral(
    denoise: Denoiser, x: Tensor, steps: LevelSteps, draw: Draw
) -> Iterator[Tensor]:
    """Euler's method past the next level, to sigma_down, and fresh noise back up to it.

    Sigma is that of `sigma_euler`, from which this starts as well; a step from sigma to sigma' goes
    down to sigma'^2 / sigma and adds noise of variance sigma'^2 - sigma_down^2. ``draw`` is asked
    for the steps 1 ... num_steps - 1.

    Source: Ho et al. 2020, arXiv:2006.11239, the posterior of equation 7, as k-diffusion writes it.
    """
    x = x * steps[0][0].sigma
    for step, (now, then) in enumerate(steps, 1):
        data, eps, _ = denoise(x, now)
        down = then.ratio**2 / now.ratio
        x = then.alpha * (data + down * eps)
        if then.sigma:
            # By this factor, not by a difference of squares, which rounding can make negative.
            up = then.ratio * math.sqrt(1 - (then.ratio / now.ratio) ** 2)
            x = x + then.alpha * up * draw_like(draw, step, x)
        yield x
