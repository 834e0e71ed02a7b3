"""Two processes write and measure what one does, with relative paths, and one of them tells."""

import contextlib
import importlib
import json

import numpy as np
import pytest

from tests.scripts.flow_exports import pictures


@pytest.fixture(scope="module")
def folder(
    tiny_vae, photos, blurred, pixels, text_flow, alexnet_weights, run_script, tmp_path_factory
):
    """``one`` and ``two`` processes' files; all commands share a start, which takes longest."""
    folder = tmp_path_factory.mktemp("processes")
    vae, cpu = f"--from_pretrained {tiny_vae}", "--device cpu --num_workers 0"
    images = f"--real_image_dir photos --resolution 48 {cpu}"
    few = "--num_images 3 --steps 2 --sampler euler --device cpu"
    pairs = f"--metric psnr ssim lpips --lpips_net alex --lpips_weights {alexnet_weights}"
    sets = "--dataset shapes --resolution 16 --metric energy_distance --energy_samples 9"
    commands = {
        "cache": f"cache_latents --image_path photos --output_dir cache {vae} --resolution 32 "
        f"--shard_size 1 {cpu}",
        "shards": "make_webdataset --image_path photos --output_dir shards --samples_per_shard 2",
        "stats": f"latent_stats {vae} {images} --output_json stats.json",
        "recon": f"recon_image {vae} {images} --generated_image_dir recon",
        "pairs": f"eval_image {images} --generated_image_dir blurred {pairs} --batch_size 2 "
        "--output_json pairs.json",
        "sets": f"eval_generation --from_pretrained {pixels} {sets} {few} --num_images 11 "
        "--label_sampling random --batch_size 4 --output_json sets.json",
        "npz": f"generate --from_pretrained {pixels} {few} --npz out/all.npz",
        "samples": f"generate --from_pretrained {text_flow} {few} --guidance_scale 2 "
        "--prompt circle star --output_dir samples",
    }
    split = {name: command.split() for name, command in commands.items()}
    calls = {name: (script, words) for name, (script, *words) in split.items()}
    for place in ("one", "two"):
        (folder / place).mkdir()
        (folder / place / "photos").symlink_to(photos)
        (folder / place / "blurred").symlink_to(blurred)
    with contextlib.chdir(folder / "one"):
        for script, words in calls.values():
            assert not importlib.import_module(f"scripts.{script}").main(words)
    (folder / "two" / "calls.json").write_text(json.dumps(calls))
    driver = "../tests/scripts/each_process.py"
    run_script(driver, "calls.json", cwd=folder / "two", processes=2)
    return folder


def both(folder, name):
    return [json.loads((folder / place / name).read_text()) for place in ("one", "two")]


def test_one_process_tells(folder):
    for name, line in (
        ("recon", "reconstructed 5 of 5 images into recon"),
        ("pairs", "| psnr"),
        ("sets", "| sampler"),
        ("npz", "3 images, euler, 2 steps"),
    ):
        assert (folder / "two" / f"{name}-0.txt").read_text().count(line) == 1
        assert (folder / "two" / f"{name}-1.txt").read_text() == ""


@pytest.mark.parametrize(("name", "count"), [("cache", 11), ("shards", 7)])
def test_caches_and_shards_are_the_same_to_the_byte(folder, name, count):
    one, two = (
        {
            path.name: path.read_bytes().replace(f"/{place}/photos".encode(), b"photos")
            for path in (folder / place / name).iterdir()
        }
        for place in ("one", "two")
    )
    assert len(one) == count and one == two


def test_pictures_differ_by_rounding_at_most(folder):
    arrays = [np.load(folder / place / "out" / "all.npz") for place in ("one", "two")]
    assert arrays[1]["arr_1"].tolist() == [0, 1, 0]
    assert [p.name for p in (folder / "two" / "out").iterdir()] == ["all.npz"]
    one, two = (array["arr_0"].astype(int) for array in arrays)
    assert abs(one - two).max() <= 1
    for kind in ("recon", "samples"):
        one, two = (pictures(folder / place / kind) for place in ("one", "two"))
        assert list(one) == list(two)
        assert all(abs(one[name] - two[name]).max() <= 1 for name in one)
    assert len(list((folder / "two" / "samples-records").glob("*.json"))) == 7
    assert len(list((folder / "two" / "recon").rglob("*.png"))) == 5


def test_figures_are_the_same(folder):
    one, two = both(folder, "stats.json")
    np.testing.assert_allclose(one["mean"], two["mean"], atol=1e-6)
    np.testing.assert_allclose(one["std"], two["std"], rtol=1e-6)
    one, two = both(folder, "pairs.json")
    assert one["protocol_hash"] == two["protocol_hash"]
    for metric, tolerance in (("psnr", 1e-9), ("ssim", 1e-9), ("lpips", 1e-4)):
        assert 0 < one[metric] == pytest.approx(two[metric], rel=tolerance)
    (one,), (two,) = (content["results"] for content in both(folder, "sets.json"))
    assert one["energy_distance"] == pytest.approx(two["energy_distance"], rel=1e-3)
    assert one["protocol_hash"] == two["protocol_hash"] and two["sampling"]["nfe"] == 2
