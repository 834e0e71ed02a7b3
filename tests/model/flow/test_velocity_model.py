"""What all velocity models promise: inputs, end times, derivatives, compiling, checkpointing."""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.model.flow.models import (
    EXTERNAL_KINDS,
    FLOW_MODELS,
    KINDS,
    TEXT_KINDS,
    inputs_for,
    small_model,
)
from wfimagevae.model.flow.small_networks import ResidualBlock
from wfimagevae.model.flow.velocity_model import VelocityModel
from wfimagevae.model.registry import ModelRegistry


def directional(model, inputs, tangents):
    """The model's output and its derivative along the tangents of (x, t, t_end)."""
    x, t, labels, t_end = inputs

    def function(x, t, t_end):
        return model(x, t, labels, t_end)

    with torch.no_grad():
        return torch.func.jvp(function, (x, t, t_end), tangents)


@pytest.mark.parametrize("name", [*FLOW_MODELS, *TEXT_KINDS, *EXTERNAL_KINDS])
def test_registered_models_run_learn_save_and_reload(name, tmp_path):
    model = small_model(name, num_classes=4, average_velocity=True).eval()
    inputs = inputs_for(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    target, losses = torch.randn(inputs[0].shape), []
    for _ in range(4):
        loss = (model(*inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, g in grads.items() if not (g.any() and g.isfinite().all())] == []

    model.save_pretrained(tmp_path)
    reloaded = VelocityModel.from_pretrained(tmp_path)
    assert reloaded.to_json_string() == model.to_json_string()
    assert torch.equal(reloaded(*inputs), model(*inputs))
    with sdpa_kernel(SDPBackend.MATH):
        tangents = (torch.randn_like(inputs[0]), torch.ones(3), torch.zeros(3))
        assert directional(model, inputs, tangents)[1].isfinite().all()


@pytest.mark.parametrize("name", KINDS)
def test_new_models_predict_zero_and_know_no_end_time_yet(name):
    small = small_model(name, average_velocity=True).eval()
    config = {k: v for k, v in small.config.items() if not k.startswith("_")}
    fresh = ModelRegistry.get_model(name)(**config).eval()
    x, t, _, t_end = inputs_for(fresh)
    assert not fresh(x, t, None, t_end).any()
    # Whatever is learned elsewhere, the fresh embedder of the end time adds nothing.
    weights = {k: v for k, v in small.state_dict().items() if "t_end_embedder" not in k}
    fresh.load_state_dict(weights, strict=False)
    assert torch.equal(fresh(x, t, None, t_end), fresh(x, t))
    # Without an end time it is that of the state.
    assert torch.equal(small(x, t), small(x, t, None, t))
    assert not torch.allclose(small(x, t), small(x, t, None, t_end))


@pytest.mark.parametrize("name", KINDS)
def test_labels_and_times_matter_for_their_own_sample_alone(name):
    model = small_model(name, num_classes=4).eval()
    x, t, labels, _ = inputs_for(model)
    expected = model(x, t, labels)
    null = model.null_condition(3, "cpu")
    assert null.tolist() == [4, 4, 4]
    for other in (
        model(x, t, torch.stack([labels[0], null[1], labels[2]])),
        model(x, torch.stack([t[0], 1 - t[1], t[2]]), labels),
    ):
        torch.testing.assert_close(other[[0, 2]], expected[[0, 2]])
        assert not torch.allclose(other[1], expected[1], atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_inputs_of_another_kind_are_refused(name):
    model, conditional = small_model(name), small_model(name, num_classes=4)
    x, t, labels, _ = inputs_for(conditional)
    shape = tuple(x.shape[1:])
    for call, message in (
        (lambda: model(x[:, :1], t), f"{shape[0]}"),
        (lambda: model(x, t[:1]), r"t must be \(3,\), got \(1,\)"),
        (lambda: model(x, t[0]), r"t must be \(3,\), got \(\)"),
        (lambda: model(x, t, labels), "labels given to an unconditional model"),
        (lambda: conditional(x, t), "needs labels"),
        (lambda: conditional(x, t, labels[None]), r"condition must be \(3,\), got \(1, 3\)"),
        (lambda: model(x, t, None, t), "without average_velocity=True"),
        (lambda: conditional(x, t, {"label": labels, "ids": x}), "condition of label, ids; text"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert model.null_condition(3, "cpu") is None and not model.is_conditional
    assert conditional.is_conditional and not conditional.takes_text


@pytest.mark.parametrize("name", KINDS + TEXT_KINDS)
def test_forward_derivatives_equal_finite_differences(name):
    model = small_model(name, num_classes=4, average_velocity=True).double().eval()
    x, t, labels, t_end = inputs_for(model, dtype=torch.float64)
    tangents = (torch.randn_like(x), torch.ones_like(t), torch.full_like(t, 0.3))
    with sdpa_kernel(SDPBackend.MATH):
        value, derivative = directional(model, (x, t, labels, t_end), tangents)
    h = 1e-5
    with torch.no_grad():
        ahead, behind = (
            model(x + d * tangents[0], t + d * tangents[1], labels, t_end + d * tangents[2])
            for d in (h, -h)
        )
        torch.testing.assert_close(value, model(x, t, labels, t_end))
    torch.testing.assert_close(derivative, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    # The C++ of one of them is enough: what fails under jvp is the tracing.
    [(name, "inductor" if name == "FlowDiT-S/2" else "aot_eager") for name in KINDS + TEXT_KINDS],
)
def test_compiled_forward_derivatives_equal_eager_ones(name, backend):
    model = small_model(name, average_velocity=True).eval()
    inputs = inputs_for(model)
    tangents = (torch.randn_like(inputs[0]), torch.ones(3), torch.zeros(3))
    with sdpa_kernel(SDPBackend.MATH):
        expected = directional(model, inputs, tangents)
        torch._dynamo.reset()
        compiled_derivative = torch.compile(directional, fullgraph=True, backend=backend)
        compiled = compiled_derivative(model, inputs, tangents)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_blocks_keep_names_and_results():
    model = small_model("DiT-S/2", average_velocity=True).eval()
    inputs, keys = inputs_for(model), list(model.state_dict())
    tangents = (torch.randn_like(inputs[0]), torch.ones(3), torch.zeros(3))
    expected = model(*inputs)
    expected.square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    with sdpa_kernel(SDPBackend.MATH):
        derivative = directional(model, inputs, tangents)[1]
    torch._dynamo.reset()
    model.compile_blocks()
    assert list(model.state_dict()) == keys
    actual = model(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    actual.square().sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)
    # Whole derivatives may be compiled around compiled blocks.
    with sdpa_kernel(SDPBackend.MATH):
        compiled = torch.compile(directional)(model, inputs, tangents)[1]
    torch.testing.assert_close(compiled, derivative, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS + TEXT_KINDS)
def test_gradient_checkpointing_runs_blocks_twice_with_equal_gradients(name):
    model = small_model(name, average_velocity=True).eval()
    inputs = inputs_for(model)
    other = copy.deepcopy(model)
    other.enable_gradient_checkpointing()
    calls = []
    for block in other.blocks_to_shard():
        block.register_forward_pre_hook(lambda block, args: calls.append(block))
    for network in (model, other):
        network(*inputs).square().sum().backward()
    assert len(calls) == 2 * len(other.blocks_to_shard())
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_blocks_to_shard_hold_most_parameters_of_models_of_the_advertised_sizes():
    with torch.device("meta"):
        models = {name: ModelRegistry.get_model(name)() for name in KINDS}
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    for name, model in models.items():
        held = sum(p.numel() for block in model.blocks_to_shard() for p in block.parameters())
        assert held > 0.6 * counts[name], name
    # As advertised.
    assert counts["UNet"] == pytest.approx(52.6e6, rel=0.001)
    assert counts["SmallCNN"] == pytest.approx(0.1e6, rel=0.1)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_a_residual_block_has_the_gradients_of_float32_in_bf16(dilation):
    """pytorch/pytorch #169688, and its like: convolutions of the CPU in bfloat16."""
    torch.manual_seed(0)
    block = ResidualBlock(36, 36, 8, dilation=dilation).to(memory_format=torch.channels_last)
    torch.nn.init.normal_(block.conv2.weight, std=0.05)
    x, c = torch.randn(2, 36, 32, 32).to(memory_format=torch.channels_last), torch.randn(2, 8)
    found = []
    for enabled in (False, True):
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            block(x, c).square().mean().backward()
        found.append({name: p.grad.clone() for name, p in block.named_parameters()})
    for name, exact in found[0].items():
        assert (found[1][name] - exact).norm() < 0.03 * exact.norm(), name
