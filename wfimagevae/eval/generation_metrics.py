"""Distances between sets of features: FID, KID, precision and recall, by torch-fidelity."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SetMetricOptions:
    """What defines the figures besides the features.

    Attributes:
        kid_subset_size: Features in each of KID's subsets; smaller sets lower it to their size.
        kid_num_subsets: How many subsets are drawn.
        kid_seed: Of the subsets.
        neighbours: k of precision and recall.
    """

    kid_subset_size: int = 1000
    kid_num_subsets: int = 100
    kid_seed: int = 2020
    neighbours: int = 3


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """FID of two sets of features, (N, F) and (M, F): between the Gaussians of their moments.

    Statistics are float64; the trace of the root of the product of the covariances is the sum of
    the roots of the product's eigenvalues, so no matrix root is taken, which may fail to converge
    for singular matrices.

    Raises:
        ValueError: fewer than two samples, unlike widths, or values that are not finite.

    Source: Heusel et al. 2017, arXiv:1706.08500, equation 6, by torch-fidelity.
    """
    from torch_fidelity import metric_fid

    _check_features(real, generated, at_least=2)
    statistics = [
        metric_fid.fid_features_to_statistics(features.double().cpu())
        for features in (generated, real)
    ]
    result = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    return result[metric_fid.KEY_METRIC_FID]


def kernel_distance(
    real: Tensor, generated: Tensor, options: SetMetricOptions = SetMetricOptions()
) -> tuple[float, float]:
    """KID: unbiased squared MMD of the cubic kernel (x y / F + 1)^3, over random subsets.

    Args:
        real: Features, (N, F).
        generated: Features, (M, F).
        options: Size, number and seed of the subsets.

    Returns:
        Mean and standard deviation over the subsets; the mean may be negative.

    Raises:
        ValueError: fewer than two samples, unlike widths, or values that are not finite.

    Source: Binkowski et al. 2018, arXiv:1801.01401, by torch-fidelity.
    """
    from torch_fidelity import metric_kid

    _check_features(real, generated, at_least=2)
    result = metric_kid.kid_features_to_metric(
        generated.double(),
        real.double(),
        kid_subsets=options.kid_num_subsets,
        kid_subset_size=subset_size(options, len(real), len(generated)),
        rng_seed=options.kid_seed,
        verbose=False,
    )
    return result[metric_kid.KEY_METRIC_KID_MEAN], result[metric_kid.KEY_METRIC_KID_STD]


def subset_size(options: SetMetricOptions, num_real: int, num_generated: int) -> int:
    """The size of KID's subsets that these sets allow."""
    return min(options.kid_subset_size, num_real, num_generated)


def precision_recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of generated samples near real ones (precision), and of real ones near generated.

    Near means within the distance that a sample of the other set has from its own ``neighbours``-th
    neighbour there.

    Args:
        real: Features, (N, F).
        generated: Features, (M, F).
        neighbours: k.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        ValueError: ``neighbours`` samples or fewer, unlike widths, or values that are not finite.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, by torch-fidelity.
    """
    from torch_fidelity import metric_prc

    _check_features(real, generated, at_least=neighbours + 1)
    result = metric_prc.prc_features_to_metric(
        generated.double(),
        real.double(),
        prc_neighborhood=neighbours,
        prc_batch_size=1000,
        save_cpu_ram=True,  # a strip of the distances at a time
        verbose=False,
    )
    return result[metric_prc.KEY_METRIC_PRECISION], result[metric_prc.KEY_METRIC_RECALL]


def describe_options(options: SetMetricOptions, num_real: int, num_generated: int) -> dict:
    """Options as they took effect, and the sources of the figures, for a protocol."""
    return {
        "fid": "float64 moments, trace by eigenvalues",
        "kid": {
            "kernel": "(x y / F + 1)^3, unbiased",
            "subset_size": subset_size(options, num_real, num_generated),
            "num_subsets": options.kid_num_subsets,
            "seed": options.kid_seed,
        },
        "precision_recall": f"k = {options.neighbours}",
    }


def _check_features(real: Tensor, generated: Tensor, at_least: int) -> None:
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2 or len(features) < at_least:
            raise ValueError(
                f"at least {at_least} samples of features (N, F) are needed, the {name} set has "
                f"shape {tuple(features.shape)}"
            )
        if not torch.isfinite(features).all():
            raise ValueError(f"the features of the {name} set are not finite")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"features of one width are compared, got {real.shape[1]} and {generated.shape[1]}"
        )
