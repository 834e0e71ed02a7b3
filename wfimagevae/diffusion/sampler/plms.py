"""PLMS: a linear multistep method for Gaussian diffusions."""

from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.denoiser import Denoiser, Level, LevelSteps
from wfimagevae.diffusion.sampler.grid import Draw


def plms(denoise: Denoiser, x: Tensor, steps: LevelSteps, draw: Draw) -> Iterator[Tensor]:
    """Adams-Bashforth of order 4 on the noise, begun by three Runge-Kutta steps of 4 evaluations.

    As public GLIDE samples were drawn: the noise is taken for the state of the second level, and
    the end is that of timestep 0, so the first and the last step leave the state as it is, and N
    steps cost N + 7 evaluations. Half way between two levels alpha_bar and the timestep are the
    means of theirs.

    Source: Liu et al. 2022, arXiv:2202.09778, equations 10 to 13, as varied by Crowson for GLIDE.
    """
    if len(steps) < 3:
        raise ValueError(f"plms needs at least 3 steps, got {len(steps)}")

    def transfer(eps: Tensor, now: Level, then: Level) -> Tensor:
        """Where the state goes between two levels if its noise is this."""
        return then.alpha * (x - now.sigma * eps) / now.alpha + then.sigma * eps

    history: list[Tensor] = []  # the latest first
    yield x
    for now, then in steps[1:-1]:
        slope = eps = denoise(x, now).eps
        if len(history) < 3:
            middle = Level((now.t + then.t) / 2, (now.alpha_bar + then.alpha_bar) / 2)
            second = denoise(transfer(eps, now, middle), middle).eps
            third = denoise(transfer(second, now, middle), middle).eps
            fourth = denoise(transfer(third, now, then), then).eps
            slope = eps = (eps + 2 * second + 2 * third + fourth) / 6
        else:
            slope = (55 * eps - 59 * history[0] + 37 * history[1] - 9 * history[2]) / 24
        history = [eps, *history[:2]]
        x = transfer(slope, now, then)
        yield x
    yield x
