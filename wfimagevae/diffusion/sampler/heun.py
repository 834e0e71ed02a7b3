"""Heun's method: two evaluations a step, second order."""

from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Steps, Velocity, evaluate


def heun(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """Heun's method: the mean of the slopes at both ends, two evaluations, second order.

    The last step evaluates at t = 1 too: a flow is regular there, unlike a score.
    """
    for t, s in steps:
        h = s - t
        k1 = evaluate(velocity, x, t)
        k2 = evaluate(velocity, x + h * k1, s)
        x = x + h / 2 * (k1 + k2)
        yield x
