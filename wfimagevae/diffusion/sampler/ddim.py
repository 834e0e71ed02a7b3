"""DDIM: the probability-flow ODE of a Gaussian diffusion, with as much noise as asked for."""

import math
from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.denoiser import Denoiser, LevelSteps
from wfimagevae.diffusion.sampler.grid import Draw, draw_like


def ddim(
    denoise: Denoiser, x: Tensor, steps: LevelSteps, draw: Draw, eta: float = 0.0
) -> Iterator[Tensor]:
    """DDIM: one evaluation a step; of first order for ``eta`` 0, where it follows the ODE.

    ``eta``, 0 to 1, is the share of ancestral sampling's noise that each step adds anew; above 0,
    ``draw`` is asked for the steps 1 ... num_steps - 1.

    Source: Song et al. 2021, arXiv:2010.02502, equations 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta of ddim must be from 0 to 1, got {eta}")
    for step, (now, then) in enumerate(steps, 1):
        data, eps, _ = denoise(x, now)
        # Both shares of the noise of the next level, as factors of its sigma.
        share = eta * math.sqrt(1 - (then.ratio / now.ratio) ** 2)
        x = then.alpha * data + then.sigma * math.sqrt(1 - share**2) * eps
        if share and then.sigma:
            x = x + then.sigma * share * draw_like(draw, step, x)
        yield x
