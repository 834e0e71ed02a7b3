"""LPIPS: equal to the package, finite at zero, honest about missing weights."""

import lpips
import pytest
import torch
from torchvision.models import vgg16

from wfimagevae.model.losses import LossConfig, LPIPSWithDiscriminator2D
from wfimagevae.model.losses.lpips_network import LPIPS, MissingWeights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lpips") / "vgg16.pth"
    network = vgg16(weights=None).features
    torch.save({f"features.{name}": value for name, value in network.state_dict().items()}, path)
    return str(path)


def test_equals_the_package(weights):
    ours = LPIPS("vgg", weights)
    package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    package.net.load_state_dict(ours.net.state_dict())
    x, y = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(ours(x, y), package(x, y), rtol=1e-5, atol=1e-8)
    assert not any(module.training for module in ours.train().modules())
    assert not any(p.requires_grad for p in ours.parameters())


def test_gradient_is_finite_where_all_activations_are_zero(weights):
    network = LPIPS("vgg", weights)
    first = network.net.slice1[0]
    first.weight.data.zero_()
    first.bias.data.fill_(-1)  # ReLU leaves nothing
    x = torch.zeros(1, 3, 32, 32)
    y = torch.zeros(1, 3, 32, 32, requires_grad=True)
    network(x, y).sum().backward()
    assert y.grad.isfinite().all()


def test_lpips_is_in_no_checkpoint_and_an_old_one_that_has_it_loads(weights):
    config = LossConfig(lpips_weights=weights, disc_num_layers=1)
    loss = LPIPSWithDiscriminator2D(config)
    state = loss.state_dict()
    assert not [name for name in state if "perceptual" in name]
    before = loss.perceptual_loss.net.slice1[0].weight.clone()
    old = state | {"perceptual_loss.net.slice1.0.weight": torch.zeros_like(before)}
    loss.load_state_dict(old)
    assert torch.equal(loss.perceptual_loss.net.slice1[0].weight, before)


def test_missing_weights_say_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(MissingWeights, match=r"vgg16-397923af.pth.*--lpips_weights"):
        LPIPS("vgg")


def test_wrong_files_are_refused(weights, tmp_path):
    narrow = torch.load(weights) | {"features.0.weight": torch.zeros(2, 3, 3, 3)}
    for name, content in (
        ("narrow", narrow),
        ("other", {"features.0.weight": torch.zeros(1)}),
        ("tensor", narrow["features.0.bias"]),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
    (tmp_path / "garbage.pth").write_bytes(b"h%")
    for name, message in (
        ("nothing", "do not exist"),
        ("narrow", r"(?s)torchvision's vgg: .*size mismatch for slice1\.0\.weight"),
        ("other", "no backbone of torchvision's vgg"),
        ("tensor", r"tensor\.pth holds no weights, but a Tensor"),
        ("garbage", r"garbage\.pth is not a readable checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            LPIPS("vgg", str(tmp_path / f"{name}.pth"))
