"""GLIDE against its formulas written plainly, its public names, and its promises."""

import copy
import functools
import hashlib
import json
from pathlib import Path

import pytest
import torch

from tests.model.glide.models import (
    GLIDE_MODELS,
    condition_for,
    drawn,
    fill_by_names,
    inputs_for,
    small_glide,
)
from tests.model.glide.transcription import transcribed
from wfimagevae.model import VelocityModel
from wfimagevae.model.glide.blocks import AttentionBlock, ResBlock, TextBlock
from wfimagevae.model.glide.glide import Glide
from wfimagevae.model.registry import ModelRegistry

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "glide.json").read_text())


@pytest.mark.parametrize("name", [name for name in GLIDE_MODELS if name != "Glide"])
def test_registered_models_compute_the_public_formulas_learn_save_and_reload(name, tmp_path):
    model = small_glide(name).eval()
    inputs = inputs_for(model)
    with torch.no_grad():
        torch.testing.assert_close(
            model(*inputs), transcribed(model, *inputs), atol=1e-4, rtol=1e-4
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    channels = model.sample_shape[0]
    target, losses = torch.randn(3, 2 * channels, 16, 16), []
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
    assert type(reloaded) is Glide and reloaded.to_json_string() == model.to_json_string()
    assert torch.equal(reloaded(*inputs), model(*inputs))


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_public_models_have_the_public_names_and_shapes(name):
    with torch.device("meta"):
        model = ModelRegistry.get_model(name)()
    state, golden = model.state_dict(), GOLDEN["models"][name]
    lines = "".join(f"{key} {list(state[key].shape)}\n" for key in sorted(state))
    assert len(state) == golden["entries"]
    assert sum(p.numel() for p in model.parameters()) == golden["parameters"]
    assert hashlib.sha256(lines.encode()).hexdigest() == golden["sha256"]
    assert not [*model.buffers()]


def test_inpainting_models_read_the_image_and_its_mask_too():
    with torch.device("meta"):
        shapes = [
            ModelRegistry.get_model(f"GLIDE-{name}-inpaint")().input_blocks[0][0].weight.shape[1]
            for name in ("base", "upsample")
        ]
    assert shapes == [7, 10]


@pytest.mark.slow
@torch.no_grad()
def test_the_base_models_values_are_the_public_codes():
    model = fill_by_names(ModelRegistry.get_model("GLIDE-base")()).eval()
    condition = model.null_condition(2, "cpu")
    ids, golden = torch.tensor(GOLDEN["ids"]), GOLDEN["base"]
    condition["ids"][0, : len(ids)], condition["mask"][0, : len(ids)] = ids, True
    x = torch.from_numpy(drawn("input:x_base", (2, 3, 64, 64))).float()
    y = model(x, torch.tensor(golden["t"]), condition)
    for ours, key in (
        (y.flatten()[:8], "first8"),
        (y.mean((1, 2, 3)), "mean"),
        (y.std((1, 2, 3)), "std"),
        (y[0].mean((1, 2)), "chan_mean0"),
        (y[:, :, 5::20, 7::20], "grid"),
        (model.encode_text(condition)["pooled"][0, :4], "xf_proj_first4"),
    ):
        torch.testing.assert_close(ours, torch.tensor(golden[key]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["GLIDE-base", "GLIDE-latent"])
@torch.no_grad()
def test_texts_are_encoded_once_for_all_times(name):
    model = small_glide(name).eval()
    x, t, condition = inputs_for(model)
    encoded = model.encode_text(condition)
    assert encoded.keys() == {"pooled", "tokens"} | condition.keys() - {"ids", "mask"}
    assert model.encode_text(encoded) is encoded
    assert torch.equal(model(x, t, encoded), model(x, t, condition))
    # Each sample sees its own text alone, and what lies behind its end changes nothing.
    other = {key: part.clone() for key, part in condition.items()}
    other["ids"][0] = torch.where(condition["mask"][0], 3, condition["ids"][0])
    other["ids"][1] = 5  # of an empty text
    changed = model(x, t, other) != model(x, t, condition)
    assert changed.flatten(1).any(1).tolist() == [True, False, False]
    null = model(x, t, model.null_condition(3, "cpu"))
    empty = model(
        x, t, {**condition, "clip": condition["clip"] * 0} if "latent" in name else condition
    )
    assert torch.equal(null[1], empty[1]) and not torch.equal(null[0], empty[0])


@torch.no_grad()
def test_inpainting_sees_known_pixels_alone_and_the_upsampler_any_smaller_image():
    model = small_glide("GLIDE-upsample-inpaint").eval()
    x, t, condition = inputs_for(model)
    expected, mask = model(x, t, condition), condition["inpaint_mask"]
    hidden = condition | {"inpaint_image": condition["inpaint_image"] + 9 * (1 - mask)}
    assert torch.equal(model(x, t, hidden), expected)
    shown = condition | {"inpaint_image": condition["inpaint_image"] + mask}
    assert not torch.allclose(model(x, t, shown), expected)
    flat = [condition | {"low_res": torch.full((3, 3, n, n + 1), 0.5)} for n in (2, 7, 16)]
    for other in flat[1:]:
        torch.testing.assert_close(model(x, t, other), model(x, t, flat[0]))
    # Other heights and widths, too.
    larger = torch.randn(3, 3, 20, 26)
    condition = condition_for(model, size=(20, 26))
    assert model(larger, t, condition).shape == (3, 6, 20, 26)
    torch.testing.assert_close(
        model(larger, t, condition), transcribed(model, larger, t, condition), atol=1e-4, rtol=1e-4
    )


def test_inputs_of_another_kind_are_refused():
    model, upsampler = small_glide(), small_glide("GLIDE-upsample-inpaint")
    x, t, condition = inputs_for(model)
    whole, encoded = condition_for(upsampler), model.encode_text(condition)

    def changed(key, value):
        return condition | {key: value}

    for call, message in (
        (lambda: model(x[:, :2], t, condition), r"\(3, 16, 16\), or H and W multiples of 2, got"),
        (lambda: model(x[..., :15], t, condition), r"got \(3, 16, 15\)"),
        (lambda: model(x, t[:1], condition), r"t must be \(3,\), got \(1,\)"),
        (lambda: model(x, t, condition, t), "without average_velocity=True"),
        (lambda: model(x, t), "its condition is a dict of ids, mask, got NoneType"),
        (lambda: model(x, t, t.long()), "a dict of ids, mask, got Tensor"),
        (lambda: model(x, t, whole), "must hold ids, mask, got ids, inpaint_image"),
        (lambda: upsampler(x, t, condition), "hold ids, inpaint_image, .*low_res, mask, got ids"),
        (lambda: model(x, t, encoded | condition), "must hold pooled, tokens, got ids"),
        (lambda: model(x, t, changed("ids", t.long()[:, None])), r"must be \(3, 6\), got \(3, 1\)"),
        (lambda: model(x, t, changed("mask", condition["ids"])), "must be torch.bool, got"),
        (lambda: upsampler(x, t, whole | {"inpaint_mask": x}), r"\(3, 1, 16, 16\), got \(3, 3, 16"),
        (lambda: upsampler(x, t, whole | {"low_res": x[0]}), r"be \(3, 3, None, None\), got"),
        (lambda: small_glide(base_channels=48), "base_channels must be a multiple of 32 and of h"),
        (lambda: small_glide(text_heads=3), "text_width of text_heads, got 32, 16, 32 and 3"),
        (lambda: small_glide(input_size=17), r"multiple of 2 for each but one, got \[1, 2\] and 1"),
        (lambda: small_glide(schedule="cosine"), "'schedule' must be squaredcos_cap_v2 or linear"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_half_precision_keeps_times_and_norms_in_float32():
    model = small_glide().eval()
    x, t, condition = inputs_for(model)
    seen = []
    model.time_embed.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x, t, condition)
    (given, made), expected = seen[0], model(x, t, condition)
    assert output.dtype == torch.bfloat16 and given.dtype == made.dtype == torch.float32
    error = (output.float() - expected).square().mean().sqrt()
    assert error < 0.05 * expected.std()
    # Values whose squares bfloat16 cannot sum: only float32 statistics tell them from a constant.
    norm = model.out[0]
    far = (torch.randn(2, 32, 64, 64) + 40).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        normalized = norm(far)
    plain = torch.nn.functional.group_norm(far.float(), 32, norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(normalized.float(), plain, atol=0.05, rtol=0.02)
    # As a whole, too.
    output = model.bfloat16()(x.bfloat16(), t, condition)
    assert (output.float() - expected).square().mean().sqrt() < 0.1 * expected.std()


def saved_bytes(model, inputs):
    """What autograd keeps for backward, each storage once, without the parameters."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*inputs)
    output.square().sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize("name", ["GLIDE-upsample", "GLIDE-latent"])
def test_gradient_checkpointing_covers_every_block_with_equal_gradients(name):
    model = small_glide(name, num_res_blocks=2).eval()
    inputs = inputs_for(model)
    other = copy.deepcopy(model)
    other.enable_gradient_checkpointing()
    calls = []
    blocks = [m for m in other.modules() if isinstance(m, ResBlock | AttentionBlock | TextBlock)]
    for block in blocks:
        block.register_forward_pre_hook(lambda block, args: calls.append(block))
    sizes = [saved_bytes(network, inputs) for network in (model, other)]
    assert len(blocks) > 15 and len(calls) == 2 * len(blocks)
    assert sizes[1] < 0.4 * sizes[0]
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_blocks_to_shard_hold_all_blocks_and_most_parameters():
    with torch.device("meta"):
        model = ModelRegistry.get_model("GLIDE-base")()
    inside = [part for block in model.blocks_to_shard() for part in block.modules()]
    kinds = ResBlock | AttentionBlock | TextBlock
    assert {part for part in model.modules() if isinstance(part, kinds)} <= {*inside}
    held = sum(p.numel() for block in model.blocks_to_shard() for p in block.parameters())
    assert held > 0.9 * sum(p.numel() for p in model.parameters())
    assert (
        model.input_blocks[3][0]
        .in_layers[2]
        .weight.is_contiguous(memory_format=torch.channels_last)
    )


@pytest.mark.slow
def test_compiled_blocks_keep_names_and_results(monkeypatch):
    """Traced as ever, but not made into C++, which takes a minute a shape."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = small_glide(channel_mult=(1, 2, 4)).eval()
    inputs, keys = inputs_for(model), list(model.state_dict())
    expected = model(*inputs)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile_blocks()
    assert list(model.state_dict()) == keys
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # none is left uncompiled
        torch.testing.assert_close(model(*inputs), expected, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 8  # what Dynamo allows by itself
    assert not torch._dynamo.utils.counters["graph_break"]
