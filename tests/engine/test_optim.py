"""One factory of optimizers, whose state keeps its strides and belongs to its parameters."""

import copy
import functools
import importlib.util
import sys

import pytest
import torch
from torch import nn

from tests.engine.toy import Regression, batches, player, weights
from wfimagevae.engine.optim import OptimizerState, build_optimizer
from wfimagevae.engine.options import OPTIMIZERS, OptimizerOptions

HAS_LION = importlib.util.find_spec("pytorch_optimizer") is not None
NEEDS = {
    "lion": pytest.mark.skipif(not HAS_LION, reason="pytorch-optimizer is not installed"),
    "muon": pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9"),
}
ALL = [pytest.param(name, marks=NEEDS.get(name, ())) for name in OPTIMIZERS]


def adamw(parameters, lr, weight_decay=1e-4, loss_divisor=1.0):
    options = OptimizerOptions(lr=lr, weight_decay=weight_decay)
    return build_optimizer(options, list(parameters), loss_divisor=loss_divisor)


def conv(seed=0):
    torch.manual_seed(seed)
    return nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)


def step(network, optimizer, seed):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    network(torch.randn(2, 4, 8, 8)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ALL)
def test_every_optimizer_finds_the_minimum_of_a_quadratic(name):
    """The squared distance of a layer to a hidden one."""
    torch.manual_seed(0)
    layer, hidden = nn.Linear(6, 4), [torch.randn(4, 6), torch.randn(4)]

    def distance():
        pairs = zip(layer.parameters(), hidden, strict=True)
        return sum((p - target).square().sum() for p, target in pairs)

    options = OptimizerOptions(optimizer=name, lr=0.05, weight_decay=0.0)
    optimizer = build_optimizer(options, list(layer.parameters()), [layer])
    start = distance().item()
    for i in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - i / 400)
        optimizer.zero_grad()
        distance().backward()
        optimizer.step()
    assert distance().item() < 1e-2 * start


@pytest.mark.parametrize("name", ALL)
def test_saved_and_resumed_updates_equal_uninterrupted_ones(name):
    make = functools.partial(player, lr=0.01, optimizer=name)
    whole, cut, resumed = make(), make(), make(Regression())
    data = batches(8, 4)
    for i, batch in enumerate(data):
        whole.update([batch], i)
    for i, batch in enumerate(data[:4]):
        cut.update([batch], i)
    state = copy.deepcopy(OptimizerState(cut.optimizer).state_dict())
    resumed.objective.load_state_dict(cut.objective.state_dict())
    resumed.load_state_dict(cut.state_dict())
    OptimizerState(resumed.optimizer).load_state_dict(state)
    for i, batch in enumerate(data[4:], 4):
        resumed.update([batch], i)
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("name", ALL)
def test_every_optimizer_skips_a_non_finite_update(name):
    ours = player(lr=0.01, optimizer=name)
    good, bad = batches(2, 4)
    bad["y"][0] = float("inf")
    ours.update([bad], 0)
    assert torch.equal(weights(ours), weights(player(optimizer=name)))
    ours.update([good], 1)
    assert weights(ours).isfinite().all()
    assert not torch.equal(weights(ours), weights(player(optimizer=name)))
    assert ours.skipped.tolist() == [1, 0]


def test_clipped_sgd_makes_a_step_of_the_limit():
    objective = Regression()
    before = copy.deepcopy(objective.state_dict())
    ours = player(objective, lr=1.0, optimizer="sgd", clip_grad_norm=1e-3)
    ours.update(batches(1, 4), 0)
    moved = torch.cat([(p - before[n]).flatten() for n, p in objective.state_dict().items()])
    # The first update of a two-update warm-up has a third of the rate; the decay adds 1e-4 |w|.
    assert moved.norm().item() == pytest.approx(1e-3 / 3, rel=0.2)


@NEEDS["muon"]
def test_muon_takes_the_matrices_of_hidden_layers_alone():
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    options = OptimizerOptions(optimizer="muon", lr=1e-3)
    optimizer = build_optimizer(options, list(network.parameters()), [network[1], network[2]])
    muon, adam = optimizer.param_groups
    assert [p.shape for p in muon["params"]] == [(4, 4)]
    assert muon["params"][0] is network[1].weight
    assert len(adam["params"]) == 6
    with pytest.raises(ValueError, match="hidden layers"):
        build_optimizer(options, list(network.parameters()))


def test_nothing_to_train_missing_packages_and_old_torch_are_explained(monkeypatch):
    with pytest.raises(ValueError, match="every parameter is frozen"):
        adamw([], 1e-3)
    parameters = list(conv().parameters())
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match=r"needs torch 2\.9"):
        build_optimizer(OptimizerOptions(optimizer="muon"), parameters)
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ValueError, match="pip install pytorch-optimizer"):
        build_optimizer(OptimizerOptions(optimizer="lion"), parameters)
    with pytest.raises(ValueError, match=r"'adamax' \(choose from adamw, adam"):
        OptimizerOptions(optimizer="adamax")


def test_resumed_channels_last_moments_update_the_right_elements():
    network = conv()
    optimizer = adamw(network.parameters(), 1e-2)
    for i in range(3):
        step(network, optimizer, i)
    state = copy.deepcopy(OptimizerState(optimizer).state_dict())
    for moments in state["state"].values():  # as a contiguous file gives them back
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = moments[name].contiguous()
    twin = conv()
    twin.load_state_dict(network.state_dict())
    other = adamw(twin.parameters(), 1e-2)
    OptimizerState(other).load_state_dict(state)
    for i in range(3, 6):
        step(network, optimizer, i)
        step(twin, other, i)
    assert torch.equal(network.weight, twin.weight)


def test_hyperparameters_stay_those_of_the_command_line():
    network = conv()
    saved = adamw(network.parameters(), 1e-2, weight_decay=0.5)
    step(network, saved, 0)
    other = adamw(network.parameters(), 3e-3, weight_decay=0.1)
    OptimizerState(other).load_state_dict(OptimizerState(saved).state_dict())
    assert other.param_groups[0]["lr"] == 3e-3
    assert other.param_groups[0]["weight_decay"] == 0.1


def test_state_of_another_optimizer_or_other_parameters_is_refused():
    one, wide = conv(), nn.Conv2d(4, 8, 3)
    optimizer = adamw(one.parameters(), 1e-2)
    step(one, optimizer, 0)
    sgd = build_optimizer(OptimizerOptions(optimizer="sgd"), list(one.parameters()))
    for other, words in (
        (sgd, r"optimizer is AdamW, this run's is SGD.*--not_resume_optimizer"),
        (adamw([one.weight], 1e-2), r"state is of \[2\] .* trains \[1\].*--not_resume_opt"),
        (adamw(wide.parameters(), 1e-2), r"does not fit.*--not_resume_optimizer"),
    ):
        with pytest.raises(ValueError, match=words):
            OptimizerState(other).load_state_dict(OptimizerState(optimizer).state_dict())


def test_dividing_the_loss_changes_no_update():
    whole, divided = conv(), conv()
    a = adamw(whole.parameters(), 1e-2)
    b = adamw(divided.parameters(), 1e-2, loss_divisor=1e6)
    for i in range(4):
        for network, optimizer, divisor in ((whole, a, 1), (divided, b, 1e6)):
            torch.manual_seed(i)
            optimizer.zero_grad()
            (1e-6 * network(torch.randn(2, 4, 8, 8)).square().sum() / divisor).backward()
            optimizer.step()
    torch.testing.assert_close(whole.weight, divided.weight, rtol=1e-4, atol=1e-6)
