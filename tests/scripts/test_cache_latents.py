import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import torch

from scripts import cache_latents
from tests.images import write_images
from tests.refusals import refused
from tests.scripts.conftest import ROOT
from wfimagevae.dataset import LatentDataset
from wfimagevae.dataset.images.decode import open_rgb
from wfimagevae.dataset.images.transforms import resized_center_crop
from wfimagevae.dataset.protocol import to_signed_unit
from wfimagevae.model import WFVAE2ImageModel


def flags(photos, output, *more):
    words = ("--image_path", photos, "--output_dir", output, "--resolution", 32)
    return [*map(str, (*words, "--device", "cpu", "--num_workers", 0, *more))]


def shards(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "latents.json"}


def without_source(folder):
    return json.loads((folder / "latents.json").read_text()) | {"images": None, "vae": None}


def test_our_model_from_either_flag_gives_one_cache(tiny_vae, photos, tmp_path, capsys):
    flagged = flags(photos, tmp_path / "a", "--from_pretrained", tiny_vae, "--flip")
    assert cache_latents.main(flagged) == 0
    assert "5 latents of 4x4x4, 1 shards" in capsys.readouterr().out
    spec = flags(photos, tmp_path / "b", "--vae", f"WFVAE2Image:{tiny_vae}", "--flip")
    assert cache_latents.main(spec) == 0
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    dataset = LatentDataset(tmp_path / "a")
    assert dataset.sample_shape == (4, 4, 4) and dataset.record["dtype"] == "fp16"
    files = [open_rgb(str(photos / text["name"])) for text in dataset.texts(0)]
    pixels = np.stack([resized_center_crop(file, 32) for file in files])
    images = to_signed_unit(torch.from_numpy(pixels))
    with torch.no_grad():
        mean = WFVAE2ImageModel.from_pretrained(tiny_vae).encode(images).latent_dist.mean
    stored = dataset._stored(0, "moments")[:, :4]
    torch.testing.assert_close(stored.float(), mean, atol=2e-3, rtol=1e-3)


def test_diffusers_model_brings_its_own_normalisation(diffusers_vae, photos, tmp_path, capsys):
    spec = f"diffusers:{diffusers_vae}"
    assert cache_latents.main(flags(photos, tmp_path, "--vae", spec, "--posterior", "mode")) == 0
    assert "shift and scale from the VAE" in capsys.readouterr().out
    dataset = LatentDataset(tmp_path)
    assert (dataset.shift, dataset.scale) == ([0.25] * 3, [0.5] * 3)
    assert dataset.record["vae"]["class"] == "AutoencoderKL"
    assert dataset.sample_shape == (3, 8, 8)


def test_killed_run_goes_on_where_it_was(tiny_vae, tmp_path):
    folder = write_images(tmp_path / "many", 80, size=32)
    options = ("--from_pretrained", tiny_vae, "--shard_size", 2, "--batch_size", 1)
    output = tmp_path / "cut"
    script = str(ROOT / "scripts" / "cache_latents.py")
    command = [sys.executable, script, *flags(folder, output, *options)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(list(output.glob("*.safetensors"))) < 3:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = sorted(output.glob("*.safetensors"))
    assert 3 <= len(done) < 40
    stamps = {path: path.stat().st_mtime_ns for path in done}
    assert cache_latents.main(flags(folder, output, *options)) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == stamps
    cache_latents.main(flags(folder, tmp_path / "whole", *options))
    assert shards(output) == shards(tmp_path / "whole")
    assert without_source(output) == without_source(tmp_path / "whole")


def test_no_or_two_models_and_images_outside_their_classes_are_refused(tiny_vae, photos, tmp_path):
    for words, more in (
        ("give either --vae", ()),
        ("give either --vae", ("--vae", "WFVAE2Image:x", "--from_pretrained", "y")),
        (r"four\.bmp", ("--from_pretrained", tiny_vae, "--labels", "folder")),
    ):
        refused(words, cache_latents.main, flags(photos, tmp_path, *more))
    assert not any(tmp_path.glob("*.safetensors"))
