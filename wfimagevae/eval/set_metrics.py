"""Distances between sets of features: FID, rFID, KID, precision and recall."""

import torch
from torch import Tensor

# KID's subsets are drawn by this seed; precision and recall look at so many neighbours.
KID_SEED = 2020
NEIGHBOURS = 3


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """FID of features, (N, F) and (M, F): squared distance of the Gaussians with their moments.

    Source: Heusel et al. 2017, arXiv:1706.08500, equation 6.
    """
    if min(len(real), len(generated)) < 2:
        raise ValueError("a Frechet distance needs at least two images in each set")
    means = (real.double().mean(0) - generated.double().mean(0)).square().sum().cpu()
    a, b = (features.double().T.cov().cpu() for features in (real, generated))
    # The trace of the root of a b is the sum of the roots of its eigenvalues: no matrix root is
    # taken, which may fail to converge where fewer samples than features make a and b singular.
    roots = torch.linalg.eigvals(a @ b).sqrt().real.sum()
    return float(means + a.trace() + b.trace() - 2 * roots)


def kernel_distance(
    real: Tensor, generated: Tensor, subset_size: int = 1000, num_subsets: int = 100
) -> tuple[float, float]:
    """KID of features, (N, F) and (M, F): unbiased squared MMD of the kernel (x y / F + 1)^3.

    Mean and standard deviation over random subsets of each; the mean may be negative.

    Source: Binkowski et al. 2018, arXiv:1801.01401, by torch-fidelity.
    """
    from torch_fidelity import metric_kid

    result = metric_kid.kid_features_to_metric(
        generated.double(),
        real.double(),
        kid_subsets=num_subsets,
        kid_subset_size=min(subset_size, len(real), len(generated)),
        rng_seed=KID_SEED,
        verbose=False,
    )
    return result[metric_kid.KEY_METRIC_KID_MEAN], result[metric_kid.KEY_METRIC_KID_STD]


def precision_recall(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """Share of generated samples near real ones (precision), and of real ones near generated.

    Of features, (N, F) and (M, F), N, M > 3. Near means within the distance that a sample of the
    other set has from its own third neighbour there.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, by torch-fidelity.
    """
    from torch_fidelity import metric_prc

    result = metric_prc.prc_features_to_metric(
        generated.double(),
        real.double(),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=1000,
        save_cpu_ram=True,  # a strip of the distances at a time
        verbose=False,
    )
    return result[metric_prc.KEY_METRIC_PRECISION], result[metric_prc.KEY_METRIC_RECALL]
