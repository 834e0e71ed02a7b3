"""The stochastic sampler of SiT."""

import math
from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Steps, Velocity, draw_like, evaluate


def euler_maruyama(velocity: Velocity, x: Tensor, steps: Steps, draw: Draw) -> Iterator[Tensor]:
    """Integrates ``dx = [v + w score / 2] dt + sqrt(w) dW``, whose marginals are the flow's.

    On the straight path the score is ``(t v - x) / (1 - t)``; w is 2 (1 - t), with which public
    samples of SiT were drawn. The last step follows the flow without noise: it ends at the mean of
    the data given x. SiT's code has it as ``last_step`` "Euler", 0.04 long; its default keeps the
    score's drift in that step. ``draw`` is asked for the steps 1 ... num_steps - 1.

    Source: Ma et al. 2024, arXiv:2401.08740, the reverse-time equation with coefficient w.
    """
    for step, (t, s) in enumerate(steps, 1):
        h = s - t
        v = evaluate(velocity, x, t)
        if step == len(steps):  # without noise, to the mean of the data
            x = x + h * v
        else:
            w = 2.0 * (1 - t)
            score = (t * v - x) / (1 - t)
            x = x + h * (v + w / 2 * score) + math.sqrt(w * h) * draw_like(draw, step, x)
        yield x
