"""Networks of flow training, as the flags ask for them."""

import pytest
import torch

from wfimagevae.task.flow_build import build_network


def test_a_missing_or_broken_model_config_is_named(tmp_path):
    def build(config):
        options = {
            "model_name": "MLP",
            "model_config": str(config),
            "pretrained_model_name_or_path": None,
        }
        build_network(options, None, torch.device("cpu"))

    with pytest.raises(ValueError, match=r"--model_config .*nowhere\.json: no such file"):
        build(tmp_path / "nowhere.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not valid JSON"):
        build(tmp_path / "broken.json")
