"""Ancestral sampling of DDPM, with learned variances where there are any."""

import math
from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.denoiser import Denoiser, LevelSteps
from wfimagevae.diffusion.sampler.grid import Draw, draw_like


def ddpm(denoise: Denoiser, x: Tensor, steps: LevelSteps, draw: Draw) -> Iterator[Tensor]:
    """Draws each state given the one before: the posterior's mean, and noise about it.

    The variance lies where the network puts it between the posterior's and beta, in its logarithm;
    where it has learned none it is the posterior's. Both are those of the levels visited. ``draw``
    is asked for the steps 1 ... num_steps - 1.

    Source: Ho et al. 2020, arXiv:2006.11239, equation 7 and algorithm 2; Nichol and Dhariwal 2021,
    arXiv:2102.09672, equation 15 and section 4 (fewer steps).
    """
    for step, (now, then) in enumerate(steps, 1):
        data, _, spread = denoise(x, now)
        beta, noise_share = 1 - now.alpha_bar / then.alpha_bar, 1 - now.alpha_bar
        of_data = then.alpha * beta / noise_share
        of_state = math.sqrt(1 - beta) * (1 - then.alpha_bar) / noise_share
        x = of_data * data + of_state * x
        if then.sigma:
            low, high = math.log(beta * (1 - then.alpha_bar) / noise_share), math.log(beta)
            if spread is None:
                scale = math.exp(low / 2)
            else:
                scale = ((low + spread * (high - low)) / 2).exp()
            x = x + scale * draw_like(draw, step, x)
        yield x
