import pytest
import torch

from wfimagevae.eval.features import FeatureNetwork, load_features
from wfimagevae.eval.fid import FrechetDistance
from wfimagevae.eval.generation_metrics import frechet_distance
from wfimagevae.model.losses.lpips_network import MissingWeights

CPU = torch.device("cpu")
HUBCONF = """
import torch

def dinov2_vitl14(pretrained=True):
    assert not pretrained
    torch.manual_seed(torch.initial_seed() + 1)
    return torch.nn.Sequential(torch.nn.AvgPool2d(56), torch.nn.Flatten(), torch.nn.Linear(48, 7))
"""


def pictures(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture
def dinov2(tmp_path):
    """A stand-in for the repository and its weights, with a tiny network."""
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    network = torch.nn.Sequential(
        torch.nn.AvgPool2d(56), torch.nn.Flatten(), torch.nn.Linear(48, 7)
    )
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    return tmp_path, network


def test_fid_of_inception_features_is_that_of_torchmetrics(inception_weights):
    real, generated = pictures(), pictures(seed=1) // 2
    network = FeatureNetwork(inception_weights=str(inception_weights), inception_layer=64)
    extract = load_features(network, CPU)
    distance = FrechetDistance(CPU, str(inception_weights), num_features=64)
    distance.update(real / 255, generated / 255)
    ours = frechet_distance(extract(real), extract(generated))
    assert ours == pytest.approx(distance.compute(), rel=1e-4)
    assert ours > 0.01


def test_dinov2_of_local_files_sees_normalised_224_px_images(dinov2):
    folder, network = dinov2
    options = FeatureNetwork(
        "dinov2", dinov2_repo=str(folder), dinov2_weights=str(folder / "weights.pth")
    )
    features = load_features(options, CPU)(torch.full((2, 3, 20, 30), 128, dtype=torch.uint8))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    grey = ((128 / 255 - mean) / std).view(1, 3, 1, 1).expand(2, 3, 224, 224)
    torch.testing.assert_close(features, network(grey).detach())
    assert options.describe()["resize"].startswith("TensorFlow 1 bilinear to 224x224")


def test_dinov2_weights_of_another_model_are_refused(dinov2):
    folder, _ = dinov2
    torch.save({"other": torch.zeros(1)}, folder / "weights.pth")
    options = FeatureNetwork(
        "dinov2", dinov2_repo=str(folder), dinov2_weights=str(folder / "weights.pth")
    )
    with pytest.raises(ValueError, match="does not fit dinov2_vitl14"):
        load_features(options, CPU)


@pytest.mark.parametrize(
    ("kind", "word"), [("inception", "--inception_weights"), ("dinov2", "--dinov2_repo")]
)
def test_missing_weights_say_how_to_get_them(kind, word, no_downloads, monkeypatch):
    from urllib.error import URLError

    def refuse(*args, **options):
        raise URLError("no network in tests")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    with pytest.raises(MissingWeights, match=word):
        load_features(FeatureNetwork(kind), CPU)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "vgg"}, "inception or dinov2"),
        ({"kind": "dinov2", "dinov2_repo": "here"}, "together"),
        ({"inception_weights": "none.pth"}, "--inception_weights none.pth: no such file"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FeatureNetwork(**options)


def test_float_images_are_refused(inception_weights):
    network = FeatureNetwork(inception_weights=str(inception_weights), inception_layer=64)
    with pytest.raises(ValueError, match="8-bit"):
        load_features(network, CPU)(torch.zeros(1, 3, 8, 8))
