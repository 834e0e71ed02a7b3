"""What samplers share: what they are called with, and an evaluation of the velocity."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# velocity(x, t, t_end=None): dx/dt of x (B, ...) at t, or the average velocity from t to t_end;
# t and t_end are float64 on the CPU, scalars or, of samples at different times, (B,). A velocity
# that belongs to the samples of one batch, by their labels for instance, has rows(which): the
# velocity of those samples alone.
Velocity = Callable[..., Tensor]
# draw(step): standard normal noise like x, drawn for each sample from its own seed.
Draw = Callable[[int], Tensor] | None
# Start and end of each step, as Python numbers: the grid ends at 1 exactly in any state type.
Steps = Sequence[tuple[float, float]]


def evaluate(
    velocity: Velocity, x: Tensor, t: float | Tensor, t_end: float | None = None
) -> Tensor:
    """The velocity at a time, or the average velocity to ``t_end``, in the type of the state."""
    # On the CPU, so that asking whether a time lies in an interval need not wait for a GPU.
    times = [torch.as_tensor(time, dtype=torch.float64) for time in (t, t_end) if time is not None]
    v = velocity(x, *times)
    if v.shape != x.shape:
        raise ValueError(f"the velocity of {tuple(x.shape)} has shape {tuple(v.shape)}")
    return v.to(x.dtype)


def draw_like(draw: Draw, step: int, x: Tensor) -> Tensor:
    """The noise of a stochastic sampler's step, of the shape and type of the state."""
    if draw is None:
        raise ValueError("a stochastic sampler needs draw(step), noise from each sample's seed")
    noise = draw(step)
    if noise.shape != x.shape:  # it would broadcast, and samples would share it
        raise ValueError(f"draw({step}) gave {tuple(noise.shape)} for x of {tuple(x.shape)}")
    return noise.to(x)
