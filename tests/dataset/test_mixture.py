import pytest
import torch

from tests.dataset.conftest import draw
from tests.dataset.reading import read_by
from tests.refusals import refused
from wfimagevae.dataset import (
    CropDataset,
    CropRules,
    Mixture,
    TrainData,
    TrainImageDataset,
    TrainLoader,
)
from wfimagevae.dataset.text.captions import CaptionTable


@pytest.fixture
def sets(flat_folder):
    """Maker of data sets of so many images each, of different gray values."""

    def make(*counts, **options):
        return [
            TrainImageDataset(flat_folder(count, name=f"set{i}"), 8, **options)
            for i, count in enumerate(counts)
        ]

    return make


class Counted(TrainData):
    """Stands for a data set of which nothing is read."""

    data_key, sample_shape, class_names, seed = "point", (2,), [], 1

    def __len__(self):
        return 9


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("weights", [(1, 1), (0.7, 0.2, 0.1), (5, 3, 3, 1), (1e-3, 1)])
def test_every_stretch_has_its_share_and_each_set_goes_on_in_turn(weights, block):
    mixture = Mixture([Counted() for _ in weights], weights, block)
    dealt = [mixture.place(position) for position in range(2000 * block)]
    for number, weight in enumerate(weights):
        mine = [place for owner, place in dealt if owner == number]
        assert mine == list(range(len(mine)))  # no position of a set is left out or comes twice
        share = weight / sum(weights)
        for blocks in (10, 100, 777, 2000):
            owned = sum(owner == number for owner, _ in dealt[: blocks * block]) / block
            assert abs(owned - blocks * share) < len(weights)
    assert Mixture(mixture.parts, weights, block).place(1999 * block) == dealt[1999 * block]
    assert mixture.place(10**12)[1] > 10**8  # found at once
    owners = [owner for owner, _ in dealt]
    assert all(len(set(owners[b * block : (b + 1) * block])) == 1 for b in range(2000))


def test_without_weights_every_sample_comes_once_an_epoch(sets):
    mixture = Mixture(sets(7, 2, 4))
    assert len(mixture) == 13
    for epoch in range(3):
        dealt = [mixture.place(13 * epoch + i) for i in range(13)]
        assert [sum(owner == i for owner, _ in dealt) for i in range(3)] == [7, 2, 4]
        images = {(o, mixture.parts[o]._order.index(p)) for o, p in dealt}
        assert len(images) == 13


def test_batches_mix_the_sets_in_the_order_of_positions(sets):
    parts = sets(5, 3)
    mixture = Mixture(parts, (2, 1))
    batch = mixture.read_batch(list(range(40, 49)))
    assert batch["pixels"].shape == (9, 8, 8, 3)
    for row, position in enumerate(range(40, 49)):
        owner, place = mixture.place(position)
        assert torch.equal(batch["pixels"][row], parts[owner].read_batch([place])["pixels"][0])


def test_two_ranks_with_workers_read_what_one_process_reads(sets):
    mixture = Mixture(sets(5, 3), (2, 1))
    whole = draw(TrainLoader(mixture, 4, read_by(0)), 6)
    ranks = [TrainLoader(mixture, 2, read_by(2), rank=r, world_size=2) for r in range(2)]
    shares = [draw(loader, 6) for loader in ranks]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([part["image"] for part in parts]), batch["image"])


def test_other_weights_are_refused_on_resume(sets):
    parts = sets(5, 3)
    state = TrainLoader(Mixture(parts, (2, 1)), 2, read_by(0)).state_dict()
    even = TrainLoader(Mixture(parts, (1, 1)), 2, read_by(0))
    message = r"data_weights was \[2.0, 1.0\], is \[1.0, 1.0\]"
    refused(message, even.load_state_dict, state)
    again = TrainLoader(Mixture(parts, (2, 1)), 2, read_by(0))
    again.load_state_dict(state | {"position": 6})
    assert next(again)["position"] == [6, 7]


def test_set_without_captions_goes_with_one_that_has_them(sets):
    plain, captioned = sets(3, 3)
    table = CaptionTable([["a"], ["b"], ["c"]])
    captioned = CropDataset(captioned.images, CropRules(8), captions=table)
    mixture = Mixture([plain, captioned], (1, 1))
    assert mixture.has_captions
    batch = mixture.read_batch(list(range(6)))
    owners = [mixture.place(p)[0] for p in range(6)]
    assert all((text != "") == bool(o) for text, o in zip(batch["caption"], owners, strict=True))


def test_sets_that_do_not_go_together_are_refused(sets):
    parts = sets(3, 3)
    refused("same sample_shape", Mixture, [parts[0], CropDataset(parts[1].images, CropRules(6))])
    for few in ((1, 0), (1, -1), (1, 1e-7), (1e-7, 1)):  # would never be drawn
        refused("at least a millionth", Mixture, parts, few)
