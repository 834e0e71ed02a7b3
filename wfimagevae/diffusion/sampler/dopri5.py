"""Dormand and Prince's adaptive method of order 5, with steps of each sample's own."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wfimagevae.diffusion.path import expand_times
from wfimagevae.diffusion.sampler.grid import Draw, Steps, Velocity, evaluate

# For each evaluation of a step, its place in the step and the weights of the slopes before it; the
# last is at the step's end, and its slope is the first of the next step.
_STAGES = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1, (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
# Weights of the error, and of the way to the middle of the step.
_ERROR = (71 / 86400, 0, -142 / 50085, 71 / 2880, -5751 / 169600, 44 / 1575, -1 / 60)
_MIDDLE = (
    *(6025192743 / 60171106304, 0, 51252292925 / 130801643196, -2691868925 / 90256659456),
    *(187940372067 / 3189068634112, -1776094331 / 39487288512, 11237099 / 470086768),
)
_FIRST_STEP = 0.01


def dopri5(
    velocity: Velocity,
    x: Tensor,
    steps: Steps,
    draw: Draw,
    tolerance: float = 1e-5,
    max_evaluations: int = 10_000,
) -> Iterator[Tensor]:
    """Dormand and Prince's method of order 5, with as many steps as a tolerance takes.

    Samples go together, each by steps of its own size, so that none depends on the others. The
    steps taken do not depend on the grid, and all its states come at the end.

    Args:
        velocity: ``velocity(x, t)`` of the samples still on their way, x (n, ...), each at its own
            time, (n,). If it belongs to this batch, by its labels, it must have ``rows``, as a
            `GuidedVelocity` has.
        tolerance: Error that a step may make, relative and, in units of x, absolute: root mean
            square over a sample.
        max_evaluations: For one sample; a velocity in low precision may never meet a tolerance.

    Source: Dormand and Prince 1980, J. Comput. Appl. Math. 6(1), 19-26; error and states within a
    step by Shampine 1986, Math. Comp. 46(173), 135-150, as in torchdiffeq.
    """
    ends = [s for _, s in steps]
    states = x.new_empty(len(ends), *x.shape)
    # Samples on their way, their times, float64 on the CPU, and the sizes of their next steps.
    rows, t = torch.arange(len(x)), torch.zeros(len(x), dtype=torch.float64)
    h, slope = torch.full_like(t, _FIRST_STEP), None
    for _ in range(max_evaluations // len(_STAGES)):
        # A velocity without rows is the same for all samples.
        of_rows = velocity.rows(rows) if hasattr(velocity, "rows") else velocity
        h = torch.minimum(h, 1 - t)
        s, step = t + h, _column(h, x)
        slopes = [evaluate(of_rows, x, t) if slope is None else slope]
        for place, weights in _STAGES:
            y = x + step * _combine(weights, slopes)
            slopes.append(evaluate(of_rows, y, t + place * h))
        # Sample by sample, as a sum over several may round in another way.
        error = step * _combine(_ERROR, slopes) / (1 + torch.maximum(x.abs(), y.abs()))
        error = torch.stack([e.square().mean().sqrt() for e in error]).tolist()
        if not all(map(math.isfinite, error)):
            raise ValueError(f"the velocity at t = {float(t.min()):.4f} is not finite")
        accepted = torch.tensor([e <= tolerance for e in error])
        # The grid's times within the step, by a curve through its ends and its middle.
        middle = x + step * _combine(_MIDDLE, slopes)
        curve = x, y, step * slopes[0], step * slopes[-1]
        for index, end in enumerate(ends):
            passed = accepted & (t < end) & (end <= s)
            if passed.any():
                place = _column((end - t) / h, x)
                lack = 16 * (place * (1 - place)).square() * (middle - _cubic(0.5, *curve))
                states[index, rows[passed]] = (_cubic(place, *curve) + lack)[passed]
        # A step that was refused is made again, shorter; the next is at most ten times as long.
        h = h * torch.tensor([_growth(e / tolerance) for e in error], dtype=torch.float64)
        t = torch.where(accepted, s, t)
        moved = expand_times(accepted.to(x.device), x)
        x, slope = torch.where(moved, y, x), torch.where(moved, slopes[-1], slopes[0])
        going = t < 1
        rows, t, h, x, slope = (each[going] for each in (rows, t, h, x, slope))
        if not len(rows):
            break
    else:
        raise ValueError(
            f"dopri5 has not met its tolerance after {max_evaluations} evaluations, at "
            f"t = {float(t.min()):.4f}: evaluate the model in fp32"
        )
    yield from states  # (num_steps, B, ...)


def _column(values: Tensor, x: Tensor) -> Tensor:
    """Values (B,) in the type of x and on its device, (B, 1, ..., 1); not all have float64."""
    return expand_times(values.to(x.dtype).to(x.device), x)


def _combine(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    return sum(weight * k for weight, k in zip(weights, slopes, strict=True) if weight)


def _cubic(p: Tensor | float, x: Tensor, y: Tensor, x_rise: Tensor, y_rise: Tensor) -> Tensor:
    """The cubic from x to y with these slopes, at a share p of the way."""
    from_x, from_y = x + p * (2 * x + x_rise), y + (1 - p) * (2 * y - y_rise)
    return (1 - p) ** 2 * from_x + p**2 * from_y


def _growth(ratio: float) -> float:
    """Factor of the step's size after an error of that share of the tolerance."""
    return min(10, max(1 if ratio <= 1 else 0.2, 0.9 * ratio**-0.2)) if ratio else 10
