"""The model against golden values of the reference and the promises of its docstrings."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from wfimagevae.model.modules.blocks import NORMS
from wfimagevae.model.vae.modeling_wfvae2_image import WFVAE2ImageModel
from wfimagevae.model.vae.tiling import pad_to_multiple

ROOT = Path(__file__).parents[2]
LAST = torch.channels_last


TINY = {"latent_dim": 4, "base_channels": [8, 16, 24]}
TINY |= {"encoder_energy_flow_size": 8, "decoder_energy_flow_size": 8}
VARIANTS = [
    {},
    {"activation": "relu"},
    {"activation": "bezier"},
    {"spade": True},
    {"activation": "bezier", "spade": True, "decoder_num_resblocks": 3},
]
ALL_VARIANTS = pytest.mark.parametrize("options", VARIANTS, ids=str)


def tiny_model(**options) -> WFVAE2ImageModel:
    """A small model whose modulations, if it has any, do something, as after training."""
    torch.manual_seed(0)
    model = WFVAE2ImageModel(**TINY | options)
    for name, parameter in model.named_parameters():
        if ".spade" in name and ".conv_out." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def loss_of(model, x, noise):
    out = model(x, noise=noise)
    pairs = zip(out.extra_output[0], reversed(out.extra_output[1]), strict=True)
    wavelet = sum((a - b).abs().mean() for a, b in pairs)
    return (out.sample - x).abs().mean() + wavelet + 1e-3 * out.latent_dist.kl_of_values().mean()


def gradients(model, x, noise):
    model.zero_grad()
    loss_of(model, x, noise).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("norm_type", ["layernorm", "groupnorm"])
def test_golden_values(norm_type):
    folder = ROOT / "tests" / "golden" / f"wfvae2_image_{norm_type}"
    model = WFVAE2ImageModel.from_config(folder / "config.json").eval()
    model.load_weights(load_file(folder / "weights.safetensors"))  # Haar buffers included
    expected = load_file(folder / "expected.safetensors")
    with torch.no_grad():
        encoded = model.encode(expected["x"])
        decoded = model.decode(expected["latent"])
    posterior = encoded.latent_dist
    mean, logvar = expected["moments"].chunk(2, dim=1)
    actual = {
        "mean": (posterior.mean, mean),
        "logvar": (posterior.logvar, logvar),
        "latent": (posterior.mode(), expected["latent"]),
        "kl": (posterior.kl_of_values().sum((1, 2, 3)), expected["kl"]),
        "recon": (decoded.sample, expected["recon"]),
    }
    for side, levels in (("enc", encoded.extra_output), ("dec", decoded.extra_output)):
        assert len(levels) == 2
        for i, coeffs in enumerate(levels):
            actual[f"{side}_coeffs.{i}"] = coeffs, expected[f"{side}_coeffs.{i}"]
    for name, (value, golden) in actual.items():
        torch.testing.assert_close(value, golden, rtol=0, atol=1e-4, msg=name)


def test_the_1024_example_has_the_published_size_and_is_the_default():
    path = ROOT / "examples" / "wfvae2-image-1024.json"
    with torch.device("meta"):
        model, defaults = WFVAE2ImageModel.from_config(path), WFVAE2ImageModel().config
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    assert count == {"encoder": 18_336_016, "decoder": 25_774_500}
    assert sum(count.values()) == 44_110_516
    example = json.loads(path.read_text())
    assert example.pop("_class_name") == "WFVAE2ImageModel"
    assert example == {key: json.loads(json.dumps(defaults[key])) for key in example}


def test_shapes_of_any_aspect():
    model = tiny_model()
    out = model(torch.zeros(2, 3, 24, 40))
    assert out.sample.shape == (2, 3, 24, 40)
    assert out.latent_dist.mean.shape == (2, 4, 3, 5)
    assert [tuple(c.shape[1:]) for c in out.extra_output[0]] == [(12, 6, 10), (12, 3, 5)]
    assert [tuple(c.shape[1:]) for c in out.extra_output[1]] == [(12, 3, 5), (12, 6, 10)]


def test_other_shapes_are_refused():
    model = tiny_model()
    for shape in ((1, 3, 20, 16), (1, 1, 16, 16), (3, 16, 16), (1, 3, 0, 16)):
        with pytest.raises(ValueError, match="got"):
            model.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"\(B, 4, h, w\), got \(1, 8, 2, 2\)"):
        model.decode(torch.zeros(1, 8, 2, 2))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("base_channels", [8], "at least 2"),
        ("decoder_base_channels", [8, 16], "same number of levels"),
        ("decoder_num_resblocks", 1, "between 2 and 1000, got 1"),
        ("layer_res_type", ["ResnetBlock2D"], "layer_res_type one entry less"),
        ("mid_layers_type", ["ConvBlock"], "must be a list, each ResnetBlock2D or AttnBlock2D"),
        ("norm_type", "rms", "'norm_type' must be layernorm or groupnorm, got 'rms'"),
        ("activation", "Bezier", "'activation' must be silu or relu or bezier, got 'Bezier'"),
        ("scale", [1.0], "scale needs 4 finite numbers"),
        ("shift", [0.0, 0.0, 0.0, float("nan")], "shift needs 4 finite numbers"),
        ("scale", [1.0, 1.0, 0.0, 1.0], "scale must be positive"),
    ],
)
def test_configs_that_make_no_sense_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**{option: value})


class _Convolutions(TorchDispatchMode):
    """Notes the channel stride of convolutions' inputs and results, also in backward."""

    def __init__(self):
        super().__init__()
        self.strides, self.num_backward = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.strides += [args[0].stride(1), result.stride(1)]
        elif func is torch.ops.aten.convolution_backward.default:
            self.num_backward += 1
            self.strides += [tensor.stride(1) for tensor in args[:2]]
            assert result[0] is None or result[0].is_contiguous(memory_format=LAST)
        return result


