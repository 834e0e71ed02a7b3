"""Fixtures of the metrics: random weights in place of downloaded ones."""

from unittest.mock import Mock
from urllib.error import URLError

import pytest
import torch


@pytest.fixture(scope="session")
def alexnet_weights(tmp_path_factory):
    """A file as torchvision's AlexNet weights, but random and without its classifier."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    state = alexnet().state_dict()
    path = tmp_path_factory.mktemp("alexnet") / "random.pth"
    torch.save({k: v for k, v in state.items() if k.startswith("features.")}, path)
    return path


@pytest.fixture
def no_downloads(monkeypatch, tmp_path):
    """A machine without a network and with an empty cache of weights."""
    refuse = Mock(side_effect=URLError("no network in tests"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
