"""Samplers by name: each integrates a velocity from noise, t = 0, to data, t = 1."""

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

    ``evaluations`` are those of the velocity in a step, 0 if the sampler adapts; those that need an
    average velocity call ``velocity(x, t, t_end)``.
    """

    function: Callable[..., Tensor]
    evaluations: int
    needs_average_velocity: bool = False


SAMPLERS = MappingProxyType(
    {
        "euler": Sampler(sample_euler, evaluations=1),
        "heun": Sampler(sample_heun, evaluations=2),
        "rk4": Sampler(sample_rk4, evaluations=4),
        "dopri5": Sampler(sample_dopri5, evaluations=0),
        "dpmpp": Sampler(sample_dpmpp, evaluations=1),
        "euler_maruyama": Sampler(sample_euler_maruyama, evaluations=1),
        "mean_flow": Sampler(sample_mean_flow, evaluations=1, needs_average_velocity=True),
    }
)
