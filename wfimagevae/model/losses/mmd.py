"""Maximum mean discrepancy of latents from the standard normal distribution."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Squared widths of the Gaussian kernels, per dimension; distances of normal vectors are about 2.
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
VECTORS_PER_IMAGE = 128
_EXACT = "donot_use_mm_for_euclid_dist"
_GOLDEN = 0.6180339887498949


def normal_mmd(vectors: Tensor, weights: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Squared MMD between vectors (n, d), of all processes together, and N(0, I).

    Mean over Gaussian kernels ``exp(-|x - y|^2 / (2 s d))``. The expectations over the normal
    distribution are exact; over pairs of vectors it is the U-statistic, unbiased for independent
    vectors whatever their number, so that it may be slightly negative.

    ``weights``, (n,), are 1 for vectors that count and 0 for fillers; ``gather`` joins a tensor's
    rows over processes, without a gradient. The result is this process's share times the number of
    processes: their mean is the MMD, and the mean of their gradients is its gradient.

    Source: Gretton et al. 2012, JMLR 13, lemma 6; exact expectations: Rustamov 2019,
    arXiv:1901.03227; as a regulariser: Tolstikhin et al. 2018, arXiv:1711.01558.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        # The vectors of all processes, without a gradient: see below.
        rows = gather(torch.cat([vectors, weights[:, None].to(vectors)], dim=1).detach())
        others, other_weights = rows[:, :-1], rows[:, -1]
        dim, total = vectors.shape[1], other_weights.sum()
        share = weights.to(vectors) * (len(others) / len(vectors)) / total
        # Not by a matrix product, which TF32 and cancellation would spoil.
        distances = torch.cdist(vectors, others, compute_mode=_EXACT).square()  # (n, N)
        norms = vectors.square().sum(1)  # (n,)
        value = vectors.new_zeros(())
        for bandwidth in BANDWIDTHS:
            width = bandwidth * dim
            kernel = (-distances / (2 * width)).exp() * other_weights
            # Each vector is among the others, at a distance of zero: not a pair.
            pairs = (kernel.sum(1) - 1) / (total - 1).clamp_min(1)
            prior = _shrink(width, 1, dim) * (-norms / (2 * (width + 1))).exp()
            # A pair moves by both ends, of which the graph knows one.
            terms = pairs + (pairs - pairs.detach()) - 2 * prior
            value = value + (share * terms).sum() + _shrink(width, 2, dim)
        return value / len(BANDWIDTHS)


def _shrink(width: float, added: float, dim: int) -> float:
    return math.exp(-0.5 * dim * math.log1p(added / width))


def latent_mmd(latent: Tensor, step: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """`normal_mmd` of latents (B, C, h, w): 128 pixels an image, on a grid that ``step`` moves.

    B may not differ between processes, h and w may.
    """
    pixels = latent.to(torch.promote_types(latent.dtype, torch.float32)).flatten(2)  # (B, C, h w)
    count = pixels.shape[2]
    order = torch.arange(VECTORS_PER_IMAGE, device=latent.device)
    offset = int(step * _GOLDEN % 1 * count)  # comes everywhere, also by even steps alone
    chosen = (order * max(1, count // VECTORS_PER_IMAGE) + offset) % count
    vectors = pixels[:, :, chosen].transpose(1, 2).flatten(0, 1)  # (B 128, C)
    # Images of fewer pixels fill up with some that do not count: all processes send as many.
    return normal_mmd(vectors, (order < count).repeat(len(latent)), gather)