@pytest.mark.parametrize("norm_type", ["layernorm", "groupnorm"])
@pytest.mark.parametrize("spade", [False, True])
def test_everything_stays_channels_last(norm_type, spade):
    widths = {"base_channels": [32, 32, 64], "encoder_energy_flow_size": 32}
    model = tiny_model(norm_type=norm_type, decoder_energy_flow_size=32, spade=spade, **widths)
    x = torch.randn(2, 3, 32, 48)  # contiguous: the model packs it
    with _Convolutions() as seen:
        out = model(x)
        latent = out.latent_dist.mean.square() + out.latent_dist.std
        (out.sample.square().mean() + latent.sum()).backward()
    assert len(seen.strides) > 200
    assert set(seen.strides) == {1}
    assert out.sample.is_contiguous(memory_format=LAST)
    four_d = [p for p in model.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=LAST) for p in four_d)


@pytest.mark.parametrize("spade", [False, True])
def test_autocast_returns_float32_images_near_the_exact_ones(spade):
    model, x = tiny_model(spade=spade), torch.rand(1, 3, 32, 32) * 2 - 1
    noise = torch.randn(1, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, noise=noise)
    assert out.sample.dtype == out.latent_dist.mean.dtype == torch.float32
    assert all(c.dtype == torch.float32 for levels in out.extra_output for c in levels)
    torch.testing.assert_close(out.sample, model(x, noise=noise).sample, rtol=0.1, atol=0.1)
    out.sample.mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.decoder.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_whole_model_in_another_type(dtype):
    model, x = tiny_model().to(dtype), torch.rand(1, 3, 16, 16) * 2 - 1
    out = model(x, sample_posterior=False)  # float32 images are taken to the model's type
    assert out.sample.dtype == dtype
    assert torch.isfinite(out.sample).all()


def test_noise_decides_the_sample_and_the_mode_needs_none():
    model, x = tiny_model().eval(), torch.randn(2, 3, 16, 16)
    noise = torch.randn(2, 4, 2, 2)
    both = model(x, noise=noise).sample
    alone = model(x[1:], noise=noise[1:]).sample
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    mode = model.decode(model.encode(x).latent_dist.mode()).sample
    assert torch.equal(model(x, sample_posterior=False).sample, mode)


