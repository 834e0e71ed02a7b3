"""What a trained flow does between noise and data: states, predicted ends, interpolations."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wfimagevae.diffusion.timesteps import time_grid
from wfimagevae.engine.device import autocast
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject

# velocity(x, t, t_end=None): x (B, ...), times scalars or (B,).
Velocity = Callable[..., Tensor]


def sampling_velocity(
    generator: FlowGenerator, subjects: Sequence[Subject], options: SamplingOptions
) -> Velocity:
    """The velocity that samples follow, without gradients; the model is put into evaluation."""
    generator.model.eval()
    guided = generator.velocity(generator.condition(subjects), options, len(subjects))

    @torch.no_grad()
    def velocity(x: Tensor, t: Tensor, t_end: Tensor | None = None) -> Tensor:
        with autocast(generator.device, generator.precision):
            return guided(x.to(generator.device), t, t_end)

    return velocity


def draw_states(
    generator: FlowGenerator, subjects: Sequence[Subject], options: SamplingOptions
) -> tuple[Tensor, Tensor]:
    """Every state of some samples on their way.

    Gives times (T,), float64, from 0 to 1, and states (T, B, ...) on the CPU, T = steps + 1.
    """
    options, indices = generator.resolve(options), [subject.index for subject in subjects]
    noise = generator.noise(indices, options.seed)
    states = [noise.cpu()]
    generator.sample(
        indices,
        generator.condition(subjects),
        options,
        progress=lambda step, num_steps, x: states.append(x.cpu()),
        noise=noise,
    )
    return time_grid(options.steps, options.time_shift), torch.stack(states)


def predicted_ends(
    velocity: Velocity, times: Tensor, states: Tensor, is_average: bool = False
) -> Tensor:
    """Where each state would arrive on a straight line: x_t + (1 - t) v(x_t, t), on the CPU.

    With ``is_average``, by the average velocity from t to 1, as one step of MeanFlow goes. Times
    are (T,), states and ends (T, B, ...).
    """
    ends = []
    for t, x in zip(times, states, strict=True):
        if t < 1:
            end = (torch.ones_like(t),) if is_average else ()
            x = x + (1 - float(t)) * velocity(x, t, *end).cpu()
        ends.append(x)
    return torch.stack(ends)


def interpolate(
    generator: FlowGenerator, subjects: Sequence[Subject], options: SamplingOptions, num_places: int
) -> Tensor:
    """Samples of noises between those of samples i and B + i, which show the same.

    Gives samples in the model's space, (num_places, B, ...), on the CPU; the first and the last are
    those of the two noises. Fewer than two places are a ValueError.
    """
    if num_places < 2:
        raise ValueError(f"an interpolation needs at least 2 places, got {num_places}")
    count, condition = len(subjects), generator.condition(subjects)
    a = generator.noise(range(count), options.seed)
    b = generator.noise(range(count, 2 * count), options.seed)
    between = [slerp(a, b, i / (num_places - 1)) for i in range(num_places)]
    return torch.stack(
        [generator.sample(list(range(count)), condition, options, noise=x).cpu() for x in between]
    )


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Between two noises (B, ...) on the great circle, which stay normal; a at share 0, b at 1.

    Source: Shoemake 1985, doi:10.1145/325334.325242; the lengths are interpolated linearly.
    """
    if share in (0, 1):
        return (a, b)[int(share)].clone()
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    length_a, length_b = (flat.norm(dim=1, keepdim=True) for flat in (flat_a, flat_b))
    unit_a, unit_b = flat_a / length_a, flat_b / length_b
    angle = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1).acos()  # (B, 1)
    weight_a, weight_b = ((part * angle).sin() for part in (1 - share, share))
    direction = weight_a * unit_a + weight_b * unit_b
    straight = (1 - share) * unit_a + share * unit_b  # of nearly parallel ones, no division by 0
    direction = torch.where(angle.sin() > 1e-6, direction / angle.sin(), straight)
    length = (1 - share) * length_a + share * length_b
    return (length * direction).to(a.dtype).view_as(a)
