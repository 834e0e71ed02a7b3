"""The classic Runge-Kutta method: four evaluations a step, fourth order."""

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Velocity, evaluate, fixed_steps


@fixed_steps
def sample_rk4(velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
    """The classic Runge-Kutta method: Simpson's weights, four evaluations, fourth order."""
    h = s - t
    k1 = evaluate(velocity, x, t)
    k2 = evaluate(velocity, x + h / 2 * k1, t + h / 2)
    k3 = evaluate(velocity, x + h / 2 * k2, t + h / 2)
    k4 = evaluate(velocity, x + h * k3, s)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
