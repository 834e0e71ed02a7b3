"""Steps by the average velocity: one evaluation a step, and few steps."""

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Progress, Velocity, evaluate, start


def sample_mean_flow(
    velocity: Velocity,
    noise: Tensor,
    times: Tensor,
    *,
    draw: Draw | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Jumps along the flow: ``x_s = x_t + (s - t) u(x_t, t, s)``, exact if u is.

    Args:
        velocity: ``velocity(x, t, t_end)``, the average velocity from t to t_end, x (B, ...).
        noise: Standard normal, (B, ...).
        times: Increasing from 0 to 1, (num_steps + 1,); (0, 1) samples in one step.
        draw: Not used: this sampler is deterministic.
        progress: As in `sample_euler`.

    Returns:
        Samples, (B, ...), float32, or float64 if the noise is.

    Raises:
        ValueError: wrong ``times``, or a velocity of another shape than x.

    Source: Geng et al. 2025, arXiv:2505.13447, in our direction of time.
    """
    x, steps = start(noise, times)
    for step, (t, s) in enumerate(steps, 1):
        x = x + (s - t) * evaluate(velocity, x, t, s)
        if progress:
            progress(step, len(steps), x)
    return x
