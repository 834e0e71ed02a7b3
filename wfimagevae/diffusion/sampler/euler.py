"""Euler's method: straight steps, one evaluation each, first order."""

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Velocity, evaluate, fixed_steps


@fixed_steps
def sample_euler(velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
    """Euler's method: straight steps, one evaluation each, first order."""
    return x + (s - t) * evaluate(velocity, x, t)
