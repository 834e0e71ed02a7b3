"""Euler's method: one evaluation a step, first order."""

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Report, Velocity, evaluate, start


def sample_euler(
    velocity: Velocity, noise: Tensor, times: Tensor, *, draw: Draw = None, progress: Report = None
) -> Tensor:
    """Integrates dx/dt = v(x, t) from noise to data by straight steps.

    Args:
        velocity: ``velocity(x, t)``, x (B, ...), t a scalar.
        noise: Standard normal, (B, ...).
        times: Increasing from 0 to 1, (num_steps + 1,).
        draw: Not used: this sampler is deterministic.
        progress: ``progress(step, num_steps, x)``, called after each step from 1 on.

    Returns:
        Samples, (B, ...), float32, or float64 if the noise is.

    Raises:
        ValueError: wrong ``times``, or a velocity of another shape than x.
    """
    x, steps = start(noise, times)
    for step, (t, s) in enumerate(steps, 1):
        x = x + (s - t) * evaluate(velocity, x, t)
        if progress:
            progress(step, len(steps), x)
    return x
