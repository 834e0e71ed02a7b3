"""The stochastic sampler of SiT, by Euler and Maruyama's method: one evaluation a step."""

import math
from types import MappingProxyType

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Report, Velocity, evaluate, start

# w(t) up to its norm; none of them is infinite, and each of them keeps the marginals.
DIFFUSIONS = MappingProxyType(
    {
        "sigma": lambda t: 1 - t,
        "sine": lambda t: math.sin(math.pi * t) ** 2,
        "constant": lambda t: 1.0,
    }
)


def sample_euler_maruyama(
    velocity: Velocity,
    noise: Tensor,
    times: Tensor,
    *,
    draw: Draw = None,
    progress: Report = None,
    diffusion: str = "sigma",
    norm: float = 2.0,
) -> Tensor:
    """Integrates ``dx = [v + w score / 2] dt + sqrt(w) dW``, whose marginals are the flow's.

    On the straight path the score is ``(t v - x) / (1 - t)``. The last step follows the flow
    without noise: it ends at the mean of the data given x. SiT's code has it as ``last_step``
    "Euler", 0.04 long; its default keeps the score's drift in that step.

    Args:
        draw: ``draw(step)``, standard normal noise like x, for the steps 1 ... num_steps - 1.
        diffusion: Shape of w: ``sigma`` is 1 - t, ``sine`` is sin(pi t)^2, ``constant`` is 1.
        norm: Factor of w; 0 is Euler's method. SiT's code calls w / 2 the diffusion: its norm of 1,
            with which public samples were drawn, is 2 here.

    Source: Ma et al. 2024, arXiv:2401.08740, the reverse-time equation with coefficient w.
    """
    if draw is None:
        raise ValueError("a stochastic sampler needs draw(step), noise from each sample's seed")
    if diffusion not in DIFFUSIONS:
        raise ValueError(f"unknown diffusion {diffusion!r}; choose from {', '.join(DIFFUSIONS)}")
    if not 0 <= norm < math.inf:
        raise ValueError(f"the norm of the diffusion must be at least 0 and finite, got {norm}")
    x, steps = start(noise, times)
    for step, (t, s) in enumerate(steps, 1):
        h = s - t
        v = evaluate(velocity, x, t)
        if step == len(steps):  # without noise, to the mean of the data
            x = x + h * v
        else:
            w = norm * DIFFUSIONS[diffusion](t)
            score = (t * v - x) / (1 - t)
            eps = draw(step)
            if eps.shape != x.shape:  # it would broadcast, and samples would share it
                raise ValueError(f"draw({step}) gave {tuple(eps.shape)} for x of {tuple(x.shape)}")
            x = x + h * (v + w / 2 * score) + math.sqrt(w * h) * eps.to(x)
        if progress:
            progress(step, len(steps), x)
    return x
