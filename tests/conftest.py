"""One thread for all tests: their tensors are tiny, and idle threads cost more than they give."""

import os
import re
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
if "OMP_WAIT_POLICY" not in os.environ:  # as in every command; see run_cli
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import pytest
import torch

torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, too, which commands respect


def pytest_configure(config):
    """Marks in diffusers' tests, which tests/model/test_diffusers.py takes from a checkout."""
    if checkout := os.environ.get("DIFFUSERS_CHECKOUT"):
        text = Path(checkout, "tests", "testing_utils.py").read_text()
        for mark in sorted({*re.findall(r"pytest\.mark\.(\w+)", text)}):
            config.addinivalue_line("markers", mark)


def pytest_collection_modifyitems(items):
    """Long trainings come first, so that no worker is left alone with one; no GPU, no GPU tests."""
    items.sort(key=lambda item: not item.path.name.startswith("test_trained"))
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True, scope="session")
def _private_caches(tmp_path_factory):
    """No index of images is left in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def two_threads():
    """For long trainings, where a second core is free."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(2 if 2 * workers <= (os.cpu_count() or 1) else 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """A file as torch-fidelity's Inception weights, but random."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            for module in self.modules():
                if isinstance(module, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(module.weight)

    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    network = Untrained("inception-v3-compat", ["2048"], str(path))
    torch.save(network.state_dict(), path)
    return path
