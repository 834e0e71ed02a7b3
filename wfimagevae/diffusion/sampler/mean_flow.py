"""Jumps along the flow by average velocities, in one step or a few."""

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Velocity, evaluate, fixed_steps


@fixed_steps
def sample_mean_flow(velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
    """A jump along the flow by the average velocity, ``x_s = x_t + (s - t) u(x_t, t, s)``.

    Source: Geng et al. 2025, arXiv:2505.13447, in our direction of time.
    """
    return x + (s - t) * evaluate(velocity, x, t, s)
