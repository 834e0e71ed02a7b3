"""Samplers by name: each integrates a velocity from noise, t = 0, to data, t = 1.

An algorithm gives the state after each step, which goes from a time t to a later time s, and keeps
what it remembers in its own variables. No sampler turns gradients off: that is left to the caller.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor

# velocity(x, t, t_end=None): dx/dt of x (B, ...) at t, or the average velocity from t to t_end;
# t and t_end are float64 scalars on the CPU. A velocity that belongs to the samples of one batch,
# by their labels for instance, has rows(slice): the velocity of those samples alone.
Velocity = Callable[..., Tensor]
# draw(step): standard normal noise like x, drawn for each sample from its own seed.
Draw = Callable[[int], Tensor] | None
# Start and end of each step, as Python numbers: the grid ends at 1 exactly in any state type.
Steps = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Sampler:
    """One sampler, and what a caller must know of it.

    ``evaluations`` are those of the velocity in a step, 0 if the sampler adapts; those that need an
    average velocity call ``velocity(x, t, t_end)``.
    """

    states: Callable[..., Iterator[Tensor]]
    evaluations: int
    needs_average_velocity: bool = False

    def __call__(
        self,
        velocity: Velocity,
        noise: Tensor,
        times: Tensor,
        *,
        draw: Draw = None,
        progress: Callable[[int, int, Tensor], None] | None = None,
        **settings,
    ) -> Tensor:
        """Integrates dx/dt = v(x, t) from standard normal noise, (B, ...), to data.

        ``times``, (num_steps + 1,), increase from 0 to 1; ``draw`` is of use to stochastic samplers
        alone; ``progress(step, num_steps, x)`` is called after each step, counted from 1. Samples
        are float32, or float64 if the noise is. Wrong times, or a velocity of another shape than x,
        are a ValueError.
        """
        values = times.double().tolist()
        steps = list(pairwise(values))
        # Written so that NaN fails too.
        if not steps or values[0] != 0 or values[-1] != 1 or not all(t < s for t, s in steps):
            raise ValueError(f"times must increase strictly from 0 to 1, got {values}")
        start = noise.to(torch.promote_types(noise.dtype, torch.float32))
        for step, x in enumerate(self.states(velocity, start, steps, draw, **settings), 1):
            if progress:
                progress(step, len(steps), x)
        return x


def evaluate(velocity: Velocity, x: Tensor, t: float, t_end: float | None = None) -> Tensor:
    """The velocity at a time, or the average velocity to ``t_end``, in the type of the state."""
    # On the CPU, so that asking whether a time lies in an interval need not wait for a GPU.
    times = [torch.tensor(time, dtype=torch.float64) for time in (t, t_end) if time is not None]
    v = velocity(x, *times)
    if v.shape != x.shape:
        raise ValueError(f"the velocity of {tuple(x.shape)} has shape {tuple(v.shape)}")
    return v.to(x.dtype)


def euler(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """Euler's method: straight steps, one evaluation each, first order."""
    for t, s in steps:
        x = x + (s - t) * evaluate(velocity, x, t)
        yield x


def heun(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """Heun's method: the mean of the slopes at both ends, two evaluations, second order.

    The last step evaluates at t = 1 too: a flow is regular there, unlike a score.
    """
    for t, s in steps:
        h = s - t
        k1 = evaluate(velocity, x, t)
        k2 = evaluate(velocity, x + h * k1, s)
        x = x + h / 2 * (k1 + k2)
        yield x


def rk4(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """The classic Runge-Kutta method: Simpson's weights, four evaluations, fourth order."""
    for t, s in steps:
        h = s - t
        k1 = evaluate(velocity, x, t)
        k2 = evaluate(velocity, x + h / 2 * k1, t + h / 2)
        k3 = evaluate(velocity, x + h / 2 * k2, t + h / 2)
        k4 = evaluate(velocity, x + h * k3, s)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        yield x


def mean_flow(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """Jumps along the flow by the average velocity, ``x_s = x_t + (s - t) u(x_t, t, s)``.

    Source: Geng et al. 2025, arXiv:2505.13447, in our direction of time.
    """
    for t, s in steps:
        x = x + (s - t) * evaluate(velocity, x, t, s)
        yield x


def dpmpp(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """DPM-Solver++(2M): one evaluation a step, second order by its memory of the last one.

    It integrates the linear part exactly and extrapolates the predicted data in log-SNR. On the
    straight path alpha = t and sigma = 1 - t; the predicted data are ``D = x + (1 - t) v`` and
    lambda = log(alpha / sigma). A step from t to s is ``x_s = sigma_s / sigma_t x + alpha_s (1 -
    e^-h) D'``, h the step in lambda. Lambda is infinite at t = 0 and t = 1, so the first, second
    and last step take D' = D: the first-order step. The steps in lambda next to t = 0 never become
    small; the error falls as h^2 log(1 / h).

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    last_data, last_h = None, math.inf
    for t, s in steps:
        # The data predicted at this step, extrapolated by the last step's to the middle of this.
        data = predicted = x + (1 - t) * evaluate(velocity, x, t)
        h = math.inf if t == 0 or s == 1 else math.log(s / (1 - s)) - math.log(t / (1 - t))
        if math.isfinite(h) and math.isfinite(last_h):
            predicted = data + h / (2 * last_h) * (data - last_data)
        sigma_ratio = (1 - s) / (1 - t)
        # alpha_s (1 - e^-h) without h, which may be infinite: e^-h = (sigma_s t) / (sigma_t s).
        x = sigma_ratio * x + (s - sigma_ratio * t) * predicted
        last_data, last_h = data, h
        yield x


def euler_maruyama(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """Integrates ``dx = [v + w score / 2] dt + sqrt(w) dW``, whose marginals are the flow's.

    On the straight path the score is ``(t v - x) / (1 - t)``; w is 2 (1 - t), with which public
    samples of SiT were drawn. The last step follows the flow without noise: it ends at the mean of
    the data given x. SiT's code has it as ``last_step`` "Euler", 0.04 long; its default keeps the
    score's drift in that step. ``draw`` is asked for the steps 1 ... num_steps - 1.

    Source: Ma et al. 2024, arXiv:2401.08740, the reverse-time equation with coefficient w.
    """
    if draw is None:
        raise ValueError("a stochastic sampler needs draw(step), noise from each sample's seed")
    for step, (t, s) in enumerate(steps, 1):
        h = s - t
        v = evaluate(velocity, x, t)
        if step == len(steps):  # without noise, to the mean of the data
            x = x + h * v
        else:
            w = 2.0 * (1 - t)
            score = (t * v - x) / (1 - t)
            eps = draw(step)
            if eps.shape != x.shape:  # it would broadcast, and samples would share it
                raise ValueError(f"draw({step}) gave {tuple(eps.shape)} for x of {tuple(x.shape)}")
            x = x + h * (v + w / 2 * score) + math.sqrt(w * h) * eps.to(x)
        yield x


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


SAMPLERS = MappingProxyType(
    {
        "euler": Sampler(euler, evaluations=1),
        "heun": Sampler(heun, evaluations=2),
        "rk4": Sampler(rk4, evaluations=4),
        "dopri5": Sampler(dopri5, evaluations=0),
        "dpmpp": Sampler(dpmpp, evaluations=1),
        "euler_maruyama": Sampler(euler_maruyama, evaluations=1),
        "mean_flow": Sampler(mean_flow, evaluations=1, needs_average_velocity=True),
    }
)
