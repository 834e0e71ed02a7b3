import numpy as np
import pytest
import torch

from wfimagevae.eval.set_metrics import (
    frechet_distance,
    kernel_distance,
    precision_recall,
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


def fid_of_few(a, b):
    """tr sqrt(C1 C2) is the nuclear norm of the product of the centred features."""
    a, b = a.double().numpy(), b.double().numpy()
    root = np.linalg.norm((a - a.mean(0)) @ (b - b.mean(0)).T, "nuc")
    root /= np.sqrt((len(a) - 1) * (len(b) - 1))
    spread = np.var(a, 0, ddof=1).sum() + np.var(b, 0, ddof=1).sum()
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + spread - 2 * root


def test_fid_of_gaussians_with_one_eigenbasis_is_the_closed_form():
    """There it is |m1 - m2|^2 + sum (s1 - s2)^2 over the principal axes."""
    basis, _ = torch.linalg.qr(normal(4, 4).double())
    s1, s2 = torch.tensor([1.0, 2, 0.5, 3]).double(), torch.tensor([2.0, 1, 0.5, 1]).double()
    m1, m2 = torch.zeros(4).double(), torch.tensor([0.5, 0, -1, 0]).double()
    real = with_moments(m1, basis @ (s1**2).diag() @ basis.T)
    generated = with_moments(m2, basis @ (s2**2).diag() @ basis.T)
    expected = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-9)


def test_fid_is_that_of_torch_fidelity_and_right_with_fewer_samples_than_features():
    from torch_fidelity import metric_fid

    real, generated = normal(300, 64), 0.7 * normal(200, 64, seed=1) + 0.3
    moments = [metric_fid.fid_features_to_statistics(x.double()) for x in (real, generated)]
    result = metric_fid.fid_statistics_to_metric(*moments, verbose=False)
    expected = result[metric_fid.KEY_METRIC_FID]
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-9)
    near, far = (frechet_distance(real.double() + x, generated.double() + x) for x in (0, 1e6))
    assert far == pytest.approx(near, rel=1e-6)
    real, generated = normal(20, 64), 0.7 * normal(30, 64, seed=1) + 0.3
    assert frechet_distance(real, generated) == pytest.approx(fid_of_few(real, generated), rel=1e-5)


def test_kid_of_whole_sets_is_the_unbiased_mmd_and_of_parts_follows_its_seed(monkeypatch):
    real, generated = normal(12, 5), normal(12, 5, seed=1) + 0.5
    k = lambda a, b: (a @ b.T / 5 + 1) ** 3  # noqa: E731
    x, y = real.double(), generated.double()
    kxx, kyy = k(x, x).fill_diagonal_(0), k(y, y).fill_diagonal_(0)
    expected = (kxx.sum() + kyy.sum()) / (12 * 11) - 2 * k(x, y).mean()
    mean, std = kernel_distance(real, generated, subset_size=1000)
    assert mean == pytest.approx(float(expected), rel=1e-9)
    assert std == pytest.approx(0, abs=1e-12)
    real, generated = normal(60, 5), normal(40, 5, seed=1)
    first = kernel_distance(real, generated, 20, 10)
    torch.manual_seed(5)
    np.random.seed(5)
    assert kernel_distance(real, generated, 20, 10) == first
    monkeypatch.setattr("wfimagevae.eval.set_metrics.KID_SEED", 1)
    assert kernel_distance(real, generated, 20, 10) != first


def test_precision_and_recall_of_a_line_and_of_lost_or_invented_modes():
    real = torch.tensor([[0.0], [1], [2], [3], [100], [101], [102], [103]])
    generated = torch.tensor([[0.5], [1.5], [2.5], [3.5], [50]])
    # Among the real a third neighbour is 2 or 3 away: 50 is near none. Among the generated it is 3
    # or 2 away, but 48.5 from 50 (1.5 to 98.5), so 100 to 103 are near none, 0 to 3 near some.
    assert precision_recall(real, generated) == (pytest.approx(4 / 5), 0.5)
    left, right = normal(40, 8), normal(40, 8, seed=1) + 30
    both = torch.cat([left, right])
    assert precision_recall(both, normal(40, 8, seed=2))[1] <= 0.5
    precision, recall = precision_recall(left, torch.cat([normal(40, 8, seed=2), right]))
    assert precision <= 0.5 < recall
