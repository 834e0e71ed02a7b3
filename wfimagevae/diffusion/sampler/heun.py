"""Heun's method: two evaluations a step, second order."""

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Velocity, evaluate, fixed_steps


@fixed_steps
def sample_heun(velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
    """Heun's method: the mean of the slopes at both ends, two evaluations, second order.

    The last step evaluates at t = 1 too: a flow is regular there, unlike a score.
    """
    h = s - t
    k1 = evaluate(velocity, x, t)
    k2 = evaluate(velocity, x + h * k1, s)
    return x + h / 2 * (k1 + k2)
