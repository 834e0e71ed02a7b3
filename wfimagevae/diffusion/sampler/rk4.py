"""The classic Runge-Kutta method: four evaluations a step, fourth order."""

from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Steps, Velocity, evaluate


def rk4(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """The classic Runge-Kutta method: Simpson's weights, four evaluations, fourth order."""
    for t, s in steps:
        h = s - t
        k1 = evaluate(velocity, x, t)
        k2 = evaluate(velocity, x + h / 2 * k1, t + h / 2)
        k3 = evaluate(velocity, x + h / 2 * k2, t + h / 2)
        k4 = evaluate(velocity, x + h * k3, s)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        yield x
