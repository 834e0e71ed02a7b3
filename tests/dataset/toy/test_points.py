import numpy as np
import pytest
import torch
from scipy import stats

from tests.dataset.reading import read_by
from wfimagevae.dataset import PointDataset, TrainLoader
from wfimagevae.dataset.toy.points import DISTRIBUTIONS


def draw(name, count=20000, **options):
    batch = PointDataset(name, **options).read_batch(list(range(count)))
    return batch["point"].numpy(), batch["label"].numpy() if "label" in batch else None


def mean_distance(x, y):
    return torch.cdist(torch.as_tensor(x), torch.as_tensor(y)).mean().item()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_point_depends_on_seed_and_position_alone(name):
    dataset = PointDataset(name)
    assert len(torch.unique(dataset.read_batch(list(range(1000)))["point"], dim=0)) == 1000
    forward = dataset.read_batch(list(range(50)))["point"]
    again = PointDataset(name, num_items=3)
    for position in (49, 0, 17):
        assert torch.equal(again.read_batch([position])["point"][0], forward[position])
    for other in (PointDataset(name, seed=5), PointDataset(name, split="test")):
        assert not torch.equal(other.read_batch(list(range(50)))["point"], forward)


def test_batch_has_the_public_form():
    dataset = PointDataset("rings")
    batch = next(TrainLoader(dataset, batch_size=6, options=read_by(0)))
    assert batch["point"].shape == (6, *dataset.sample_shape)
    assert batch["point"].dtype == torch.float32 and batch["label"].dtype == torch.int64
    without_modes = next(TrainLoader(PointDataset("checkerboard"), 6, read_by(0)))
    assert set(without_modes) == {"point", "position", "unreadable"}
    assert dataset.num_classes == len(dataset.class_names) == 3


def test_five_modes_are_normal_with_deviation_a_tenth():
    points, mode = draw("five_gaussians")
    counts = np.bincount(mode)
    assert len(counts) == 5 and abs(counts - 4000).max() < 5 * np.sqrt(4000)
    for i in range(5):
        rest = (points[mode == i] - points[mode == i].mean(0)) / 0.1
        assert stats.kstest(rest.ravel(), "norm").pvalue > 1e-3
        assert abs(np.corrcoef(rest.T)[0, 1]) < 0.07


def test_raw_noise_scores_the_energy_distance_of_the_reference():
    """0.320 between N(0, 1) and the mixture; sampling error here is about 0.01."""
    data, _ = draw("five_gaussians", 6000)
    noise = np.random.default_rng(0).standard_normal((6000, 2), np.float32)
    unbiased = 6000 / 5999
    energy = 2 * mean_distance(data, noise)
    energy -= unbiased * (mean_distance(data, data) + mean_distance(noise, noise))
    assert energy == pytest.approx(0.32, abs=0.02)


def test_checkerboard_is_uniform_on_its_eight_squares():
    points, label = draw("checkerboard")
    assert label is None
    cells, counts = np.unique(np.floor(points).astype(int), axis=0, return_counts=True)
    assert len(cells) == 8 and (cells.sum(1) % 2 == cells[0].sum() % 2).all()
    assert points.min() >= -2 and points.max() <= 2
    assert abs(counts - 2500).max() < 5 * np.sqrt(2500)
    assert stats.kstest((points % 1).ravel(), "uniform").pvalue > 1e-3


def test_rings_have_three_radii_and_moons_are_each_others_half_turn():
    points, mode = draw("rings")
    radius = np.hypot(*points.T)
    for i, expected in enumerate((0.6, 1.2, 1.8)):
        assert radius[mode == i].mean() == pytest.approx(expected, abs=0.01)
        assert radius[mode == i].std() == pytest.approx(0.05, abs=0.005)
    points, mode = draw("moons")
    upper, lower = points[mode == 0], -points[mode == 1]
    assert abs(len(upper) - 10000) < 500
    for axis in range(2):
        assert stats.ks_2samp(upper[:, axis], lower[:, axis]).pvalue > 1e-3
    assert upper[:, 1].mean() > 0.3 > -0.3 > -lower[:, 1].mean()
