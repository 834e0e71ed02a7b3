import pytest
import torch

from tests.refusals import refused
from wfimagevae.eval.features import (
    describe_features,
    load_features,
    load_inception,
    weights_digest,
)
from wfimagevae.eval.options import SetMetricOptions
from wfimagevae.model.losses.lpips_network import MissingWeights

CPU = torch.device("cpu")
HUBCONF = """
import torch

def dinov2_vitl14(pretrained=True):
    assert not pretrained
    torch.manual_seed(torch.initial_seed() + 1)
    return torch.nn.Sequential(torch.nn.AvgPool2d(56), torch.nn.Flatten(), torch.nn.Linear(48, 7))
"""


@pytest.fixture
def dinov2(tmp_path):
    """Options of a stand-in for the repository and its weights, and its tiny network."""
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    layers = torch.nn.AvgPool2d(56), torch.nn.Flatten(), torch.nn.Linear(48, 7)
    network, weights = torch.nn.Sequential(*layers), tmp_path / "weights.pth"
    torch.save(network.state_dict(), weights)
    places = {"dinov2_repo": tmp_path, "dinov2_weights": weights}
    return SetMetricOptions(features="dinov2", **places), network


def test_dinov2_of_local_files_sees_normalised_224_px_images(dinov2):
    options, network = dinov2
    features = load_features(options, CPU)(torch.full((2, 3, 20, 30), 128, dtype=torch.uint8))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    grey = ((128 / 255 - mean) / std).view(1, 3, 1, 1).expand(2, 3, 224, 224)
    torch.testing.assert_close(features, network(grey).detach())
    description = describe_features(options, 1024)
    assert description["resize"].startswith("TensorFlow 1 bilinear to 224x224")
    assert description["weights"] == weights_digest(options.dinov2_weights)


def test_dinov2_weights_of_another_model_or_without_its_code_are_refused(dinov2):
    options, _ = dinov2
    refused("given together", SetMetricOptions, dinov2_repo=options.dinov2_repo)
    torch.save({"other": torch.zeros(1)}, options.dinov2_weights)
    refused("does not fit dinov2_vitl14", load_features, options, CPU)


def test_weights_that_cannot_be_downloaded_say_how_to_get_them(no_downloads):
    url = "https://github.com/toshas/torch-fidelity/releases"
    for kind, words in (("inception", f"{url}.*--inception_weights"), ("dinov2", "--dinov2_repo")):
        refused(words, load_features, SetMetricOptions(features=kind), CPU, error=MissingWeights)


def test_wrong_weights_images_and_features_are_refused(tmp_path, inception_weights):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name, text in (("a", "not weights"), ("b", "hello" * 100), ("c", "")):
        (tmp_path / f"{name}.pth").write_text(text)  # each fails in its own way
    for name in ("other", "a", "b", "c"):
        with pytest.raises(ValueError, match="does not hold") as caught:
            load_inception(CPU, str(tmp_path / f"{name}.pth"))
        assert not isinstance(caught.value, MissingWeights)
    refused(
        "dtype=torch.uint8",
        load_inception(CPU, str(inception_weights), 64),
        torch.zeros(1, 3, 8, 8),
    )
    state = torch.load(inception_weights)
    state["Conv2d_1a_3x3.conv.weight"].fill_(torch.nan)
    torch.save(state, tmp_path / "nan.pth")
    network = load_inception(CPU, str(tmp_path / "nan.pth"), 64)
    refused("not finite", network, torch.zeros(1, 3, 8, 8).byte())


def test_digest_is_the_start_of_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert weights_digest(tmp_path / "file") == "ba7816bf"
