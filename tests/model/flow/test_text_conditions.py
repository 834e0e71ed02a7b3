"""Texts in the flow transformer: what they change, what they must not, and weights without them."""

import logging

import pytest
import torch

from tests.model.flow.models import EXTERNAL, inputs_for, small_model
from wfimagevae.diffusion.guidance import map_tensors
from wfimagevae.model.flow.flow_transformer import FlowTransformer
from wfimagevae.model.flow.velocity_model import VelocityModel
from wfimagevae.model.text import open_text_encoder

ATTENTIONS = ("cross", "joint")
ENCODERS = {"bytes": {}, "external": EXTERNAL}


def text_model(attention, encoder="bytes", **options):
    return small_model(f"FlowDiT-S/2 {attention}", **(ENCODERS[encoder] | options))


def prompts(model, *texts):
    return open_text_encoder("bytes", "cpu", model.config.text_length)(texts)


def with_weights(model, **options):
    """The same weights in a model of another config."""
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    other = FlowTransformer(**(config | options))
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_batch_without_texts_leaves_no_gradient_out_for_ddp_to_wait_for(attention, encoder):
    model = text_model(attention, encoder)
    x, t, *_ = inputs_for(model)
    model(x, t, model.null_condition(3, "cpu")).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_prompt_changes_its_own_sample_alone(attention, encoder):
    model = text_model(attention, encoder).eval()
    x, t, condition, _ = inputs_for(model)
    expected = model(x, t, condition)
    rows = torch.tensor([2, 1, 2])
    other = model(x, t, map_tensors(lambda leaf: leaf[rows], condition))
    torch.testing.assert_close(other[1:], expected[1:])
    assert not torch.allclose(other[0], expected[0], atol=1e-3)
    if encoder == "bytes":  # the order of words counts
        ab, ba = (model(x[:1], t[:1], prompts(model, s)) for s in ("red on blue", "blue on red"))
        assert not torch.allclose(ab, ba, atol=1e-4)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_room_behind_the_end_of_a_text_changes_nothing(attention, dtype):
    model = text_model(attention).eval()
    longer = with_weights(model, text_length=20).eval()
    x, t, _, _ = inputs_for(model)
    texts = ("a red", "", "blue circle")
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected, actual = (m(x, t, prompts(m, *texts)) for m in (model, longer))
    tolerance = {"rtol": 0, "atol": 0.05} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_what_stands_outside_the_mask_is_never_read(attention):
    model = text_model(attention, "external").eval()
    x, t, condition, _ = inputs_for(model)
    tokens = condition["tokens"].clone()
    tokens[~condition["mask"]] = 100.0
    expected = model(x, t, condition)
    torch.testing.assert_close(model(x, t, condition | {"tokens": tokens}), expected)
    moved = condition | {"mask": torch.ones_like(condition["mask"])}
    assert not torch.allclose(model(x, t, moved)[1], expected[1], atol=1e-3)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_empty_prompt_is_the_null_condition(attention):
    model = text_model(attention, num_classes=4).eval()
    x, t, condition, _ = inputs_for(model)
    null = model.null_condition(3, "cpu")
    assert null["label"].tolist() == [4, 4, 4]
    empty = {"label": null["label"]} | prompts(model, "", "  ", "")
    expected = model(x, t, null)
    assert expected.isfinite().all()
    assert torch.equal(model(x, t, empty), expected)
    # The same beside texts that are not empty.
    mixed = map_tensors(lambda a, b: torch.cat([a[:1], b[1:]]), null, condition)
    torch.testing.assert_close(model(x, t, mixed)[0], expected[0])


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", ["DiT-S/2", "FlowDiT-S/2"])
def test_weights_without_texts_start_unchanged_with_cross_attention(
    encoder, name, tmp_path, caplog
):
    plain = small_model(name, num_classes=4).eval()
    plain.save_pretrained(tmp_path)
    options = {"text_encoder": encoder, "text_length": 12, "byte_width": 32} | ENCODERS[encoder]
    with caplog.at_level(logging.INFO):
        model = VelocityModel.from_pretrained(tmp_path, overrides=options)
    assert "no reader of texts in the weights; a fresh one changes nothing" in caplog.text
    x, t, condition, _ = inputs_for(model)
    expected = plain(x, t, condition["label"])
    torch.testing.assert_close(model(x, t, condition), expected)
    # The layer that starts as zero learns at once, and from then on the text counts.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):
        model(x, t, condition).square().sum().backward()
        optimizer.step()
    null = model.null_condition(3, "cpu") | {"label": condition["label"]}
    assert not torch.allclose(model(x, t, condition)[0], model(x, t, null)[0], atol=1e-5)
    # Joint attention says that it changes results.
    with caplog.at_level(logging.INFO):
        VelocityModel.from_pretrained(tmp_path, overrides=options | {"text_attention": "joint"})
    assert "changes every result until it is trained" in caplog.text


