"""The classic Runge-Kutta method: four evaluations a step, fourth order."""

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Report, Velocity, evaluate, start


def sample_rk4(
    velocity: Velocity, noise: Tensor, times: Tensor, *, draw: Draw = None, progress: Report = None
) -> Tensor:
    """Integrates dx/dt = v(x, t) by Simpson's weights 1, 2, 2, 1 over each step.

    Arguments, result and errors are those of `sample_euler`.
    """
    x, steps = start(noise, times)
    for step, (t, s) in enumerate(steps, 1):
        h = s - t
        k1 = evaluate(velocity, x, t)
        k2 = evaluate(velocity, x + h / 2 * k1, t + h / 2)
        k3 = evaluate(velocity, x + h / 2 * k2, t + h / 2)
        k4 = evaluate(velocity, x + h * k3, s)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if progress:
            progress(step, len(steps), x)
    return x
