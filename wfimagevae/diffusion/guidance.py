"""Class-free guidance: a model and its condition become the velocity that a sampler follows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# A tensor with the batch first, or a dict of conditions.
Condition = Tensor | dict


@dataclass(frozen=True)
class GuidedVelocity:
    """The velocity that a sampler calls: v = v_null + scale (v_cond - v_null) of a batch.

    Where guidance is active the network, ``model(x, t, condition, t_end)``, is called once, with 2B
    samples, the conditional half first; elsewhere, and at scale 1, with B. The condition, class
    labels, (B,), for example, is None for an unconditional model; the null one, which says nothing,
    may be None where the scale is 1.

    Times in the interval, both ends included, are guided (of an average velocity, the time of its
    start decides). ``rescale``, 0 to 1, is the share by which each sample's guided velocity is
    brought back to the standard deviation of the conditional one. Only the first ``channels`` are
    guided, None is all; public SiT samples were made with 3 of 4. The conditional model has the
    rest.

    Source: Ho and Salimans 2022, arXiv:2207.12598; the interval Kynkaanniemi et al. 2024,
    arXiv:2404.07724; the rescaling Lin et al. 2023, arXiv:2305.08891, section 3.4.
    """

    model: Callable[..., Tensor]
    condition: Condition | None
    null_condition: Condition | None = None
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    channels: int | None = None

    def rows(self, rows: slice | Tensor) -> "GuidedVelocity":
        """The velocity of some of the samples."""
        conditions = (self.condition, self.null_condition)
        some = [map_tensors(lambda leaf: leaf[rows], condition) for condition in conditions]
        return replace(self, condition=some[0], null_condition=some[1])

    def __call__(self, x: Tensor, t: Tensor, t_end: Tensor | None = None) -> Tensor:
        """The guided velocity, (B, ...), of the type of the state ``x``, (B, ...).

        Times in [0, 1] are scalars or (B,), on any device; ``t_end`` is the end of an average
        velocity, None asks for the velocity at t.
        """
        if self.channels is not None and (x.dim() < 2 or self.channels > x.shape[1]):
            raise ValueError(f"cannot guide {self.channels} channels of x, {tuple(x.shape)}")
        # Whether a time is guided is asked on the CPU, where samplers keep their times.
        low, high = self.interval
        inside = (low <= t) & (t <= high)
        if self.scale == 1 or not inside.any():
            return self._evaluate(x, t, t_end, self.condition)
        if not inside.all():  # samples at different times, of which some are guided
            v, ends = torch.empty_like(x), t_end if t_end is None else t_end.expand_as(t)
            for rows in (inside, ~inside):
                end = None if ends is None else ends[rows]
                v[rows] = self.rows(rows)(x[rows], t[rows], end)
            return v
        # One call for both halves, the conditional one first.
        both = map_tensors(lambda *leaves: torch.cat(leaves), self.condition, self.null_condition)
        v, null = self._evaluate(torch.cat([x, x]), t, t_end, both).chunk(2)
        count = x.shape[1] if self.channels is None else self.channels
        (v, rest), null = (v[:, :count], v[:, count:]), null[:, :count]
        guided = null + self.scale * (v - null)
        if self.rescale:
            tiny = torch.finfo(v.dtype).tiny
            ratio = _deviation(v) / _deviation(guided).clamp_min(tiny)
            guided = guided * (1 + self.rescale * (ratio - 1))
        return torch.cat([guided, rest], dim=1)

    def _evaluate(self, x, t, t_end, condition) -> Tensor:
        # Conversion comes before the move: not every device has float64.
        t, t_end = (
            None if time is None else time.to(x.dtype).to(x.device).repeat(len(x) // time.numel())
            for time in (t, t_end)
        )
        return self.model(x, t, condition, t_end).to(x.dtype)


def _deviation(x: Tensor) -> Tensor:
    """Standard deviation of each sample, (B, 1, ..., 1)."""
    return x.std(dim=tuple(range(1, x.dim())), correction=0, keepdim=True)


def map_tensors(function: Callable, *conditions: Condition | None):
    """Applies a function to the tensors at the same place of one or several conditions."""
    kinds = [sorted(c) if isinstance(c, dict) else type(c).__name__ for c in conditions]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"conditions differ in structure: {kinds}")
    first = conditions[0]
    if first is None:
        return None
    if not isinstance(first, dict):
        return function(*conditions)
    return {key: map_tensors(function, *(c[key] for c in conditions)) for key in first}
