"""A sample's random numbers follow (seed, position): none repeats, and ranks change nothing."""

from itertools import islice

import pytest
import torch

from tests.dataset.latent_files import write_cache
from wfimagevae.dataset import LatentDataset, PointDataset, TrainLoader
from wfimagevae.engine.seeding import sample_noise

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")


def draw(dataset, ranks, num_workers, batch_size, steps):
    """Batches of all ranks in the order of their positions."""
    loaders = [TrainLoader(dataset, batch_size, r, ranks, num_workers) for r in range(ranks)]
    drawn = [list(islice(loader, steps)) for loader in loaders]
    for loader in loaders:
        loader.close()
    return [batch for step in zip(*drawn, strict=True) for batch in step]


def distinct(tensors):
    return len(torch.unique(torch.cat(tensors).flatten(1), dim=0))


def test_a_thousand_draws_have_a_thousand_noises():
    """4 workers a rank, 2 ranks, 2 epochs of 500."""
    batches = draw(PointDataset("moons", num_items=500), 2, 4, batch_size=25, steps=20)
    noise = [sample_noise(1234, batch["position"], (4,), CPU) for batch in batches]
    assert distinct(noise) == 1000
    assert distinct([batch["point"] for batch in batches]) == 1000
    alone = sample_noise(1234, list(range(1000)), (4,), CPU)
    assert torch.equal(torch.cat(noise), alone)


def test_a_thousand_draws_have_a_thousand_posterior_noises(tmp_path):
    """All latents have the same posterior, N(0, 1): what differs is the draw."""
    write_cache(tmp_path, [{"moments": torch.zeros(250, 4, 2, 2)} for _ in range(2)])
    dataset = LatentDataset(tmp_path)
    two = draw(dataset, 2, 4, batch_size=25, steps=20)
    assert distinct([batch["latent"] for batch in two]) == 1000
    one = draw(dataset, 1, 0, batch_size=50, steps=20)
    latents = [torch.cat([batch["latent"] for batch in batches]) for batches in (one, two)]
    assert torch.equal(*latents)
    noise = sample_noise(dataset.seed, list(range(1000)), dataset.sample_shape, CPU)
    assert distinct([latents[0], noise]) == 2000  # nor is it the path's noise
