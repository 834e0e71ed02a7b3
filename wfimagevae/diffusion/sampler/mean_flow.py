"""Jumps by an average velocity: MeanFlow's sampler."""

from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Steps, Velocity, evaluate


def mean_flow(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """Jumps along the flow by the average velocity, ``x_s = x_t + (s - t) u(x_t, t, s)``.

    Source: Geng et al. 2025, arXiv:2505.13447, in our direction of time.
    """
    for t, s in steps:
        x = x + (s - t) * evaluate(velocity, x, t, s)
        yield x
