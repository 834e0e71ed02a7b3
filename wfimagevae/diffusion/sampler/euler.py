"""Euler's method: one evaluation a step, first order."""

from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Steps, Velocity, evaluate


def euler(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """Euler's method: straight steps, one evaluation each, first order."""
    for t, s in steps:
        x = x + (s - t) * evaluate(velocity, x, t)
        yield x
