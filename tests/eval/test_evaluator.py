import functools
import json
import math

import pytest
import torch

from tests.refusals import refused
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.features import load_inception
from wfimagevae.eval.options import MetricOptions
from wfimagevae.eval.psnr import psnr
from wfimagevae.eval.report import evaluation_json, evaluation_table
from wfimagevae.eval.set_metrics import frechet_distance
from wfimagevae.eval.ssim import ssim
from wfimagevae.files import write_json
from wfimagevae.pictures.pixels import to_uint8

CPU = torch.device("cpu")


def pairs(count=7, size=16):
    """Images in [-1, 1], each reconstructed worse than the one before."""
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    noise = torch.randn(real.shape, generator=generator)
    strength = torch.linspace(0.02, 0.8, count).view(-1, 1, 1, 1)
    return real, (real + strength * noise).clamp(-1, 1)


@pytest.mark.parametrize("batches", [[7], [3, 3, 1], [1] * 7])
def test_every_image_weighs_the_same_whatever_the_batch(batches):
    real, generated = pairs()
    evaluator = Evaluator(("psnr", "ssim"), CPU)
    evaluator.update(real, real)
    evaluator.reset()  # forgets everything
    for x, y in zip(real.split(batches), generated.split(batches), strict=True):
        evaluator.update(x, y)
    unit = (real + 1) / 2, (generated + 1) / 2
    values = evaluator.compute()
    assert values["psnr"] == pytest.approx(psnr(*unit).mean().item(), rel=1e-9)
    assert values["ssim"] == pytest.approx(ssim(*unit).mean().item(), rel=1e-9)
    assert evaluator.count == 7 and not evaluator.notes
    # The mean of PSNRs is not the PSNR of the mean error.
    pooled = -10 * math.log10((unit[0] - unit[1]).square().mean().item())
    assert values["psnr"] > pooled + 1


def test_a_perfect_image_is_infinite_and_noted_and_null_in_json(tmp_path):
    real, generated = pairs(4)
    generated[2] = real[2]
    evaluator = Evaluator(("psnr", "ssim"), CPU)
    evaluator.update(real, generated)
    values = evaluator.compute()
    assert values["psnr"] == math.inf
    others = [0, 1, 3]
    mean = psnr((real[others] + 1) / 2, (generated[others] + 1) / 2).mean().item()
    assert "1 of 4" in evaluator.notes["psnr"] and f"{mean:.4f}" in evaluator.notes["psnr"]
    write_json(tmp_path / "m.json", evaluation_json(evaluator, values, {}))
    content = json.loads((tmp_path / "m.json").read_text(), parse_constant=pytest.fail)
    assert content["psnr"] is None and content["ssim"] < 1 and "psnr" in content["notes"]
    assert "| psnr   |      inf |" in evaluation_table(evaluator, values)
    evaluator.reset()
    evaluator.update(real, real)
    assert evaluator.compute() == {"psnr": math.inf, "ssim": pytest.approx(1)}
    assert evaluator.notes["psnr"].endswith("4 of 4 reconstructions equal their original")


def test_no_images_unknown_metrics_and_values_outside_the_range_are_errors():
    real, generated = pairs()
    refused("no images", Evaluator(["psnr"], CPU).compute)
    refused(r"unknown metric 'fid'.*rfid", Evaluator, ["psnr", "fid"], CPU)
    refused(r"\[-1, 1\]", Evaluator(["psnr"], CPU).update, real * 127.5, generated)


@pytest.fixture
def narrow(monkeypatch):
    """rFID by 64 features: 2048 take 20 s to compare."""
    load = functools.partial(load_inception, num_features=64)
    monkeypatch.setattr("wfimagevae.eval.evaluator.load_inception", load)


def test_rfid_is_the_distance_of_two_images_or_more(narrow, inception_weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    real, generated = pairs(20, size=32)
    rfid = Evaluator(["rfid"], CPU, MetricOptions(inception_weights=inception_weights))
    for start in range(0, 20, 8):  # unequal batches
        rfid.update(real[start : start + 8], generated[start : start + 8])
    extract = FeatureExtractorInceptionV3("inception-v3-compat", ["64"], str(inception_weights))
    features = [extract(to_uint8(x))[0] for x in (real, generated)]
    expected = frechet_distance(*features)
    assert expected > 0.01 and rfid.compute() == {"rfid": pytest.approx(expected, rel=1e-4)}
    rfid.reset()
    rfid.update(real[:1], generated[:1])
    refused("at least two images", rfid.compute)


def test_local_weights_make_all_metrics_available(alexnet_weights, inception_weights, narrow):
    real, generated = pairs(3, size=32)
    weights = {"lpips_weights": alexnet_weights, "inception_weights": inception_weights}
    options = MetricOptions(lpips_net="alex", **weights)
    evaluator = Evaluator(("rfid", "lpips", "ssim", "psnr"), CPU, options)
    evaluator.update(real, generated)
    values = evaluator.compute()
    assert list(values) == ["psnr", "ssim", "lpips", "rfid"]
    assert values["lpips"] > 0 and values["rfid"] > 0
    assert "fewer than the 64 features" in evaluator.notes["rfid"]
