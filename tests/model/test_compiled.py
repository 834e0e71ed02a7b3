"""How often Dynamo compiles what is compiled in place; traced as ever, but not made into C++."""

import functools

import pytest
import torch
from torch._dynamo.utils import counters

from tests.model.flow.models import inputs_for, small_model
from tests.model.test_wfvae2_image import tiny_model
from wfimagevae.model.losses import LPIPSWithDiscriminator2D
from wfimagevae.model.losses.lpips_network import LPIPS
from wfimagevae.model.losses.options import LossConfig
from wfimagevae.objective.mean_flow import MeanFlow
from wfimagevae.objective.options import MeanFlowOptions


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    limits = {"recompile_limit": 8, "accumulated_recompile_limit": 256}
    # Where a limit is met, compiling fails and does not give up in silence.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, **limits):
        yield
    torch._dynamo.reset()


def graphs():
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def test_each_size_of_aspect_buckets_is_compiled():
    model = tiny_model()
    model.compile_blocks()
    counts = []
    for width in range(16, 16 + 8 * 11, 8):
        model(torch.randn(1, 3, 16, width)).sample.sum().backward()
        counts.append(graphs())
    # Two blocks down, two up, a residual and an attention block, and the last norm of each half.
    assert counts == [8 * (i + 1) for i in range(11)]
    model(torch.randn(1, 3, 16, 16))
    assert graphs() == counts[-1]


def test_each_size_of_a_transformer_is_compiled():
    model = small_model("FlowDiT-S/2")
    _, t, *_ = inputs_for(model)
    model.compile_blocks()
    for count, width in enumerate(range(4, 4 + 2 * 10, 2), 1):
        model(torch.randn(3, 4, 8, width), t)
        assert graphs() == count  # the blocks are alike


def test_each_number_of_samples_of_a_mean_flows_derivative_is_compiled():
    network = small_model("FlowDiT-S/2", average_velocity=True)
    options = MeanFlowOptions(objective="mean_flow", meanflow_ratio=0.3)
    objective = MeanFlow(network, lambda batch: batch["image"], options, seed=0)
    objective.compile()
    for first in range(0, 20, 5):  # one or two of five
        image = torch.randn(5, 4, 8, 8).to(memory_format=torch.channels_last)
        batch = {"image": image, "position": list(range(first, first + 5))}
        objective(batch, 0)[0].backward()
    frames = counters["frames"]
    assert frames["ok"] == frames["total"] and graphs() == 3


def test_lpips_and_errors_of_pixels_are_compiled_as_a_whole(monkeypatch):
    monkeypatch.setattr(LPIPS, "__init__", functools.partialmethod(LPIPS.__init__, weights=False))
    monkeypatch.setattr(
        "wfimagevae.model.losses.perceptual_loss.LPIPS", lambda net, weights: LPIPS(net)
    )
    loss = LPIPSWithDiscriminator2D(LossConfig())
    a, b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    b.requires_grad_()
    expected, logs = loss._reconstruction(a, b)
    gradient = torch.autograd.grad(expected, b)[0]
    names = loss.state_dict().keys()
    loss.compile_networks()
    nll, compiled = loss._reconstruction(a, b)
    assert graphs() == 1 and loss.state_dict().keys() == names
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(compiled, logs)
    torch.testing.assert_close(torch.autograd.grad(nll, b)[0], gradient)
