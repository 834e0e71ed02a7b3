import numpy as np
import pytest
import torch

from wfimagevae.eval.generation_metrics import (
    SetMetricOptions,
    frechet_distance,
    kernel_distance,
    precision_recall,
    subset_size,
)


def normal(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def with_moments(mean, covariance, count=200):
    """Features whose sample mean and covariance are exactly these."""
    raw = normal(count, len(mean)).double()
    raw -= raw.mean(0)
    root = torch.linalg.cholesky(raw.T.cov())
    white = torch.linalg.solve_triangular(root, raw.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_fid_of_gaussians_with_one_eigenbasis_is_the_closed_form():
    """There it is |m1 - m2|^2 + sum (s1 - s2)^2 over the principal axes."""
    basis, _ = torch.linalg.qr(normal(4, 4).double())
    s1, s2 = torch.tensor([1.0, 2, 0.5, 3]).double(), torch.tensor([2.0, 1, 0.5, 1]).double()
    m1, m2 = torch.zeros(4).double(), torch.tensor([0.5, 0, -1, 0]).double()
    real = with_moments(m1, basis @ (s1**2).diag() @ basis.T)
    generated = with_moments(m2, basis @ (s2**2).diag() @ basis.T)
    expected = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-9)


def test_fid_with_fewer_samples_than_features_is_right():
    """Singular covariances: tr sqrt(C1 C2) is the nuclear norm of the centred features' product."""
    real, generated = normal(20, 64), 0.7 * normal(30, 64, seed=1) + 0.3
    a, b = real.double().numpy(), generated.double().numpy()
    product = (a - a.mean(0)) @ (b - b.mean(0)).T / np.sqrt(19 * 29)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.var(a, 0, ddof=1).sum()
    expected += np.var(b, 0, ddof=1).sum() - 2 * np.linalg.norm(product, "nuc")
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-5)


def test_identical_sets_have_fid_zero_and_full_precision_and_recall():
    features = normal(50, 32)
    shuffled = features[torch.randperm(50)]
    assert abs(frechet_distance(features, shuffled)) < 1e-4
    assert precision_recall(features, shuffled) == (1.0, 1.0)


def test_kid_of_whole_sets_is_the_unbiased_mmd():
    real, generated = normal(12, 5), normal(12, 5, seed=1) + 0.5
    k = lambda a, b: (a @ b.T / 5 + 1) ** 3  # noqa: E731
    x, y = real.double(), generated.double()
    kxx, kyy = k(x, x).fill_diagonal_(0), k(y, y).fill_diagonal_(0)
    expected = (kxx.sum() + kyy.sum()) / (12 * 11) - 2 * k(x, y).mean()
    mean, std = kernel_distance(real, generated, SetMetricOptions(kid_subset_size=1000))
    assert mean == pytest.approx(float(expected), rel=1e-9)
    assert std == pytest.approx(0, abs=1e-12)


def test_kid_depends_on_its_own_seed_alone():
    real, generated = normal(60, 5), normal(40, 5, seed=1)
    options = SetMetricOptions(kid_subset_size=20, kid_num_subsets=10)
    first = kernel_distance(real, generated, options)
    torch.manual_seed(5)
    np.random.seed(5)
    assert kernel_distance(real, generated, options) == first
    other = SetMetricOptions(kid_subset_size=20, kid_num_subsets=10, kid_seed=1)
    assert kernel_distance(real, generated, other) != first
    assert subset_size(SetMetricOptions(), 60, 40) == 40


def test_precision_and_recall_of_a_line_are_as_counted_by_hand():
    real = torch.tensor([[0.0], [1], [2], [3], [100], [101], [102], [103]])
    generated = torch.tensor([[0.5], [1.5], [2.5], [3.5], [50]])
    # Among the real a third neighbour is 2 or 3 away: 50 is near none. Among the generated it is 3
    # or 2 away, but 48.5 from 50 (1.5 to 98.5), so 100 to 103 are near none, 0 to 3 near some.
    assert precision_recall(real, generated, neighbours=3) == (pytest.approx(4 / 5), 0.5)


def test_dropped_modes_cost_recall_and_invented_ones_precision():
    left, right = normal(40, 8), normal(40, 8, seed=1) + 30
    both = torch.cat([left, right])
    assert precision_recall(both, normal(40, 8, seed=2))[1] <= 0.5
    precision, recall = precision_recall(left, torch.cat([normal(40, 8, seed=2), right]))
    assert precision <= 0.5 < recall


@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (torch.zeros(1, 4), torch.zeros(5, 4), "real set has shape"),
        (torch.zeros(5, 4), torch.zeros(5, 3), "one width"),
        (torch.zeros(5, 4), torch.full((5, 4), torch.inf), "generated set are not finite"),
    ],
)
def test_unusable_features_are_refused(real, generated, message):
    for measure in (frechet_distance, kernel_distance, precision_recall):
        with pytest.raises(ValueError, match=message):
            measure(real, generated)


def test_precision_and_recall_need_more_samples_than_neighbours():
    with pytest.raises(ValueError, match="at least 4 samples"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))
