import numpy as np
import pytest
import torch

from wfimagevae.eval.fid import FrechetDistance, weights_digest
from wfimagevae.model.losses.lpips_network import MissingWeights

CPU = torch.device("cpu")


def image_sets(count=6, size=32):
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(count, 3, size, size, generator=generator)
    noise = torch.randn(real.shape, generator=generator)
    return real, (0.6 * real + 0.1 * noise).clamp(0, 1)


@pytest.fixture(scope="module")
def distance(inception_weights):
    return FrechetDistance(CPU, str(inception_weights), num_features=64)


def features_by_torch_fidelity(weights, images):
    """The library's own extractor, on 8-bit images: independent of torchmetrics."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["64"], str(weights))
    return extractor((images * 255).round().to(torch.uint8))[0].double().numpy()


def frechet_of_features(a, b):
    """tr sqrt(cov_a cov_b) is the nuclear norm of the product of the centred features."""
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    root = np.linalg.norm(centred_a @ centred_b.T, "nuc") / (len(a) - 1)
    spread = np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False))
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + spread - 2 * root


def test_rfid_agrees_with_the_formula_on_torch_fidelity_features(distance, inception_weights):
    real, generated = image_sets(count=20)
    distance.reset()
    for start in range(0, 20, 8):  # unequal batches
        distance.update(real[start : start + 8], generated[start : start + 8])
    expected = frechet_of_features(
        features_by_torch_fidelity(inception_weights, real),
        features_by_torch_fidelity(inception_weights, generated),
    )
    assert expected > 0.01
    assert distance.compute() == pytest.approx(expected, rel=1e-4)


def test_rfid_of_a_set_with_itself_in_another_order_is_zero(distance):
    real, generated = image_sets()
    distance.reset()
    distance.update(real, generated)
    unlike = distance.compute()
    distance.reset()
    distance.update(real, real.flip(0))
    assert abs(distance.compute()) < 1e-3 * unlike


def test_rfid_needs_two_images(distance):
    real, generated = image_sets(count=1)
    distance.reset()
    distance.update(real, generated)
    with pytest.raises(ValueError, match="at least two images"):
        distance.compute()


def test_rfid_refuses_images_in_minus_one_to_one(distance):
    real, generated = image_sets(count=2)
    with pytest.raises(ValueError, match="must lie in"):
        distance.update(real * 2 - 1, generated)


def test_missing_and_wrong_weight_files_are_told_apart(tmp_path):
    with pytest.raises(MissingWeights, match=r"/weights-inception-2015-12-05-6726825d\.pth"):
        FrechetDistance(CPU, str(tmp_path / "none.pth"))
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    texts = ("not weights", "hello" * 100, "")  # each fails in its own way
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.pth").write_text(text)
    for name in ("other.pth", *(f"{i}.pth" for i in range(len(texts)))):
        with pytest.raises(ValueError, match="does not hold") as caught:
            FrechetDistance(CPU, str(tmp_path / name))
        assert not isinstance(caught.value, MissingWeights)


def test_weights_that_cannot_be_downloaded_name_file_and_address(no_downloads):
    with pytest.raises(MissingWeights, match="--inception_weights") as caught:
        FrechetDistance(CPU)
    assert "https://github.com/toshas/torch-fidelity/releases" in str(caught.value)


def test_digest_is_the_start_of_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert weights_digest(tmp_path / "file") == "ba7816bf"
