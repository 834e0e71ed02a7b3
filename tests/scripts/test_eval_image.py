import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import eval_image
from tests.refusals import refused
from tests.scripts.flow_exports import command
from wfimagevae.eval.psnr import psnr
from wfimagevae.eval.ssim import ssim

SIZE = ("--resolution", 48)


def evaluate(real, generated, *more):
    images = ("--real_image_dir", real, "--generated_image_dir", generated)
    return command(eval_image, *images, "--num_workers", 0, "--device", "cpu", *more)


def measured(real, generated, path, *more, status=0):
    """The JSON of an evaluation that ends with that status; PSNR and SSIM by default."""
    metrics = () if "--metric" in more else ("--metric", "psnr", "ssim")
    assert evaluate(real, generated, *more, *metrics, "--output_json", path) == status
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def test_files_are_measured_and_averaged(tmp_path, capsys):
    rng = np.random.default_rng(1)
    real = rng.integers(0, 256, (3, 8, 10, 3)).repeat(4, 1).repeat(4, 2)
    noise = rng.normal(0, np.reshape([4, 40, 15], (3, 1, 1, 1)), real.shape)
    stacks = [images.clip(0, 255).astype(np.uint8) for images in (real, real + noise)]
    for folder, images in zip(("real", "fake"), stacks, strict=True):
        (tmp_path / folder / "sub").mkdir(parents=True)
        for name, image in zip(("a.png", "sub/b.png", "c.png"), images, strict=True):
            Image.fromarray(image).save(tmp_path / folder / name)
    pair = [torch.tensor(stack).permute(0, 3, 1, 2) / 255 for stack in stacks]
    content = measured(tmp_path / "real", tmp_path / "fake", tmp_path / "new" / "m.json")
    assert content["psnr"] == pytest.approx(psnr(*pair).mean().item(), abs=1e-4)
    assert content["ssim"] == pytest.approx(ssim(*pair).mean().item(), abs=1e-6)
    assert f"| psnr   |    {content['psnr']:.2f} |" in capsys.readouterr().out


def test_protocol_says_how_it_was_measured_whatever_the_batch_size(photos, blurred, tmp_path):
    first, *others = (
        measured(photos, blurred, tmp_path / "m.json", *SIZE, "--batch_size", n) for n in (1, 2, 8)
    )
    protocol = first["protocol"]
    assert protocol["count"] == 5 and protocol["size"] == protocol["crop"][-5:] == "48x48"
    assert "bicubic" in protocol["interpolation"] and "[0, 1]" in protocol["data_range"]
    assert "11 taps, sigma 1.5" in protocol["ssim"]["window"]
    assert {"torch", "pillow"} <= protocol["versions"].keys()
    for other in others:
        assert other["protocol_hash"] == first["protocol_hash"]
        for metric in ("psnr", "ssim"):
            assert other[metric] == pytest.approx(first[metric], rel=1e-9)
    part = measured(photos, blurred, tmp_path / "m.json", *SIZE, "--subset_size", 2)
    assert part["protocol_hash"] != first["protocol_hash"]


@pytest.mark.slow
def test_rfid_of_two_processes_is_that_of_one(
    photos, blurred, tmp_path, run_script, inception_weights
):
    options = (*SIZE, "--metric", "rfid", "--inception_weights", inception_weights)
    one = measured(photos, blurred, tmp_path / "one.json", *options)
    words = ("--real_image_dir", photos, "--generated_image_dir", blurred, *options)
    words += ("--output_json", "two.json", "--batch_size", 2, "--device", "cpu")
    run_script("eval_image.py", *words, cwd=tmp_path, processes=2)
    two = json.loads((tmp_path / "two.json").read_text())
    assert 0 < one["rfid"] == pytest.approx(two["rfid"], rel=1e-4)


def test_missing_weights_are_reported_but_named_ones_must_exist(
    photos, blurred, tmp_path, capsys, no_downloads
):
    metrics = ("--metric", "psnr", "ssim", "lpips", "rfid")
    content = measured(photos, blurred, tmp_path / "m.json", *SIZE, *metrics, status=3)
    assert content["psnr"] > 0 and content["ssim"] > 0
    assert content["lpips"] is None and content["rfid"] is None
    assert re.search("vgg16.*--lpips_weights", content["unavailable"]["lpips"])
    assert "--inception_weights" in content["unavailable"]["rfid"]
    output = capsys.readouterr().out
    assert output.count("n/a") == 2 and "rfid is unavailable: " in output
    with pytest.raises(SystemExit) as ended:
        evaluate(photos, blurred, *SIZE, "--inception_weights", "none.pth")
    assert ended.value.code == 2
    assert "--inception_weights: none.pth: no such file" in capsys.readouterr().err


def test_pairs_that_do_not_fit_name_their_files(photos, blurred, tmp_path, capsys):
    generated = shutil.copytree(blurred, tmp_path / "generated")
    refused(r"a/one.png has 48x48 pixels, its original 70x50", evaluate, photos, generated)
    cropped = (*SIZE, "--crop_size", 32)
    refused("has 48x48 pixels, its original 32x32", evaluate, photos, generated, *cropped)
    (generated / "four.png").write_bytes(b"\x89PNG nothing")
    options = (*SIZE, "--metric", "psnr", "--num_workers", 1)
    assert evaluate(photos, generated, *options) == 1
    assert "unreadable: four.bmp: generated image four.png: " in capsys.readouterr().err
    (generated / "b" / "one.png").rename(generated / "b" / "two.png")
    refused(r"b/one.jpeg.*no original: b/two.png", evaluate, photos, generated, *SIZE)
