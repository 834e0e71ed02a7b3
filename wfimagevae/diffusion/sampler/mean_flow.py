"""Steps by the average velocity: one evaluation a step, and few steps."""

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Report, Velocity, evaluate, start


def sample_mean_flow(
    velocity: Velocity, noise: Tensor, times: Tensor, *, draw: Draw = None, progress: Report = None
) -> Tensor:
    """Jumps along the flow: ``x_s = x_t + (s - t) u(x_t, t, s)``, exact if u is.

    The velocity is called with an end time too; (0, 1) samples in one step. Other arguments,
    result and errors are those of `sample_euler`.

    Source: Geng et al. 2025, arXiv:2505.13447, in our direction of time.
    """
    x, steps = start(noise, times)
    for step, (t, s) in enumerate(steps, 1):
        x = x + (s - t) * evaluate(velocity, x, t, s)
        if progress:
            progress(step, len(steps), x)
    return x
