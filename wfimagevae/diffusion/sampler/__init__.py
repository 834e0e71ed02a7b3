"""Samplers by name, of flows and of Gaussian diffusions: from noise to data.

A sampler of flows integrates a velocity from t = 0 to data at t = 1. One of Gaussian diffusions
goes from the noisiest of a grid's levels to data, which lie before timestep 0.

An algorithm gives the state after each step, which goes from a time t to a later time s, and keeps
what it remembers in its own variables. No sampler turns gradients off: that is left to the caller.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from wfimagevae.diffusion.denoiser import Clip, Denoiser, Level, Prediction
from wfimagevae.diffusion.sampler.ddim import ddim
from wfimagevae.diffusion.sampler.ddpm import ddpm
from wfimagevae.diffusion.sampler.dopri5 import dopri5
from wfimagevae.diffusion.sampler.dpmpp import dpmpp
from wfimagevae.diffusion.sampler.dpmpp_2m import dpmpp_2m
from wfimagevae.diffusion.sampler.euler import euler
from wfimagevae.diffusion.sampler.euler_ancestral import euler_ancestral
from wfimagevae.diffusion.sampler.euler_maruyama import euler_maruyama
from wfimagevae.diffusion.sampler.grid import Draw, Velocity
from wfimagevae.diffusion.sampler.heun import heun
from wfimagevae.diffusion.sampler.mean_flow import mean_flow
from wfimagevae.diffusion.sampler.plms import plms
from wfimagevae.diffusion.sampler.rk4 import rk4
from wfimagevae.diffusion.sampler.sigma_euler import sigma_euler


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


SAMPLERS = {
    "euler": Sampler(euler, evaluations=1),
    "heun": Sampler(heun, evaluations=2),
    "rk4": Sampler(rk4, evaluations=4),
    "dopri5": Sampler(dopri5, evaluations=0),
    "dpmpp": Sampler(dpmpp, evaluations=1),
    "euler_maruyama": Sampler(euler_maruyama, evaluations=1),
    "mean_flow": Sampler(mean_flow, evaluations=1, needs_average_velocity=True),
}


@dataclass(frozen=True)
class GaussianSampler:
    """One sampler of Gaussian diffusions; ``evaluations`` are those of the network in a step.

    (``plms`` takes seven more in all, for its first steps.)
    """

    states: Callable[..., Iterator[Tensor]]
    evaluations: int = 1

    def __call__(
        self,
        model: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        levels: Sequence[Level],
        *,
        draw: Draw = None,
        progress: Callable[[int, int, Tensor], None] | None = None,
        clip: Clip = "static",
        prediction: Prediction = "epsilon",
        **settings,
    ) -> Tensor:
        """Takes standard normal noise, (B, C, ...), down levels of noise to data.

        ``model(x, t)`` gives ``prediction``, (B, C, ...), or with learned variances (B, 2 C, ...),
        at a float64 scalar t on the CPU, the timestep: here 0 is nearest to data. ``levels`` are
        `GaussianDiffusion.grid`'s; ``clip`` is what becomes of predicted data outside [-1, 1], see
        `Denoiser`. The rest is as with `Sampler`.
        """
        steps = list(pairwise(levels))
        # Written so that NaN fails too.
        rises = all(0 < now.alpha_bar < then.alpha_bar for now, then in steps)
        if not steps or not rises or levels[-1].alpha_bar != 1:
            shares = [level.alpha_bar for level in levels]
            raise ValueError(f"alpha_bar must increase strictly from above 0 to 1, got {shares}")
        start = noise.to(torch.promote_types(noise.dtype, torch.float32))
        denoise = Denoiser(model, prediction, clip)
        for step, x in enumerate(self.states(denoise, start, steps, draw, **settings), 1):
            if progress:
                progress(step, len(steps), x)
        return x


GAUSSIAN_SAMPLERS = {
    "ddim": GaussianSampler(ddim),
    "sigma_euler": GaussianSampler(sigma_euler),
    "euler_ancestral": GaussianSampler(euler_ancestral),
    "plms": GaussianSampler(plms),
    "dpmpp_2m": GaussianSampler(dpmpp_2m),
    "ddpm": GaussianSampler(ddpm),
}