@ALL_VARIANTS
def test_every_parameter_learns_and_gradient_checkpointing_changes_no_gradient(options):
    model, x = tiny_model(**options), torch.randn(1, 3, 16, 24)
    noise = torch.randn(1, 4, 2, 3)
    plain = gradients(model, x, noise)
    for name, grad in plain.items():
        # A bias before the softmax over keys cancels out.
        assert grad.abs().max() > 0 or name.endswith("1.k.bias"), name
    model.enable_gradient_checkpointing()
    assert model.encoder.gradient_checkpointing and model.decoder.gradient_checkpointing
    torch.testing.assert_close(gradients(model, x, noise), plain)


def test_gradient_of_the_last_layer_runs_no_other_layer():
    model = tiny_model()
    sample = model(torch.randn(1, 3, 16, 16)).sample
    assert model.last_layer is model.decoder.conv_out.weight
    with _Convolutions() as seen:
        first = torch.autograd.grad(sample.sum(), model.last_layer, retain_graph=True)[0]
        second = torch.autograd.grad(2 * sample.sum(), model.last_layer, retain_graph=True)[0]
    assert seen.num_backward == 2
    torch.testing.assert_close(second, 2 * first)
    sample.sum().backward()
    torch.testing.assert_close(model.last_layer.grad, first)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("options", [{}, {"spade": True, "activation": "bezier"}], ids=str)
def test_compiled_blocks_give_the_same_gradients(options):
    model, x, noise = tiny_model(**options), torch.randn(1, 3, 16, 24), torch.randn(1, 4, 2, 3)
    plain, keys = gradients(model, x, noise), list(model.state_dict())
    model.compile_blocks()
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(gradients(model, x, noise), plain, rtol=1e-3, atol=1e-5)
    sample = model(x, noise=noise).sample
    torch.autograd.grad(sample.sum(), model.last_layer, retain_graph=True)
    sample.sum().backward()
    with torch.no_grad():
        model(x, noise=noise)


@pytest.mark.slow
@pytest.mark.parametrize("norm_type", ["layernorm", "groupnorm"])
def test_the_compiler_makes_one_kernel_of_a_norm_and_its_activation(norm_type):
    norm = NORMS[norm_type](64)
    x = torch.randn(2, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        compiled = torch.compile(lambda x: F.silu(norm(x)), fullgraph=True)
        result, code = run_and_get_code(compiled, x)
        torch.testing.assert_close(result, F.silu(norm(x)))
    assert result.is_contiguous(memory_format=torch.channels_last)
    (kernel,) = re.findall(r"^ +(cpp_fused\w+)\(", code[0], re.MULTILINE)
    assert "norm" in kernel and "silu" in kernel and "extern_kernels." not in code[0]


def test_latents_are_normalized_per_channel():
    model = tiny_model(latent_dim=2)
    model.set_latent_statistics(shift=[1.0, -2.0], scale=[2.0, 0.5])
    z = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    normalized = model.normalize_latents(z)
    assert torch.equal(normalized[0, :, 0, 0], torch.tensor([4.0, 3.0]))
    assert torch.equal(model.denormalize_latents(normalized), z)
    assert json.loads(model.to_json_string())["shift"] == [1.0, -2.0]


@pytest.mark.parametrize("size", [(8, 16), (7, 13), (9, 1), (2, 3)])
def test_padding_reflects_to_multiples_and_crops_back(size):
    x = torch.arange(float(size[0] * size[1])).view(1, 1, *size)
    padded, (height, width) = pad_to_multiple(x)
    assert (height, width) == size
    assert padded.shape[2] % 8 == padded.shape[3] % 8 == 0
    assert padded.shape[2] - height < 8
    assert torch.equal(padded[..., :height, :width], x)
    if min(size) > 7:
        assert torch.equal(padded, x)
    padded, _ = pad_to_multiple(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    assert padded[0, 0, 0].tolist() == [1, 2, 3, 2, 1, 2, 3, 2]
