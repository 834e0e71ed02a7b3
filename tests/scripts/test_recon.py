import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from scripts import cache_latents, latent_stats, recon_image, recon_single_image
from tests.refusals import refused
from tests.scripts.flow_exports import command
from wfimagevae.model import WFVAE2ImageModel

EXPECTED = ["a/one.png", "a/two.png", "b/deep/three.png", "b/one.png", "four.png"]


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def recon(model, real, generated, *more):
    images = ("--real_image_dir", real, "--generated_image_dir", generated, "--num_workers", 0)
    return command(recon_image, "--from_pretrained", model, *images, "--device", "cpu", *more)


@pytest.mark.parametrize("options", [(), ("--format", "webp"), ("--tile_size", 32)])
def test_paths_and_native_sizes_are_kept(options, tiny_vae, photos, tmp_path):
    assert recon(tiny_vae, photos, tmp_path / "out", *options) == 0
    suffix = ".webp" if "webp" in options else ".png"
    assert files(tmp_path / "out") == [name.replace(".png", suffix) for name in EXPECTED]
    for name in files(photos):
        with Image.open(photos / name) as original:
            restored = pixels((tmp_path / "out" / name).with_suffix(suffix))
            assert restored.shape == (original.height, original.width, 3)


def test_pixels_are_those_of_the_model(tiny_vae, photos, tmp_path):
    recon(tiny_vae, photos, tmp_path / "out", "--resolution", 48, "--output_origin")
    vae = WFVAE2ImageModel.from_pretrained(tiny_vae)
    origin = pixels(tmp_path / "out" / "origin" / "a" / "two.png")
    x = torch.tensor(origin).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        y = vae(x, sample_posterior=False).sample
    expected = ((y.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    restored = pixels(tmp_path / "out" / "a" / "two.png")
    assert restored.shape == (48, 48, 3)
    assert np.abs(restored - expected).max() <= 1


def test_batches_and_subsets_do_not_change_pixels(tiny_vae, photos, tmp_path):
    sizes = ("--resolution", 56, "--crop_size", 48)
    recon(tiny_vae, photos, tmp_path / "all", *sizes, "--batch_size", 1)
    recon(tiny_vae, photos, tmp_path / "some", *sizes, "--batch_size", 3, "--subset_size", 3)
    some = files(tmp_path / "some")
    assert len(some) == 3
    for name in some:
        a, b = (pixels(tmp_path / folder / name).astype(int) for folder in ("all", "some"))
        assert a.shape == (48, 48, 3) and np.abs(a - b).max() <= 1


def test_unreadable_images_are_listed_and_the_rest_is_read(tiny_vae, photos, tmp_path, capsys):
    (tmp_path / "real").mkdir()
    shutil.copy(photos / "a" / "two.png", tmp_path / "real" / "good.png")
    (tmp_path / "real" / "cut.jpg").write_bytes((photos / "a" / "one.jpg").read_bytes()[:300])
    cpu = ("--from_pretrained", tiny_vae, "--resolution", 32, "--num_workers", 0, "--device", "cpu")
    for script, source, output, words in (
        (recon_image, "--real_image_dir", "--generated_image_dir", "reconstructed 1 of 2"),
        (cache_latents, "--image_path", "--output_dir", "1 images left out"),
        (latent_stats, "--real_image_dir", "--output_json", "| channel |"),
    ):
        target = tmp_path / script.__name__
        assert command(script, source, tmp_path / "real", output, target, *cpu) == 1
        told = capsys.readouterr()
        assert words in told.out and "cut.jpg" in told.err
    assert files(tmp_path / recon_image.__name__) == ["good.png"]


def test_originals_are_never_overwritten(tiny_vae, photos, tmp_path):
    for folder in (photos, photos / "b" / "out"):
        refused("lies inside", recon, tiny_vae, photos, folder)
    (tmp_path / "a").mkdir()
    original = shutil.copy(photos / "a" / "two.png", tmp_path / "a" / "two.png")
    manifest = tmp_path / "all.jsonl"
    manifest.write_text('{"path": "a/two.png"}')
    for folder in (tmp_path, tmp_path / "a"):
        refused(f"holds originals, in {original.parent}", recon, tiny_vae, manifest, folder)
    refused("is a file", recon, tiny_vae, manifest, manifest)
    assert recon(tiny_vae, manifest, tmp_path / "out") == 0
    assert original.read_bytes() == (photos / "a" / "two.png").read_bytes()


def test_a_tile_that_does_not_fit_and_no_or_two_models_are_explained(tiny_vae, photos, tmp_path):
    for size in (8, 36):
        words = f"multiple of 8 and at least 16, got {size}"
        refused(words, recon, tiny_vae, photos, tmp_path, "--tile_size", size)
    base = ["--real_image_dir", str(photos), "--generated_image_dir", str(tmp_path / "out")]
    for source in ([], ["--from_pretrained", "a", "--ckpt_path", "b"]):
        refused("either --from_pretrained or --ckpt_path", recon_image.main, [*base, *source])


def single(model, image, rec, *more):
    files = ("--image_path", image, "--rec_path", rec, "--device", "cpu")
    return command(recon_single_image, "--from_pretrained", model, *files, *more)


def test_single_image_of_odd_size_or_at_a_resolution(tiny_vae, photos, tmp_path, capsys):
    image = photos / "b" / "deep" / "three.webp"
    single(tiny_vae, image, tmp_path / "new" / "rec.png")
    restored = pixels(tmp_path / "new" / "rec.png")
    assert restored.shape == (61, 53, 3)
    with Image.open(image) as original:
        expected = peak_signal_noise_ratio(np.asarray(original.convert("RGB")), restored)
    assert f"PSNR {expected:.2f} dB" in capsys.readouterr().out
    options = ("--resolution", 40, "--mixed_precision", "bf16")
    single(tiny_vae, photos / "a" / "one.jpg", tmp_path / "rec.jpg", *options)
    assert pixels(tmp_path / "rec.jpg").shape == (40, 40, 3)


def test_single_image_errors_name_the_file_and_no_original_is_overwritten(
    tiny_vae, photos, tmp_path
):
    image = shutil.copy(photos / "a" / "two.png", tmp_path / "photo.png")
    for source, target, message in (
        (image, tmp_path / "." / "photo.png", "is the original"),
        (image, tmp_path / "rec.gif", "rec.gif: unknown extension"),
        (tmp_path / "none.png", tmp_path / "rec.png", "none.png: No such file"),
    ):
        refused(message, single, tiny_vae, source, target)
    assert image.read_bytes() == (photos / "a" / "two.png").read_bytes()


def test_a_single_image_from_another_folder_and_a_user_error_in_one_line(
    tiny_vae, photos, tmp_path, run_script
):
    options = ("--image_path", photos / "four.bmp", "--rec_path", "rec.png", "--device", "cpu")
    script = ("recon_single_image.py", *options, "--from_pretrained")
    run_script(*script, tiny_vae, cwd=tmp_path)
    assert (tmp_path / "rec.png").is_file()
    failed = run_script(*script, "./no_such_model", cwd=tmp_path, status=2)
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
