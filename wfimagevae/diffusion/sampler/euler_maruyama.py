"""The stochastic sampler of SiT, by Euler and Maruyama's method: one evaluation a step."""

import math

from torch import Tensor

from wfimagevae.diffusion.sampler.grid import Draw, Report, Velocity, evaluate, start


def sample_euler_maruyama(
    velocity: Velocity, noise: Tensor, times: Tensor, *, draw: Draw = None, progress: Report = None
) -> Tensor:
    """Integrates ``dx = [v + w score / 2] dt + sqrt(w) dW``, whose marginals are the flow's.

    On the straight path the score is ``(t v - x) / (1 - t)``; w is 2 (1 - t), with which public
    samples of SiT were drawn. The last step follows the flow without noise: it ends at the mean of
    the data given x. SiT's code has it as ``last_step`` "Euler", 0.04 long; its default keeps the
    score's drift in that step.

    ``draw(step)`` gives standard normal noise like x, for the steps 1 ... num_steps - 1.

    Source: Ma et al. 2024, arXiv:2401.08740, the reverse-time equation with coefficient w.
    """
    if draw is None:
        raise ValueError("a stochastic sampler needs draw(step), noise from each sample's seed")
    x, steps = start(noise, times)
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
        if progress:
            progress(step, len(steps), x)
    return x
