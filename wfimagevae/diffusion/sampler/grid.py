"""What all samplers share: the grid of times, evaluations, and the loop of those without memory.

A step takes the state at a time t to that at a later time s. No sampler turns gradients off, which
is left to the caller.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

# velocity(x, t, t_end=None): dx/dt of x (B, ...) at t, or the average velocity from t to t_end;
# t and t_end are float64 scalars on the CPU. A velocity that belongs to the samples of one batch,
# by their labels for instance, has rows(slice): the velocity of those samples alone.
Velocity = Callable[..., Tensor]
# draw(step): standard normal noise like x, drawn for each sample from its own seed.
Draw = Callable[[int], Tensor] | None
# progress(step, num_steps, x), after each step, counted from 1.
Report = Callable[[int, int, Tensor], None] | None


def start(noise: Tensor, times: Tensor) -> tuple[Tensor, list[tuple[float, float]]]:
    """The state at t = 0, float32 or float64, and the start and end of each step to t = 1.

    Steps are Python numbers, so that the grid ends at 1 exactly in any state type.
    """
    values = times.double().tolist()
    steps = list(pairwise(values))
    # Written so that NaN fails too.
    if not steps or values[0] != 0 or values[-1] != 1 or not all(t < s for t, s in steps):
        raise ValueError(f"times must increase strictly from 0 to 1, got {values}")
    return noise.to(torch.promote_types(noise.dtype, torch.float32)), steps


def evaluate(velocity: Velocity, x: Tensor, t: float, t_end: float | None = None) -> Tensor:
    """The velocity at a time, or the average velocity to ``t_end``, in the type of the state."""
    # On the CPU, so that asking whether a time lies in an interval need not wait for a GPU.
    times = [torch.tensor(time, dtype=torch.float64) for time in (t, t_end) if time is not None]
    v = velocity(x, *times)
    if v.shape != x.shape:
        raise ValueError(f"the velocity of {tuple(x.shape)} has shape {tuple(v.shape)}")
    return v.to(x.dtype)


def fixed_steps(
    advance: Callable[[Velocity, Tensor, float, float], Tensor],
) -> Callable[..., Tensor]:
    """The sampler that goes from t to s by ``advance(velocity, x, t, s)``."""

    def sample(
        velocity: Velocity,
        noise: Tensor,
        times: Tensor,
        *,
        draw: Draw = None,
        progress: Report = None,
    ) -> Tensor:
        """Integrates dx/dt = v(x, t) from standard normal noise, (B, ...), to data.

        ``times``, (num_steps + 1,), increase from 0 to 1; ``draw`` is of use to stochastic samplers
        alone. Samples are float32, or float64 if the noise is. Wrong times, or a velocity of
        another shape than x, are a ValueError.
        """
        x, steps = start(noise, times)
        for step, (t, s) in enumerate(steps, 1):
            x = advance(velocity, x, t, s)
            if progress:
                progress(step, len(steps), x)
        return x

    return sample
