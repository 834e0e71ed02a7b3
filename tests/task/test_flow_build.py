"""Networks of flow training, as the flags ask for them."""

import pytest
import torch

from tests.task.training import FlowPlace
from wfimagevae.command_line import parse
from wfimagevae.engine.distributed import World
from wfimagevae.task import flow
from wfimagevae.task.flow_networks import build_network, build_objective
from wfimagevae.task.flow_options import FlowOptions


def test_a_missing_or_broken_model_config_is_named(tmp_path):
    def build(config):
        options = FlowOptions(model_name="MLP", model_config=config)
        build_network(options, None, torch.device("cpu"))

    with pytest.raises(ValueError, match=r"--model_config .*nowhere\.json: no such file"):
        build(tmp_path / "nowhere.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        build(tmp_path / "broken.json")


@pytest.mark.parametrize(("fsdp", "place"), [(None, "meta"), (True, "cpu")])
def test_a_network_is_sharded_before_it_goes_to_the_device(tmp_path, monkeypatch, fsdp, place):
    class Built(Exception):
        """There is nothing more to see."""

    def seen(options, network, space):
        raise Built({parameter.device.type for parameter in network.parameters()})

    monkeypatch.setattr(flow, "build_objective", seen)
    options = parse(FlowOptions, FlowPlace(tmp_path).flags("x", 1, fsdp=fsdp))
    with pytest.raises(Built) as built:
        flow._assemble(options, World(0, 1, torch.device("meta")), tmp_path)
    assert built.value.args == ({place},)


def test_sharded_compiled_mean_flow_says_which_torch_it_needs(tmp_path, monkeypatch):
    flags = FlowPlace(tmp_path).flags("x", 1, objective="mean_flow", fsdp=True, compile=True)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.11.0"))
    with pytest.raises(ValueError, match=r"needs torch 2\.15, this is 2\.11\.0: leave out"):
        build_objective(parse(FlowOptions, flags), None, None)
