"""Samplers by name: each integrates a velocity from noise, t = 0, to data, t = 1."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from wfimagevae.diffusion.sampler.dopri5 import sample_dopri5
from wfimagevae.diffusion.sampler.dpmpp import sample_dpmpp
from wfimagevae.diffusion.sampler.euler import sample_euler
from wfimagevae.diffusion.sampler.euler_maruyama import sample_euler_maruyama
from wfimagevae.diffusion.sampler.heun import sample_heun
from wfimagevae.diffusion.sampler.mean_flow import sample_mean_flow
from wfimagevae.diffusion.sampler.rk4 import sample_rk4


@dataclass(frozen=True)
class Sampler:
    """One sampler, called as `fixed_steps` says, and what a caller must know of it.

    ``evaluations`` are those of the velocity in a step, 0 if the sampler adapts; ``is_stochastic``
    ones need ``draw``, those that need an average velocity call ``velocity(x, t, t_end)``.
    """

    name: str
    function: Callable[..., Tensor]
    evaluations: int
    is_stochastic: bool = False
    needs_average_velocity: bool = False


_ALL = (
    Sampler("euler", sample_euler, evaluations=1),
    Sampler("heun", sample_heun, evaluations=2),
    Sampler("rk4", sample_rk4, evaluations=4),
    Sampler("dopri5", sample_dopri5, evaluations=0),
    Sampler("dpmpp", sample_dpmpp, evaluations=1),
    Sampler("euler_maruyama", sample_euler_maruyama, evaluations=1, is_stochastic=True),
    Sampler("mean_flow", sample_mean_flow, evaluations=1, needs_average_velocity=True),
)
SAMPLERS = MappingProxyType({sampler.name: sampler for sampler in _ALL})


def get_sampler(name: str) -> Sampler:
    """The sampler of that name; ValueError suggests the nearest one."""
    if name in SAMPLERS:
        return SAMPLERS[name]
    near = difflib.get_close_matches(str(name), SAMPLERS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown sampler {name!r}; {hint}Samplers: {', '.join(SAMPLERS)}")
