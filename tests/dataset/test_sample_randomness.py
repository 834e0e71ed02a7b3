import torch

from tests.dataset.latent_files import write_cache
from wfimagevae.dataset import LatentDataset
from wfimagevae.engine.seeding import sample_noise


def test_a_thousand_draws_have_a_thousand_posterior_noises_that_are_not_the_paths(tmp_path):
    """All latents have the same posterior, N(0, 1): what differs is the draw."""
    write_cache(tmp_path, [{"moments": torch.zeros(250, 4, 2, 2)} for _ in range(2)])
    dataset, positions = LatentDataset(tmp_path), list(range(1000))
    latents = dataset.read_batch(positions)["latent"]
    noise = sample_noise(dataset.seed, positions, dataset.sample_shape, torch.device("cpu"))
    assert len(torch.unique(torch.cat([latents, noise]).flatten(1), dim=0)) == 2000
