"""Class-free guidance: a model and its condition become the velocity that a sampler follows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wfimagevae.diffusion.path import expand_times

# A tensor with the batch first, or tuples, lists and dicts of conditions.
Condition = Tensor | tuple | list | dict


@dataclass(frozen=True)
class Guidance:
    """How far, when and where the condition is exaggerated: v = v_null + scale (v_cond - v_null).

    Times in the interval, both ends included, are guided (of an average velocity, the time of its
    start decides). ``rescale``, 0 to 1, is the share by which each sample's guided velocity is
    brought back to the standard deviation of the conditional one. Only the first ``channels`` are
    guided, None is all; public SiT samples were made with 3 of 4. The conditional model has the
    rest.

    Source: Ho and Salimans 2022, arXiv:2207.12598; the interval Kynkaanniemi et al. 2024,
    arXiv:2404.07724; the rescaling Lin et al. 2023, arXiv:2305.08891, section 3.4.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    channels: int | None = None

    def __post_init__(self):
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"the guidance scale must be at least 0 and finite, got {self.scale}")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"the guidance interval must be in [0, 1], low first, got {low, high}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"the guidance rescaling must be in [0, 1], got {self.rescale}")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"at least 1 channel must be guided, got {self.channels}")

    def is_active(self, t: Tensor) -> Tensor:
        """Whether a time is guided, bool, of the shape of ``t``."""
        low, high = self.interval
        return (t >= low) & (t <= high) & (self.scale != 1)

    def combine(self, conditional: Tensor, null: Tensor) -> Tensor:
        """The guided velocity, (B, ...), from the conditional and the null one."""
        if self.channels is not None and self.channels < conditional.shape[1]:
            first, rest = conditional[:, : self.channels], conditional[:, self.channels :]
            return torch.cat([self._guide(first, null[:, : self.channels]), rest], dim=1)
        return self._guide(conditional, null)

    def _guide(self, conditional: Tensor, null: Tensor) -> Tensor:
        guided = null + self.scale * (conditional - null)
        if self.rescale == 0:
            return guided
        ratio = _deviation(conditional) / _deviation(guided).clamp_min(torch.finfo(null.dtype).tiny)
        return guided * (1 + self.rescale * (ratio - 1))


def _deviation(x: Tensor) -> Tensor:
    """Standard deviation of each sample, (B, 1, ..., 1)."""
    return x.std(dim=tuple(range(1, x.dim())), correction=0, keepdim=True)


@dataclass(frozen=True)
class GuidedVelocity:
    """The velocity that a sampler calls: ``model(x, t, condition, t_end)`` of a batch, guided.

    Where guidance is active the network is called once, with 2B samples, the conditional half
    first; elsewhere, and at scale 1, with B. The condition, class labels, (B,), for example, is
    None for an unconditional model; the null one, which says nothing, may be None where the scale
    is 1. ``count`` is called at each evaluation with the number of samples that the network saw.
    """

    model: Callable[..., Tensor]
    condition: Condition | None
    null_condition: Condition | None = None
    guidance: Guidance = Guidance()
    count: Callable[[int], None] | None = None

    def __post_init__(self):
        if self.guidance.scale != 1 and (self.condition is None or self.null_condition is None):
            what = "condition" if self.condition is None else "null condition"
            raise ValueError(
                f"a guidance scale of {self.guidance.scale} needs a conditional model, but there "
                f"is no {what}; set the scale to 1"
            )

    def rows(self, rows: slice) -> "GuidedVelocity":
        conditions = (self.condition, self.null_condition)
        some = [map_tensors(lambda leaf: leaf[rows], condition) for condition in conditions]
        return GuidedVelocity(self.model, *some, self.guidance, self.count)

    def __call__(self, x: Tensor, t: Tensor, t_end: Tensor | None = None) -> Tensor:
        """The guided velocity, (B, ...), of the type of the state ``x``, (B, ...).

        Times in [0, 1] are scalars or (B,), on any device; ``t_end`` is the end of an average
        velocity, None asks for the velocity at t.
        """
        channels = self.guidance.channels
        if channels is not None and (x.dim() < 2 or channels > x.shape[1]):
            raise ValueError(f"cannot guide {channels} channels of x, {tuple(x.shape)}")
        # Whether a time is guided is asked on the CPU, where samplers keep their times.
        active = self.guidance.is_active(t)
        if not active.any():
            return self._evaluate(x, t, t_end, self.condition)
        # One call for both halves, the conditional one first.
        both = map_tensors(lambda *leaves: torch.cat(leaves), self.condition, self.null_condition)
        times = (None if time is None else _repeat(time) for time in (t, t_end))
        v = self._evaluate(_repeat(x), *times, both)
        conditional, null = v.chunk(2)
        guided = self.guidance.combine(conditional, null)
        if active.all():
            return guided
        # Some times of the batch lie outside the interval.
        return torch.where(expand_times(active.to(x.device), x), guided, conditional)

    def _evaluate(self, x, t, t_end, condition) -> Tensor:
        def check(leaf: Tensor) -> None:
            if len(leaf) != len(x):
                raise ValueError(f"x has {len(x)} samples, but its condition {len(leaf)}")

        map_tensors(check, condition)
        if self.count:
            self.count(len(x))
        # Conversion comes before the move: not every device has float64.
        t, t_end = (
            None if time is None else time.to(x.dtype).to(x.device).expand(len(x))
            for time in (t, t_end)
        )
        return self.model(x, t, condition, t_end).to(x.dtype)


def _repeat(x: Tensor) -> Tensor:
    return torch.cat([x, x]) if x.dim() else x


def map_tensors(function: Callable, tree, *others):
    """Applies a function to the tensors at the same place of one or several conditions."""
    if any(type(other) is not type(tree) for other in others):
        raise ValueError(f"conditions differ in structure: {[type(o) for o in (tree, *others)]}")
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, dict):
        if any(other.keys() != tree.keys() for other in others):
            raise ValueError(f"conditions differ in keys: {[list(o) for o in (tree, *others)]}")
        leaves = {key: (value, *(other[key] for other in others)) for key, value in tree.items()}
        return {key: map_tensors(function, *values) for key, values in leaves.items()}
    if isinstance(tree, tuple | list):
        if any(len(other) != len(tree) for other in others):
            raise ValueError(f"conditions differ in length: {[len(o) for o in (tree, *others)]}")
        places = zip(tree, *others, strict=True)
        return type(tree)(map_tensors(function, *leaves) for leaves in places)
    raise ValueError(f"a condition holds tensors, tuples, lists and dicts, got {type(tree)}")
