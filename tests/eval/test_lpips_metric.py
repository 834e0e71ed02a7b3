import lpips
import pytest
import torch

from tests.refusals import refused
from wfimagevae.eval.lpips import PerceptualDistance

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def distance(alexnet_weights):
    return PerceptualDistance(CPU, "alex", str(alexnet_weights))


def test_lpips_of_each_pair_agrees_with_the_lpips_package(distance, alexnet_weights):
    package = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    backbone = torch.load(alexnet_weights, weights_only=True)
    for key in package.net.state_dict():  # slice1.0.weight is features.0.weight
        package.net.state_dict()[key].copy_(backbone["features." + key.split(".", 1)[1]])
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 64, 64, generator=generator)
    y = torch.rand(3, 3, 64, 64, generator=generator)
    with torch.no_grad():
        expected = package(x, y, normalize=True).flatten()  # for images in [0, 1]
    assert expected.min() > 1e-3
    torch.testing.assert_close(distance(x, y), expected)


def test_identical_and_smallest_images_work_and_smaller_or_signed_ones_are_refused(distance):
    x = torch.rand(2, 3, 48, 64)
    assert distance(x, x).tolist() == [0, 0]
    x = torch.rand(1, 3, 31, 31)
    assert distance(x, 1 - x).isfinite().all()
    refused("at least 31", distance, x[..., :30, :], x[..., :30, :])
    refused("must lie in", distance, x * 2 - 1, x)
