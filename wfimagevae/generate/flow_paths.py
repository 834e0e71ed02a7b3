"""What a trained flow does between noise and data: states, predicted ends, interpolations."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wfimagevae.diffusion.guidance import Condition
from wfimagevae.diffusion.timesteps import time_grid
from wfimagevae.engine.device import autocast
from wfimagevae.generate.generator import FlowGenerator, SamplingOptions
from wfimagevae.generate.subjects import Subject
from wfimagevae.pictures.flow_frames import slerp

# velocity(x, t, t_end=None): x (B, ...), times scalars or (B,).
Velocity = Callable[..., Tensor]


def sampling_velocity(
    generator: FlowGenerator, condition: Condition | None, options: SamplingOptions, count: int
) -> Velocity:
    """The velocity that a generator's samples follow, without gradients.

    Args:
        generator: The model; it is put into evaluation mode.
        condition: What each state is to become, as for `FlowGenerator.sample`.
        options: Guidance and precision.
        count: States in a batch.

    Raises:
        ValueError: options that do not fit the model.
    """
    generator.model.eval()
    guided = generator.velocity(condition, options, count)

    @torch.no_grad()
    def velocity(x: Tensor, t: Tensor, t_end: Tensor | None = None) -> Tensor:
        with autocast(generator.device, options.precision):
            return guided(x.to(generator.device), t, t_end)

    return velocity


def sampling_states(
    generator: FlowGenerator, condition: Condition | None, options: SamplingOptions, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Every state of a sampler on its way.

    Args:
        generator: The model.
        condition: As for `sampling_velocity`.
        options: How to sample.
        noise: First states, (B, ...).

    Returns:
        Times (T,), float64, from 0 to 1, and states (T, B, ...) on the CPU; T = steps + 1.
    """
    states = [noise.cpu()]
    generator.sample(
        list(range(len(noise))),
        condition,
        options,
        progress=lambda step, num_steps, x: states.append(x.cpu()),
        noise=noise,
    )
    return time_grid(options.steps, options.shift), torch.stack(states)


def predicted_ends(
    velocity: Velocity, times: Tensor, states: Tensor, is_average: bool = False
) -> Tensor:
    """Where each state would arrive on a straight line: x_t + (1 - t) v(x_t, t).

    Args:
        velocity: As samplers call it.
        times: Of the states, (T,), in [0, 1].
        states: (T, B, ...).
        is_average: Go by the average velocity from t to 1, as one step of MeanFlow does.

    Returns:
        Predictions of the data, (T, B, ...), on the CPU; a state at t = 1 is its own.
    """
    ends = []
    for t, x in zip(times, states, strict=True):
        if t < 1:
            end = (torch.ones_like(t),) if is_average else ()
            x = x + (1 - float(t)) * velocity(x, t, *end).cpu()
        ends.append(x)
    return torch.stack(ends)


def field_velocity(
    generator: FlowGenerator, label: int | None, options: SamplingOptions
) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity at any number of places, (N, ...), of one class; None: of no class."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        labels = None if label is None else torch.full((len(x),), label)
        return sampling_velocity(generator, labels, options, len(x))(x, t)

    return velocity


def draw_states(
    generator: FlowGenerator, subjects: Sequence[Subject], options: SamplingOptions
) -> tuple[Tensor, Tensor, Velocity]:
    """States of some samples.

    Returns:
        Times (T,), states (T, B, ...) on the CPU, and the velocity that they followed.
    """
    condition = generator.condition_of(subjects)
    velocity = sampling_velocity(generator, condition, options, len(subjects))
    noise = generator.noise([subject.index for subject in subjects], options.seed)
    return *sampling_states(generator, condition, options, noise), velocity


def interpolate(
    generator: FlowGenerator,
    subjects: Sequence[Subject],
    options: SamplingOptions,
    num_places: int,
) -> Tensor:
    """Samples of noises between those of samples i and B + i, which show the same.

    Args:
        generator: The model.
        subjects: What the B pairs show.
        options: How to sample.
        num_places: From the first noise to the second, both included.

    Returns:
        Samples in the model's space, (num_places, B, ...), on the CPU.

    Raises:
        ValueError: fewer than two places.
    """
    if num_places < 2:
        raise ValueError(f"an interpolation needs at least 2 places, got {num_places}")
    count, condition = len(subjects), generator.condition_of(subjects)
    a = generator.noise(range(count), options.seed)
    b = generator.noise(range(count, 2 * count), options.seed)
    between = [slerp(a, b, i / (num_places - 1)) for i in range(num_places)]
    return torch.stack(
        [generator.sample(list(range(count)), condition, options, noise=x).cpu() for x in between]
    )
