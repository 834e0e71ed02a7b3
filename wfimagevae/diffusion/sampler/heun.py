"""Heun's method: two evaluations a step, second order."""

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Report, Velocity, evaluate, start


def sample_heun(
    velocity: Velocity, noise: Tensor, times: Tensor, *, draw: Draw = None, progress: Report = None
) -> Tensor:
    """Integrates dx/dt = v(x, t) by the mean of the slopes at both ends of each step.

    The last step evaluates at t = 1 too: a flow is regular there, unlike a score.

    Arguments, result and errors are those of `sample_euler`.
    """
    x, steps = start(noise, times)
    for step, (t, s) in enumerate(steps, 1):
        h = s - t
        k1 = evaluate(velocity, x, t)
        k2 = evaluate(velocity, x + h * k1, s)
        x = x + h / 2 * (k1 + k2)
        if progress:
            progress(step, len(steps), x)
    return x
