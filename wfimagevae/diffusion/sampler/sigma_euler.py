"""Euler's method for Gaussian diffusions, in the noise level of k-diffusion."""

from collections.abc import Iterator

from torch import Tensor

from wfimagevae.diffusion.denoiser import Denoiser, LevelSteps
from wfimagevae.diffusion.sampler.grid import Draw


def sigma_euler(denoise: Denoiser, x: Tensor, steps: LevelSteps, draw: Draw) -> Iterator[Tensor]:
    """Euler's method for dy / d sigma = (y - data) / sigma, where y = data + sigma eps.

    Sigma is k-diffusion's, `Level.ratio`, and y the state x / alpha. On the same levels the steps
    are those of DDIM without noise; unlike it, this starts from noise of deviation sigma in y, so
    that no share of the state is taken for data.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1 with s(t) = 1 and without its second
    evaluation.
    """
    x = x * steps[0][0].sigma
    for now, then in steps:
        data, eps, _ = denoise(x, now)
        # y + (sigma' - sigma) eps, without the two large terms that cancel.
        x = then.alpha * (data + then.ratio * eps)
        yield x
