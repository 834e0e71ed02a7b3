"""Dormand and Prince's adaptive method of order 5, by torchdiffeq."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Steps, Velocity, evaluate


def dopri5(
    velocity: Velocity,
    x: Tensor,
    steps: Steps,
    draw: Draw,
    tolerance: float = 1e-5,
    max_evaluations: int = 10_000,
) -> Iterator[Tensor]:
    """Dormand and Prince's method of order 5, with as many steps as a tolerance takes.

    Samples are integrated one by one, for a step size common to a batch would make each sample
    depend on the others. That is slow: this is a sampler to compare others with. The steps taken do
    not depend on the grid, and all its states come at the end.

    Args:
        velocity: ``velocity(x, t)``, x (1, ...), t a scalar. If it belongs to this batch, by its
            labels, it must have ``rows``, as a `GuidedVelocity` has.
        tolerance: Error that a step may make, relative and, in units of x, absolute: root mean
            square over a sample.
        max_evaluations: For one sample; a velocity in low precision may never meet a tolerance.

    Source: Dormand and Prince 1980, J. Comput. Appl. Math. 6(1), 19-26, by torchdiffeq.
    """
    evaluations = 0

    def slope(of_row: Velocity, t: Tensor, x: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        if evaluations > max_evaluations:
            raise ValueError(
                f"dopri5 has not met its tolerance after {max_evaluations} evaluations, at "
                f"t = {float(t):.4f}: evaluate the model in fp32"
            )
        v = evaluate(of_row, x, float(t))
        if not v.isfinite().all():
            raise ValueError(f"the velocity at t = {float(t):.4f} is not finite")
        return v

    grid = torch.tensor([0.0, *(s for _, s in steps)], dtype=torch.float64, device=x.device)
    # The library would otherwise step past the last time and interpolate back to it, and choose
    # its first step by a probe that may lie beyond 1 too: models know times up to 1 only.
    options = {"first_step": 0.01, "step_t": torch.tensor([1.0])}
    solve = partial(load_odeint(), rtol=tolerance, atol=tolerance, method="dopri5", options=options)
    paths = []  # one sample at a time, each with its own steps
    for row in (slice(i, i + 1) for i in range(len(x))):
        evaluations = 0
        # A velocity without rows is the same for all samples.
        of_row = velocity.rows(row) if hasattr(velocity, "rows") else velocity
        paths.append(solve(partial(slope, of_row), x[row], grid))
    yield from torch.cat(paths, dim=1)[1:]  # (num_steps, B, ...)


def load_odeint() -> Callable[..., Tensor]:
    """The solver of torchdiffeq; a ValueError says how to get it, where it is missing."""
    try:
        from torchdiffeq import odeint
    except ModuleNotFoundError:
        raise ValueError("the sampler dopri5 needs a package: pip install torchdiffeq") from None
    return odeint
