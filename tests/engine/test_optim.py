"""Optimizer state keeps its strides, and belongs to its parameters."""

import copy

import pytest
import torch
from torch import nn

from wfimagevae.engine.optim import adamw, load_optimizer_state, lr_schedule


def conv(seed=0):
    torch.manual_seed(seed)
    return nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)


def step(network, optimizer, seed):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    network(torch.randn(2, 4, 8, 8)).square().mean().backward()
    optimizer.step()


def test_resumed_channels_last_moments_update_the_right_elements():
    network = conv()
    optimizer = adamw(list(network.parameters()), 1e-2)
    for i in range(3):
        step(network, optimizer, i)
    state = copy.deepcopy(optimizer.state_dict())
    for moments in state["state"].values():  # as a contiguous file gives them back
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = moments[name].contiguous()
    twin = conv()
    twin.load_state_dict(network.state_dict())
    other = adamw(list(twin.parameters()), 1e-2)
    load_optimizer_state(other, state)
    for i in range(3, 6):
        step(network, optimizer, i)
        step(twin, other, i)
    assert torch.equal(network.weight, twin.weight)


def test_hyperparameters_stay_those_of_the_command_line():
    network = conv()
    saved = adamw(list(network.parameters()), 1e-2, weight_decay=0.5)
    step(network, saved, 0)
    other = adamw(list(network.parameters()), 3e-3, weight_decay=0.1)
    load_optimizer_state(other, saved.state_dict())
    assert other.param_groups[0]["lr"] == 3e-3
    assert other.param_groups[0]["weight_decay"] == 0.1


def test_state_of_other_parameters_is_refused():
    one = conv()
    optimizer = adamw(list(one.parameters()), 1e-2)
    step(one, optimizer, 0)
    with pytest.raises(ValueError, match="optimizer state is of"):
        load_optimizer_state(adamw([one.weight], 1e-2), optimizer.state_dict())
    wide = nn.Conv2d(4, 8, 3)
    with pytest.raises(ValueError, match="does not fit"):
        load_optimizer_state(adamw(list(wide.parameters()), 1e-2), optimizer.state_dict())


def test_dividing_the_loss_changes_no_update():
    whole, divided = conv(), conv()
    a = adamw(list(whole.parameters()), 1e-2)
    b = adamw(list(divided.parameters()), 1e-2, loss_divisor=1e6)
    for i in range(4):
        for network, optimizer, divisor in ((whole, a, 1), (divided, b, 1e6)):
            torch.manual_seed(i)
            optimizer.zero_grad()
            (1e-6 * network(torch.randn(2, 4, 8, 8)).square().sum() / divisor).backward()
            optimizer.step()
    torch.testing.assert_close(whole.weight, divided.weight, rtol=1e-4, atol=1e-6)


def test_linear_schedule_ends_at_its_share():
    factor = lr_schedule("linear", 0, 10, min_factor=0.1)
    assert [factor(0), factor(5), factor(10), factor(99)] == pytest.approx([1, 0.55, 0.1, 0.1])
    with pytest.raises(ValueError, match="unknown schedule 'step'"):
        lr_schedule("step", 0, 10)


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="every parameter is frozen"):
        adamw([], 1e-3)
