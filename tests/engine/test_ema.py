"""The average of the weights against its closed form."""

import pytest
import torch
from torch import nn

from wfimagevae.engine.checkpoint import collect, read_checkpoint, restore, write_checkpoint
from wfimagevae.engine.ema import EMA, Averages


def constant_steps(decay, warmup, num, kind=EMA):
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    ema = kind(network, decay, warmup)
    network.weight.data.fill_(1.0)
    for _ in range(num):
        ema.update()
    return network, ema


def test_warmup_forgets_the_initial_weights_sooner():
    slow = constant_steps(0.999, warmup=False, num=20)[1].average["weight"].item()
    fast = constant_steps(0.999, warmup=True, num=20)[1].average["weight"].item()
    assert fast > 0.9 > 0.1 > slow


def test_loads_names_with_module_and_refuses_missing_ones():
    _, ema = constant_steps(0.9, warmup=False, num=1)
    ema.load_state_dict({"module.weight": torch.full((1, 1), 5.0)})
    assert ema.average["weight"].item() == 5
    with pytest.raises(ValueError, match="lacks 1 weights, as weight"):
        ema.load_state_dict({"other": torch.zeros(1)})


def test_several_decays_average_side_by_side_and_the_first_is_applied():
    network, averages = constant_steps([0.9, 0.5], False, 4, Averages)
    state = averages.parts()["other_ema_state_dicts"].state_dict()
    assert averages.state_dict()["weight"].item() == pytest.approx(1 - 0.9**4)
    assert state["0.5"]["average"]["weight"].item() == pytest.approx(1 - 0.5**4)
    with averages.applied():
        assert network.weight.item() == pytest.approx(1 - 0.9**4)
    assert network.weight.item() == 1.0
    assert averages.state_dict()["weight"].item() == pytest.approx(1 - 0.9**4)
    with pytest.raises(ValueError, match="decays that differ"):
        Averages(network, [0.9, 0.9])


def test_averages_come_back_by_decay_and_new_ones_start_from_the_weights(tmp_path):
    network = nn.Linear(1, 1, bias=False)
    saved = Averages(network, [0.9, 0.5], warmup=False)
    network.weight.data.fill_(7.0)
    saved.update()
    path = tmp_path / "checkpoint-1.ckpt"
    write_checkpoint(path, collect({"state_dict.gen_model": network} | saved.parts()))
    content = read_checkpoint(path)
    resumed = Averages(network, [0.9, 0.3, 0.5], warmup=False)
    resumed.others[0].average["weight"].fill_(-1.0)
    restore(resumed.parts(), content)
    restarted, other = resumed.others
    assert torch.equal(other.average["weight"], saved.others[0].average["weight"])
    assert (restarted.average["weight"].item(), restarted.num_updates) == (7.0, 0)
    assert other.num_updates == 1
    assert set(Averages(network, [0.9]).parts()) == {"ema_state_dict"}


def test_a_replaced_parameter_or_buffer_is_the_one_that_is_averaged():
    network = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    ema = EMA(network, decay=0.75, warmup=False)
    network[1].weight = nn.Parameter(torch.full((1, 1), 8.0))
    network[0].running_mean = torch.full((1,), 4.0)
    old = {name: value.clone() for name, value in ema.average.items()}
    ema.update()
    for name, replaced in (("1.weight", 8.0), ("0.running_mean", 4.0)):
        torch.testing.assert_close(ema.average[name], 0.75 * old[name] + 0.25 * replaced)
    assert ema.average["0.num_batches_tracked"].dtype == torch.float32


def test_an_update_walks_no_module(monkeypatch):
    network = nn.Sequential(nn.Linear(1, 1))
    ema = EMA(network, decay=0.5, warmup=False)
    monkeypatch.setattr(nn.Module, "state_dict", None)
    monkeypatch.setattr(nn.Module, "named_modules", None)
    network[0].bias.data.fill_(3.0)
    before = ema.average["0.bias"].item()
    ema.update()
    assert ema.average["0.bias"].item() == pytest.approx(0.5 * before + 1.5)
