"""Distances between sets of features: FID, rFID, KID, precision and recall."""

import torch
from torch import Tensor

# KID's subsets are drawn by this seed; precision and recall look at so many neighbours.
KID_SEED = 2020
NEIGHBOURS = 3
_CHUNK_ELEMENTS = 2**24  # of one converted chunk and of one block of distances
_MAX_ROWS = 4096


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


@torch.no_grad()
def energy_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased energy distance, 2 E|x - y| - E|x - x'| - E|y - y'|, x' and y' independent copies.

    Its expectation is 0 for equal distributions and positive otherwise, whatever the sizes of the
    sets, so a value may be negative. Distances are Euclidean between whole samples, in the samples'
    units: the value grows with the range and the number of elements.

    Samples are (N, ...) and (M, ...), of any number type, and compared in float64 on the device of
    ``x``. Fewer than two, shapes that differ, or values that are not finite are a ValueError.

    Source: Szekely and Rizzo 2013, "Energy statistics", equation 6.1, with U-statistics.
    """
    for name, samples in (("first", x), ("second", y)):
        if len(samples) < 2:
            raise ValueError(f"energy distance needs 2 samples, the {name} set has {len(samples)}")
        if not samples.isfinite().all():
            raise ValueError(f"the {name} set of samples holds values that are not finite")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"samples of one shape are compared, got {tuple(x.shape[1:])} and {tuple(y.shape[1:])}"
        )
    x, y = x.flatten(1), y.to(x.device).flatten(1)
    # Distances do not change, but far from the origin they would lose digits.
    centre = x[0].double()  # (D,)
    between = _distance_sum(x, y, centre) / (len(x) * len(y))
    within_x = _distance_sum(x, x, centre) / (len(x) * (len(x) - 1))
    within_y = _distance_sum(y, y, centre) / (len(y) * (len(y) - 1))
    return float(2 * between - within_x - within_y)


def _distance_sum(x: Tensor, y: Tensor, centre: Tensor) -> Tensor:
    """Sum of all |x_i - y_j|; of a set with itself, each i = j counts exactly 0."""
    rows = min(_MAX_ROWS, max(1, _CHUNK_ELEMENTS // x.shape[1]))
    total = centre.new_zeros(())
    for i, a in enumerate(x.split(rows)):
        a = a.double() - centre  # (rows, D)
        for j, b in enumerate(y.split(rows)):
            distances = torch.cdist(a, b.double() - centre)  # (rows, rows)
            if x is y and i == j:
                distances.fill_diagonal_(0)
            total += distances.sum()
    return total