def test_weights_that_read_texts_otherwise_are_refused(tmp_path):
    text_model("cross").save_pretrained(tmp_path)
    for overrides, message in (
        ({"text_attention": "joint", "text_encoder": "bytes"}, "missing: .*text_stream"),
        ({"byte_depth": 3, "text_encoder": "bytes"}, "missing: text_encoder.blocks.2"),
        ({"text_encoder": "none"}, "unexpected: blocks.0.text_attn"),
    ):
        with pytest.raises(ValueError, match=message):
            VelocityModel.from_pretrained(tmp_path, overrides=overrides)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_bare_weights_load_with_the_keys_of_their_texts(attention, encoder, tmp_path):
    model = text_model(attention, encoder, num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "flow.pt")
    keys = ["hidden_size", "depth", "num_heads", "input_size", "pooled_width"]
    keys += [key for key in model.config if key.startswith(("text_", "byte_"))]
    overrides = {key: model.config[key] for key in keys}
    again = VelocityModel.from_pretrained(
        tmp_path / "flow.pt", model_name="FlowDiT-S/2", overrides=overrides
    )
    assert again.to_json_string() == model.to_json_string()
    inputs = inputs_for(model)
    assert torch.equal(again(*inputs), model(*inputs))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_other_sizes_of_samples_work_with_texts_and_a_new_model_predicts_zero(attention):
    model = text_model(attention)
    _, t, condition, _ = inputs_for(model)
    x = torch.randn(3, 4, 12, 16)
    assert model(x, t, condition).shape == x.shape
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    assert not FlowTransformer(**config)(x, t, condition).any()  # with fresh weights


def test_depth_of_one_and_none():
    for depth in (0, 1):
        model = text_model("joint", depth=depth)
        model(*inputs_for(model)).sum().backward()
        assert all(p.grad is not None for p in model.blocks.parameters())


def test_conditions_of_another_form_are_refused():
    model, external = text_model("cross", num_classes=4), text_model("joint", "external")
    x, t, condition, _ = inputs_for(model)
    outside = inputs_for(external)[2]
    ids = condition["ids"]
    for network, wrong, message in (
        (model, None, "condition is a dict of ids, label, got NoneType; null_condition"),
        (model, torch.arange(3), "condition is a dict of ids, label, got Tensor"),
        (model, {"ids": ids}, "must hold ids, label, got ids"),
        (external, outside | {"ids": ids}, "hold mask, pooled, tokens, got ids, ma"),
        (model, condition | {"ids": condition["ids"][:, :5]}, r"\['ids'\] must be \(3, 12\), got"),
        (model, condition | {"ids": condition["ids"].int()}, "must be torch.int64, got torch.int3"),
        (model, condition | {"label": torch.arange(2)}, r"condition must be \(3,\), got \(2,\)"),
        (external, outside | {"mask": outside["mask"].float()}, "must be torch.bool, got torch.fl"),
        (external, outside | {"pooled": torch.ones(3, 9)}, r"must be \(3, 10\), got \(3, 9\)"),
    ):
        with pytest.raises(ValueError, match=message):
            network(x, t, wrong)
