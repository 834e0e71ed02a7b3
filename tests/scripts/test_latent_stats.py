import json
import shutil

import numpy as np
import torch

from scripts import latent_stats
from tests.refusals import refused
from tests.scripts.flow_exports import command
from wfimagevae.dataset import ValidImageDataset
from wfimagevae.generate.latent_cache import add_posteriors, mean_and_std
from wfimagevae.model import WFVAE2ImageModel


def run(model, photos, *more):
    place = ("--from_pretrained", model, "--real_image_dir", photos, "--resolution", 48)
    return command(latent_stats, *place, "--num_workers", 0, "--device", "cpu", *more)


def posteriors(model, photos):
    vae = WFVAE2ImageModel.from_pretrained(model)
    images = torch.stack([sample["image"] for sample in ValidImageDataset(photos, 48)])
    with torch.no_grad():
        return vae.encode(images).latent_dist


def test_statistics_are_those_of_the_posteriors_samples(tiny_vae, photos, tmp_path):
    path = tmp_path / "stats.json"
    assert run(tiny_vae, photos, "--batch_size", 2, "--output_json", path) == 0
    content = json.loads(path.read_text())
    posterior = posteriors(tiny_vae, photos)
    mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
    np.testing.assert_allclose(content["mean"], mean.mean((0, 2, 3)), atol=1e-6)
    expected = mean.var((0, 2, 3), correction=0) + variance.mean((0, 2, 3))
    np.testing.assert_allclose(np.square(content["std"]), expected, rtol=1e-6)
    np.testing.assert_allclose(np.multiply(content["scale"], content["std"]), 1)
    assert content["shift"] == content["mean"] and content["count"] == 5


def test_written_statistics_normalise_and_leave_the_decoding_as_it_was(tiny_vae, photos, tmp_path):
    folder = shutil.copytree(tiny_vae, tmp_path / "model")
    before = json.loads((folder / "config.json").read_text())
    assert run(folder, photos, "--write") == 0
    after = json.loads((folder / "config.json").read_text())
    assert {key for key in after if after[key] != before[key]} == {"shift", "scale"}
    assert before.keys() == after.keys()
    vae = WFVAE2ImageModel.from_pretrained(folder)
    posterior = posteriors(folder, photos)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([posterior.sample(generator) for _ in range(1000)])
    normalized = torch.stack([vae.normalize_latents(z) for z in draws])
    dims, means, stds = (0, 1, 3, 4), torch.zeros(4), torch.ones(4)
    torch.testing.assert_close(normalized.mean(dims), means, atol=0.02, rtol=0)
    torch.testing.assert_close(normalized.std(dims), stds, atol=0.02, rtol=0)
    z, normalized = draws[0], normalized[0]
    with torch.no_grad():
        direct = vae.decode(z).sample
        there_and_back = vae.decode(vae.denormalize_latents(normalized)).sample
    torch.testing.assert_close(there_and_back, direct, atol=1e-4, rtol=1e-4)


def test_write_needs_a_folder_without_checkpoints(tiny_vae, photos, tmp_path, monkeypatch):
    refused("save_hf_model", run, tmp_path, photos, "--write")
    shutil.copy(tiny_vae / "config.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    from_file = ["--ckpt_path", "x.ckpt", "--real_image_dir", str(photos), "--write"]
    refused("--write needs --from_pretrained", latent_stats.main, from_file)
    folder = shutil.copytree(tiny_vae, tmp_path / "model")
    weights = WFVAE2ImageModel.from_pretrained(tiny_vae).state_dict()
    torch.save({"state_dict": {"gen_model": weights}}, folder / "checkpoint-1.ckpt")
    before = (folder / "config.json").read_text()
    refused(r"no \.ckpt files", run, folder, photos, "--write")
    assert (folder / "config.json").read_text() == before


def test_latents_that_overflow_are_no_statistics():
    sums, mean = torch.zeros(3, 2), torch.zeros(1, 2, 3, 3)
    mean[0, 1, 0, 0] = torch.inf
    add_posteriors(sums, mean, torch.zeros_like(mean))
    refused("not finite", mean_and_std, sums)
