"""What the samplers share: the steps of a grid, the state, and the call of a velocity."""

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
    """The state at t = 0 and the start and end of each step to t = 1.

    The state is float64 if the noise, (B, ...), is, else float32. Steps are Python numbers, so that
    the grid ends at 1 exactly in any state type. ``times`` are (num_steps + 1,).
    """
    if not noise.is_floating_point() or noise.dim() < 1:
        raise ValueError(f"noise must be a floating batch, got {noise.dtype} {tuple(noise.shape)}")
    if times.dim() != 1 or len(times) < 2:
        raise ValueError(
            f"times must be (num_steps + 1,) with at least 1 step, got shape {tuple(times.shape)}"
        )
    values = times.double().tolist()
    steps = list(pairwise(values))
    # Written so that NaN fails too.
    if values[0] != 0 or values[-1] != 1 or not all(t < s for t, s in steps):
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
