import json
import os
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from tests.dataset.conftest import draw
from tests.dataset.latent_files import numbered, write_cache
from tests.dataset.reading import read_by
from tests.refusals import refused
from wfimagevae.dataset import DataError, LatentDataset, TrainLoader
from wfimagevae.engine.seeding import sample_noise


@pytest.fixture
def cache(tmp_path):
    """Seven latents of hardly any variance in two shards; each is its number."""
    shards = [{"moments": numbered(0, 4)}, {"moments": numbered(4, 3)}]
    return write_cache(tmp_path / "cache", shards)


def numbers(batch):
    latent = batch["latent"]
    assert (latent.flatten(1).std(1) < 1e-5).all()
    return latent[:, 0, 0, 0].round().int().tolist()


def test_every_latent_is_seen_once_per_epoch(cache):
    dataset = LatentDataset(cache)
    batch = dataset.read_batch(list(range(21)))
    assert batch["latent"].shape == (21, *dataset.sample_shape) == (21, 2, 3, 3)
    assert batch["latent"].dtype == torch.float32 and "label" not in batch
    epochs = [numbers(batch)[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and epochs[0] != epochs[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_types_read_back(tmp_path, dtype):
    moments = (torch.randn(5, 4, 3, 3) - torch.tensor([0, 0, 40, 40]).view(4, 1, 1)).to(dtype)
    dataset = LatentDataset(write_cache(tmp_path, [{"moments": moments}]))
    latents = dataset.read_batch(list(range(5)))["latent"]
    order = [dataset._order.index(p) for p in range(5)]
    torch.testing.assert_close(latents, moments[order, :2].float(), atol=2e-6, rtol=0)


def test_posterior_is_drawn_anew_at_every_position_with_its_own_moments(tmp_path):
    moments = torch.stack([torch.full((2, 30, 30), 3.0), torch.full((2, 30, 30), np.log(4.0))])
    shard = {"moments": moments.reshape(1, 4, 30, 30)}
    dataset = LatentDataset(write_cache(tmp_path, [shard]))
    draws = dataset.read_batch(list(range(20)))["latent"]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 20
    assert stats.kstest(((draws - 3) / 2).flatten().numpy(), "norm").pvalue > 1e-3
    again = LatentDataset(tmp_path).read_batch([7])["latent"]
    assert torch.equal(again[0], draws[7])
    assert not torch.equal(LatentDataset(tmp_path, seed=5).read_batch([7])["latent"], again)


def test_a_thousand_draws_have_a_thousand_posterior_noises_that_are_not_the_paths(tmp_path):
    """All latents have the same posterior, N(0, 1): what differs is the draw."""
    write_cache(tmp_path, [{"moments": torch.zeros(250, 4, 2, 2)} for _ in range(2)])
    dataset, positions = LatentDataset(tmp_path), list(range(1000))
    latents = dataset.read_batch(positions)["latent"]
    noise = sample_noise(dataset.seed, positions, dataset.sample_shape, torch.device("cpu"))
    assert len(torch.unique(torch.cat([latents, noise]).flatten(1), dim=0)) == 2000


def test_latents_are_normalised_channel_by_channel(tmp_path):
    shard = {"latents": torch.randn(400, 2, 4, 4) * torch.tensor([3.0, 0.5]).view(2, 1, 1) + 7}
    write_cache(tmp_path, [shard], posterior="mode", shift=[7.0, 7.0], scale=[1 / 3, 2.0])
    latents = LatentDataset(tmp_path).read_batch(list(range(400)))["latent"]
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(2), atol=0.05, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(2), atol=0.05, rtol=0)


def test_mirrored_copy_stands_in_half_of_the_time(tmp_path):
    shard = {"moments": numbered(0, 4), "moments_flipped": numbered(100, 4)}
    write_cache(tmp_path, [shard], flip=True)
    found = numbers(LatentDataset(tmp_path).read_batch(list(range(400))))
    flipped = [number >= 100 for number in found]
    assert 150 < sum(flipped) < 250 and {n % 100 for n in found} == {0, 1, 2, 3}
    assert max(numbers(LatentDataset(tmp_path, augment=False).read_batch(list(range(40))))) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_labels_follow_their_latents_and_an_empty_shard_is_passed_over(tmp_path, num_workers):
    shards = [
        {"moments": numbered(first, count), "labels": torch.arange(first, first + count) % 2}
        for first, count in ((0, 4), (0, 0), (4, 3))
    ]
    dataset = LatentDataset(write_cache(tmp_path, shards, class_names=["even", "odd"]))
    (batch,) = draw(TrainLoader(dataset, batch_size=10, options=read_by(num_workers)))
    assert batch["label"].tolist() == [number % 2 for number in numbers(batch)]
    assert set(numbers(batch)) == set(range(7))
    assert dataset.num_classes == 2 and batch["position"] == list(range(10))


def test_dataset_travels_without_its_files(cache):
    dataset = LatentDataset(cache)
    before = dataset.read_batch([3])["latent"]
    sent = pickle.dumps(dataset)
    assert len(sent) < 5000
    assert torch.equal(pickle.loads(sent).read_batch([3])["latent"], before)
    assert dataset.texts(1)[2] == {"name": "1/2.png", "caption": None}


def test_held_out_latents_are_normalised_as_the_training_latents(cache, tmp_path):
    other = write_cache(tmp_path / "other", [{"moments": numbered(8, 1)}])
    facts = {"shift": [2, 2], "scale": [3, 3]}
    train = write_cache(tmp_path / "train", [{"moments": numbered(0, 4)}], **facts)
    like = LatentDataset(train).record
    assert numbers(LatentDataset(other, like=like).read_batch([0])) == [(8 - 2) * 3]


def test_latents_of_another_kind_are_refused(cache, tmp_path):
    shard = {"moments": numbered(0, 1), "labels": torch.tensor([0])}
    for facts, message in (
        ({"resolution": 64}, "has resolution 64, the training latents 32"),
        (
            {"vae": {"source": "diffusers:x", "fingerprint": "a" * 64}},
            "has VAE weights a{12}, the",
        ),
        ({"class_names": ["a"]}, r"has class_names \['a'\], the training latents \[\]"),
    ):
        other = write_cache(tmp_path / "other", [shard], **facts)
        refused(message, LatentDataset, other, error=DataError, like=LatentDataset(cache).record)
    shard = {"moments": numbered(0, 2), "labels": torch.tensor([0, 2])}
    third = write_cache(tmp_path / "third", [shard], class_names=["a", "b"])
    refused("label 2 is out of range, use 0 to 1", LatentDataset, third, error=DataError)
    fourth = write_cache(tmp_path / "fourth", [{"moments": numbered(0, 0)}])
    refused("fourth holds no latents", LatentDataset, fourth, error=DataError)


def test_record_that_does_not_fit_is_refused(cache):
    path = cache / "latents.json"
    record = json.loads(path.read_text())
    for content, message in (
        (record | {"version": 2}, "of version 2"),
        (record | {"complete": False}, "has not finished"),
        (record | {"plan": "9"}, r"00000\.safetensors belongs to another cache"),
        (record | {"latent_shape": [4, 3, 3]}, "expected"),
        (record | {"flip": True}, r"moments_flipped has shape None"),
        (record | {"samples": [4, 3, 1]}, r"00002\.safetensors is missing"),
        ({"version": 1, "complete": True}, r"latents\.json: plan: Field required"),
    ):
        path.write_text(json.dumps(content))
        refused(message, LatentDataset, cache, error=DataError)
    path.unlink()
    refused("cache_latents", LatentDataset, cache, error=DataError)


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_truncated_shard_is_named_at_once(cache, size):
    path = cache / "latents-00001.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(r"00001\.safetensors is truncated", LatentDataset, cache, error=DataError)


def test_shard_that_is_cut_short_in_training_is_named_and_kills_no_process(tmp_path):
    cache = write_cache(tmp_path, [{"moments": numbered(0, 4, size=64)}])
    dataset = LatentDataset(cache)
    dataset.read_batch([0])
    os.truncate(cache / "latents-00000.safetensors", 5000)
    refused("was cut short since training", dataset.read_batch, [0, 1, 2, 3], error=DataError)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nan_is_named_in_one_line_before_the_first_batch_or_where_it_comes_later(
    cache, num_workers
):
    dataset = LatentDataset(cache)
    bad = numbered(4, 3)
    bad[2, 0, 1, 1] = torch.nan
    write_cache(cache, [{"moments": numbered(0, 4)}, {"moments": bad}])
    message = r"^.*00001\.safetensors: sample 2 of moments is not finite.*\Z"  # one line
    refused(message, LatentDataset, cache, error=DataError)
    refused(message, next, TrainLoader(dataset, 7, read_by(num_workers)), error=DataError)
