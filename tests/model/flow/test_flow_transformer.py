"""The transformer against golden values of SiT, and the facts its parts must obey."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.model.flow.models import SIT, golden_sit, inputs_for, small_model
from wfimagevae.model.flow.embed import position_table, rotate, rotation_table
from wfimagevae.model.flow.flow_transformer import FlowTransformer
from wfimagevae.model.flow.normalize import layer_norm, rms_norm
from wfimagevae.model.flow.small_networks import GroupNorm
from wfimagevae.model.registry import ModelRegistry


def test_golden_velocity_and_position_table():
    golden = load_file(SIT / "expected.safetensors")
    with torch.no_grad():
        velocity = golden_sit()(golden["x"], golden["t"], golden["y"])
    torch.testing.assert_close(velocity, golden["velocity"], rtol=0, atol=1e-4)
    golden = load_file(SIT / "weights.safetensors")["pos_embed"]
    torch.testing.assert_close(position_table(32, 4)[None], golden)


def test_names_and_shapes_are_those_of_public_xl_checkpoints():
    public = json.loads((SIT / "keys_xl2.json").read_text())
    with torch.device("meta"):
        model = ModelRegistry.get_model("DiT-XL/2")(learn_sigma=True, num_classes=1000)
    state_dict = model.state_dict()
    assert {key: list(value.shape) for key, value in state_dict.items()} == public
    # As public code counts, which holds the fixed position table as a parameter.
    assert sum(value.numel() for value in state_dict.values()) == 675_129_632
    assert "pos_embed" not in dict(model.named_parameters())


@pytest.mark.parametrize(
    ("size", "expected"),
    [("S", (384, 12, 6)), ("B", (768, 12, 12)), ("L", (1024, 24, 16)), ("XL", (1152, 28, 16))],
)
def test_presets_have_the_published_sizes(size, expected):
    with torch.device("meta"):
        plain = ModelRegistry.get_model(f"DiT-{size}/4")()
        today = ModelRegistry.get_model(f"FlowDiT-{size}/1")()
    for config in (plain.config, today.config):
        assert (config.hidden_size, config.depth, config.num_heads) == expected
    assert (plain.config.patch_size, today.config.patch_size) == (4, 1)
    parts = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope"}
    assert parts.items() <= dict(today.config).items()
    # SwiGLU's third matrix must not make the block dearer.
    blocks = [sum(p.numel() for p in model.blocks[0].parameters()) for model in (plain, today)]
    assert blocks[1] == pytest.approx(blocks[0], rel=0.01)


def test_a_new_model_predicts_zero_and_its_blocks_change_nothing():
    model = FlowTransformer(input_size=8, hidden_size=32, depth=2, num_heads=4)
    x, t, *_ = inputs_for(model)
    assert not model(x, t).any()
    tokens = torch.randn(3, 16, 32)
    assert torch.equal(model.blocks[0](tokens, torch.randn(3, 32)), tokens)


def test_patches_are_put_back_where_they_came_from():
    """With tokens passed on unchanged, shifting the input by a patch shifts the output."""
    model = small_model("FlowDiT-S/2", depth=0, position="rope")
    x, t, *_ = inputs_for(model)
    expected = model(x, t).roll((2, 4), dims=(2, 3))
    torch.testing.assert_close(model(x.roll((2, 4), dims=(2, 3)), t), expected)


def test_rotation_keeps_lengths_and_makes_products_depend_on_distances_alone():
    rotation = rotation_table(16, 5, 7).double()
    q, k = torch.randn(2, 16, dtype=torch.float64)
    everywhere = torch.ones(1, 1, 35, 1, dtype=torch.float64)
    turned_q, turned_k = (rotate(v * everywhere, rotation)[0, 0] for v in (q, k))
    torch.testing.assert_close(turned_q.norm(dim=1), q.norm().expand(35), rtol=1e-6, atol=0)
    products = (turned_q @ turned_k.T).view(5, 7, 5, 7)
    for row, column in ((0, 0), (1, 3), (3, 4)):
        shifted = products[row, column, row + 1, column + 2]
        torch.testing.assert_close(shifted, products[0, 0, 1, 2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(products[0, 0, 1, 2], products[0, 0, 2, 1])


def test_rope_takes_other_sizes_and_absolute_positions_refuse_them():
    x, t = torch.randn(2, 4, 12, 16), torch.rand(2)
    assert small_model("FlowDiT-S/2")(x, t).shape == x.shape
    with pytest.raises(ValueError, match=r"samples of \(4, 8, 8\), got \(4, 12, 16\)"):
        small_model("DiT-S/2")(x, t)
    with pytest.raises(ValueError, match=r"H and W multiples of 2, got \(4, 11, 16\)"):
        small_model("FlowDiT-S/2")(x[:, :, 1:], t)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batchnorm"}, "'norm' must be layernorm or rmsnorm, got 'batchnorm'"),
        ({"prediction": "x0"}, "'prediction' must be velocity or data or epsilon"),
        ({"input_size": 9}, "input_size must be a multiple of patch_size, got 9 and 2"),
        ({"hidden_size": 30}, "hidden_size must be a multiple of num_heads, got 30 and 4"),
        ({"hidden_size": 12, "position": "rope"}, "heads of a multiple of 4, got 3"),
        (
            {"text_encoder": "words"},
            "'text_encoder' must be none or bytes or external, got 'wo",
        ),
        ({"text_attention": "self"}, "'text_attention' must be cross or joint, got 'self'"),
        ({"text_encoder": "external"}, "'external' needs text_width above 0, got 0"),
        ({"text_length": 0}, "'bytes' needs text_length above 0, got 0"),
        ({"byte_width": 40}, "byte_width must be a multiple of 32, got 40"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_model("DiT-S/2 cross", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_formulas_of_the_norms_equal_the_fused_ones(dtype, monkeypatch):
    x = (5 + 3 * torch.randn(2, 8, 6, 6)).to(dtype)
    weight = torch.randn(6)
    group = GroupNorm(8)
    with torch.no_grad():
        group.weight.normal_()
        group.bias.normal_()
    functions = (layer_norm, rms_norm, lambda v: rms_norm(v, weight), group)
    fused = [function(x) for function in functions]
    torch.testing.assert_close(fused[0].float(), F.layer_norm(x.float(), (6,)), rtol=0, atol=0.02)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for function, expected in zip(functions, fused, strict=True):
        assert expected.dtype == dtype
        actual = function(x)
        assert actual.dtype == dtype
        tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.parametrize(("name", "is_normed"), [("FlowDiT-S/2", True), ("DiT-S/2", False)])
def test_the_scale_of_queries_and_keys_matters_without_qk_norm_only(name, is_normed):
    model = small_model(name).eval()
    inputs = inputs_for(model)
    before = model(*inputs)
    for block in model.blocks:
        for parameter in block.attn.qkv.parameters():
            parameter.data[: 2 * block.attn.qkv.in_features] *= 8.0
    assert torch.allclose(model(*inputs), before, rtol=1e-3, atol=1e-4) == is_normed
    # Vectors of d values whose root mean square is 1 have length sqrt(d).
    q, k, _ = block.attn.project(torch.randn(2, 16, 32))
    logits = q @ k.transpose(2, 3) / 8**0.5
    assert logits.abs().max() <= 8**0.5 * (1 + 1e-5) or not is_normed


@pytest.mark.parametrize("name", ["DiT-S/2", "FlowDiT-S/2"])
def test_autocast_stays_near_float32(name):
    model = small_model(name, num_classes=4, average_velocity=True)
    inputs = inputs_for(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(*inputs)
    expected = model(*inputs)
    error = (low.float() - expected).norm() / expected.norm()
    assert error < 0.03


@pytest.mark.parametrize("name", ["DiT-S/2", "FlowDiT-S/2", "DiT-S/2 joint", "DiT-S/2 cross"])
def test_tokens_stay_bfloat16_from_block_to_block_under_autocast(name):
    model, streams = small_model(name), []
    for block in [*model.blocks, model.final_layer]:
        block.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(*inputs_for(model))
    assert streams == [torch.bfloat16] * 3
    model(*inputs_for(model))
    assert streams[3:] == [torch.float32] * 3


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_norms_of_bfloat16_tokens_compute_in_float32(norm):
    x = (20 + torch.randn(4, 16, 384)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), norm(x.double()), rtol=2**-8, atol=1e-5)


def test_predicted_data_become_the_velocity_that_leads_there():
    """A fresh network predicts zeros: from x at t, (0 - x) / (1 - t) arrives there at t = 1."""
    options = {"input_size": 8, "in_channels": 3, "hidden_size": 32, "depth": 1, "num_heads": 2}
    model = ModelRegistry.get_model("FlowDiT-S/4")(prediction="data", **options)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.0, 0.5, 0.9])
    with torch.no_grad():
        arrived = x + (1 - t).view(-1, 1, 1, 1) * model(x, t)
    torch.testing.assert_close(arrived, torch.zeros_like(x), atol=1e-6, rtol=0)
    with torch.no_grad():  # no division by nothing at the end
        assert model(x, torch.ones(3)).isfinite().all()
