import numpy as np
import pytest
from scipy import stats

from tests.dataset.latent_files import numbered, write_cache
from tests.dataset.reading import read_by
from wfimagevae.dataset import LatentDataset, Mixture, ShapesDataset, TrainLoader
from wfimagevae.dataset import order as orders
from wfimagevae.dataset.images.buckets import BucketOrder
from wfimagevae.dataset.images.crop_dataset import CropDataset, CropRules
from wfimagevae.dataset.order import ShuffledOrder, stable_seed


def test_every_epoch_shows_every_item_once_in_a_new_order_any_as_often_first():
    order = ShuffledOrder(101, seed=7)
    epochs = [[order.index(101 * epoch + i) for i in range(101)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(101)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [ShuffledOrder(101, seed=8).index(i) for i in range(101)] != epochs[0]
    order = ShuffledOrder(4, seed=0)
    first = [order.index(4 * epoch) for epoch in range(800)]
    assert all(150 < first.count(item) < 250 for item in range(4))


def test_order_is_the_same_on_every_machine_and_version():
    # Written down once: a run must resume after an upgrade of NumPy or Python.
    order = ShuffledOrder(8, seed=1234)
    assert [order.index(i) for i in range(16)] == [7, 4, 0, 6, 3, 2, 1, 5, 5, 1, 6, 3, 7, 0, 4, 2]
    assert stable_seed(1234, "epoch", 0) == 224461368355036550469407277363976925034
    large = ShuffledOrder(10**8, seed=1234)
    first = [23511756, 65174615, 53922533, 37039789, 6030871]
    assert [large.index(i) for i in (0, 1, 2, 10**8, 10**8 + 1)] == first


@pytest.fixture
def no_arrays(monkeypatch):
    monkeypatch.setattr(orders, "LARGEST_ARRAY", 0)
    monkeypatch.setattr(orders, "shuffled", None)


@pytest.mark.parametrize(
    "sizes", [range(1, 201), [2**k + d for k in range(8, 14) for d in (-1, 0, 1)]]
)
def test_an_order_without_an_array_shows_every_item_once_an_epoch(no_arrays, sizes):
    for size in sizes:
        order = ShuffledOrder(size, seed=size)
        epochs = [[order.index(size * epoch + i) for i in range(size)] for epoch in (0, 1, 9)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert size < 20 or len({tuple(epoch) for epoch in epochs}) == 3


def test_items_of_an_order_without_an_array_are_independent(no_arrays):
    # Which blocks of items stand at pairs of positions, in one epoch.
    for size, distance in [(2**14, 1), (2**14, 2**7), (10_007, 1), (2**14 + 1, 4999)]:
        order = ShuffledOrder(size, seed=1)
        blocks = np.array([order.index(i) for i in range(size)]) * 16 // size
        pairs = np.bincount(16 * blocks + np.roll(blocks, distance), minlength=256)
        spread = ((pairs - size / 256) ** 2 / (size / 256)).sum()
        assert 1e-4 < stats.chi2.sf(spread, 15 * 15) < 1 - 1e-4
    # Which two items stand at two positions, over epochs.
    order, pairs = ShuffledOrder(23, seed=2), np.zeros((23, 23))
    for epoch in range(8000):
        pairs[order.index(23 * epoch + 4), order.index(23 * epoch + 5)] += 1
    assert not pairs.diagonal().any()
    assert stats.chisquare(pairs[~np.eye(23, dtype=bool)]).pvalue > 1e-4


def shapes(tmp_path):
    return ShapesDataset(8, num_items=9)


def latents(tmp_path):
    return LatentDataset(write_cache(tmp_path / "cache", [{"moments": numbered(0, 9)}]))


def buckets(tmp_path):
    members = {(8, 8): np.arange(3), (16, 8): np.arange(3, 9)}
    order = BucketOrder(members, 3, 1, lambda numbers: ShuffledOrder(len(numbers), 1))
    return CropDataset(range(9), CropRules(8), order=order)


def mixture(tmp_path):
    return Mixture([ShapesDataset(8, num_items=2), ShapesDataset(8, num_items=7)])


@pytest.mark.parametrize("build", [shapes, latents, buckets, mixture])
def test_runs_keep_the_order_of_positions_that_they_began_with(monkeypatch, tmp_path, build):
    def positions(data):
        if isinstance(data, Mixture):
            places = map(data.place, range(27))
            return [(part, data.parts[part]._order.index(place)) for part, place in places]
        return list(map(data._order.index, range(27)))

    old = TrainLoader(build(tmp_path), 3, read_by(0)).state_dict()
    before = positions(build(tmp_path))
    monkeypatch.setattr(orders, "LARGEST_ARRAY", 5)  # of the sets of 2, 3, 6, 7 and 9 items
    new = TrainLoader(build(tmp_path), 3, read_by(0))
    now = positions(new.dataset)
    assert now != before and new.state_dict()["order"]["permutation"] == "feistel"
    again, old_again = (TrainLoader(build(tmp_path), 3, read_by(0)) for _ in range(2))
    again.load_state_dict(new.state_dict())
    assert positions(again.dataset) == now
    old_again.load_state_dict(old)
    assert positions(old_again.dataset) == before
    assert old_again.state_dict() == old  # and so does the run after the next


def test_a_data_set_that_grew_smaller_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(orders, "LARGEST_ARRAY", 5)
    state = TrainLoader(ShapesDataset(8, num_items=9), 3, read_by(0)).state_dict()
    TrainLoader(ShapesDataset(8, num_items=4), 3, read_by(0)).load_state_dict(state)
    assert "had 9 images, now there are 4" in caplog.text
