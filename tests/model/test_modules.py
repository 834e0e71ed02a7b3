"""Building blocks against torch's own modules and analytic facts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wfimagevae.engine.cost import HeldBytes
from wfimagevae.model.modeling_aebase import DiagonalGaussian
from wfimagevae.model.modules.blocks import (
    NORMS,
    AttnBlock2D,
    ChunkedAttention,
    Downsample,
    ResnetBlock2D,
    Upsample,
    attend,
    norm_activation_conv,
)

LAST = torch.channels_last
ACTIVATIONS = pytest.mark.parametrize("activation", [F.silu, F.relu])
BY_NORM = pytest.mark.parametrize("norm_type", ["layernorm", "groupnorm"])


def image_like(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype).contiguous(memory_format=LAST)


def random_norm(norm_type, channels):
    norm = NORMS[norm_type](channels)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return norm


def compare(actual, expected, inputs):
    """Values and gradients."""
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, inputs, upstream) for y in (actual, expected)]
    torch.testing.assert_close(*gradients)


def saved_numbers(function):
    """Numbers that the result's graph holds in memory beside its leaves, each storage once."""
    sizes = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if not tensor.is_leaf or not tensor.requires_grad:
            sizes[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = function()
    return sum(sizes.values()), result


def test_layernorm_normalizes_the_channels_of_each_pixel():
    norm, x = NORMS["layernorm"](24), 5 + 3 * image_like(2, 24, 4, 6)
    y = norm(x)
    assert y.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 4, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(2, 4, 6), atol=1e-4, rtol=0)
    assert set(norm.state_dict()) == {"norm.weight", "norm.bias"}


def test_groupnorm_is_torchs_with_32_groups():
    norm, x = random_norm("groupnorm", 64), image_like(2, 64, 4, 6)
    torch.testing.assert_close(norm(x), F.group_norm(x, 32, norm.weight, norm.bias, 1e-6))
    assert norm(x).is_contiguous(memory_format=LAST)
    assert set(norm.state_dict()) == {"weight", "bias"}
    with pytest.raises(ValueError, match="multiples of 32, got 24"):
        NORMS["groupnorm"](24)


@BY_NORM
def test_norms_compute_in_float32_under_autocast(norm_type):
    norm, x = random_norm(norm_type, 64), (20 + image_like(2, 64, 4, 6)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    exact = norm.double()(x.double())
    assert y.dtype == torch.bfloat16  # no float32 copy of the activations
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-3)


@BY_NORM
@ACTIVATIONS
def test_fused_block_equals_its_parts_in_value_and_gradients(norm_type, activation):
    norm, conv = random_norm(norm_type, 64).double(), nn.Conv2d(64, 5, 3, padding=1).double()
    x = image_like(2, 64, 6, 4, dtype=torch.float64).requires_grad_()
    fused, plain = norm_activation_conv(norm, activation, conv, x), conv(activation(norm(x)))
    compare(fused, plain, [x, *norm.parameters(), *conv.parameters()])
    assert fused.is_contiguous(memory_format=LAST)


@BY_NORM
@ACTIVATIONS
def test_fused_block_keeps_nothing_but_its_input(norm_type, activation):
    norm, conv = random_norm(norm_type, 32), nn.Conv2d(32, 32, 3, padding=1)
    x = image_like(1, 32, 16, 16).requires_grad_()
    count, _ = saved_numbers(lambda: norm_activation_conv(norm, activation, conv, x * 1))
    assert count == x.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_block_follows_autocast(dtype):
    norm, conv = random_norm("layernorm", 16), nn.Conv2d(16, 8, 3, padding=1)
    x = torch.randn(2, 16, 8, 8)
    expected = norm_activation_conv(norm, F.silu, conv, x)
    with torch.autocast("cpu", dtype):
        y = norm_activation_conv(norm, F.silu, conv, x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in (*conv.parameters(), *norm.parameters()))


def test_resnet_block_adds_its_input():
    block, x = ResnetBlock2D(8, 8), image_like(1, 8, 4, 4)
    for parameter in block.conv2.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(block(x), x)
    assert not [key for key in block.state_dict() if "nin_shortcut" in key]


def test_resnet_block_drops_in_training_only_and_keeps_its_type():
    block, x = ResnetBlock2D(8, 16, dropout=0.5), image_like(1, 8, 4, 4)
    assert not torch.equal(block(x), block(x))
    block.eval()
    torch.testing.assert_close(block(x), block(x), rtol=0, atol=0)
    assert block(x).is_contiguous(memory_format=LAST)
    half = copy.deepcopy(block).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), block(x), rtol=0.05, atol=0.1)


def test_attention_is_softmax_over_all_positions():
    block = AttnBlock2D(16).double()
    x = image_like(2, 16, 3, 5, dtype=torch.float64)
    tokens = block.norm(x).flatten(2).transpose(1, 2)  # (2, 15, 16)
    q, k, v = (F.linear(tokens, c.weight[..., 0, 0], c.bias) for c in (block.q, block.k, block.v))
    weights = (q @ k.transpose(1, 2) / 4).softmax(-1)
    out = (weights @ v).transpose(1, 2).reshape(2, 16, 3, 5)
    torch.testing.assert_close(block(x), x + block.proj_out(out))


def test_attention_holds_no_matrix_of_positions():
    block, x = AttnBlock2D(16), image_like(1, 16, 32, 32).requires_grad_()
    count, y = saved_numbers(lambda: block(x))
    assert count < 1024 * 1024 / 4
    assert y.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("num_scores", [1, 500, 10**6])  # queries at a time: 1, 6, all
def test_attention_by_chunks_is_that_of_torch(num_scores):
    inputs = torch.randn(3, 2, 37, 24, dtype=torch.float64).requires_grad_().unbind(0)
    expected = F.scaled_dot_product_attention(*inputs)
    compare(ChunkedAttention.apply(*inputs, num_scores), expected, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_attention_by_chunks_errs_no_more_than_its_type(dtype):
    """Values and gradients of sharp attention, beside those of torch in the same type."""
    exact = [x.to(dtype).double() for x in torch.randn(3, 2, 64, 384) * 3**0.5]
    upstream = torch.randn(2, 64, 384).to(dtype)

    def results(function, inputs):
        inputs = [x.detach().requires_grad_() for x in inputs]
        output = function(*inputs)
        return output, *torch.autograd.grad(output, inputs, upstream.to(output.dtype))

    def errors(function):
        found, truth = results(function, [x.to(dtype) for x in exact]), results(torch_s, exact)
        assert all(x.dtype == dtype for x in found)
        return [(a - b).norm() / b.norm() for a, b in zip(found, truth, strict=True)]

    torch_s = F.scaled_dot_product_attention
    own = errors(lambda *inputs: ChunkedAttention.apply(*inputs, 2 * 64 * 10))
    assert all(
        a < max(1.5 * b, torch.finfo(dtype).eps) for a, b in zip(own, errors(torch_s), strict=True)
    )


def test_attention_by_chunks_holds_memory_that_grows_with_the_tokens_alone():
    peaks = []
    for count in (256, 512, 1024):
        inputs = [torch.randn(1, count, 16, requires_grad=True) for _ in range(3)]
        with HeldBytes() as held:
            output = ChunkedAttention.apply(*inputs, 2048)
            output.sum().backward()
        peaks.append(held.most)
    assert peaks[2] < 1024 * 1024 * 4 / 4  # a quarter of all scores
    assert peaks[2] - peaks[1] <= 2.2 * (peaks[1] - peaks[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wide_attention_on_a_gpu_agrees_with_float64(dtype):
    exact = torch.randn(3, 2, 1, 1000, 512, device="cuda").to(dtype).double()
    upstream = torch.randn(2, 1, 1000, 512, device="cuda").to(dtype)

    def results(inputs):
        inputs = [x.detach().requires_grad_() for x in inputs]
        output = attend(*inputs)
        return output, *torch.autograd.grad(output, inputs, upstream.to(output.dtype))

    for actual, expected in zip(results(exact.to(dtype)), results(exact), strict=True):
        assert (actual - expected).norm() < 4 * torch.finfo(dtype).eps * expected.norm()


def test_downsample_pads_right_and_bottom_by_zeros():
    down, x = Downsample(1), torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    nn.init.zeros_(down.conv.weight)
    nn.init.zeros_(down.conv.bias)
    down.conv.weight.data[0, 0, 2, 2] = 1.0  # picks the pixel two to the right and below
    assert torch.equal(down(x), torch.tensor([[[[11.0, 0.0], [0.0, 0.0]]]]))
    assert down(x).shape == (1, 1, 2, 2)


def test_upsample_is_nearest_then_convolution():
    up = Upsample(6).double()
    x = image_like(2, 6, 3, 5, dtype=torch.float64).requires_grad_()
    plain = up.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    compare(up(x), plain, [x, *up.parameters()])


def test_kl_is_that_of_torch_distributions():
    posterior = DiagonalGaussian(torch.randn(3, 8, 2, 5))
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl_of_values(), expected)


def test_posterior_is_float32_and_clamped():
    moments = torch.full((1, 4, 2, 2), 100.0, dtype=torch.bfloat16)
    posterior = DiagonalGaussian(moments)
    assert posterior.mean.dtype == posterior.sample().dtype == torch.float32
    assert torch.equal(posterior.logvar, torch.full((1, 2, 2, 2), 20.0))
    assert DiagonalGaussian(-moments).logvar.max() == -30
    assert DiagonalGaussian(moments.double()).mode().dtype == torch.float64


def test_posterior_sample_takes_noise_or_a_generator():
    posterior = DiagonalGaussian(torch.randn(2, 4, 3, 3))
    noise = torch.randn(2, 2, 3, 3)
    expected = posterior.mean + posterior.std * noise
    torch.testing.assert_close(posterior.sample(noise=noise), expected)
    draws = [posterior.sample(torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*draws)
    with pytest.raises(ValueError, match=r"latent's shape \(2, 2, 3, 3\), got \(1, 2, 3, 3\)"):
        posterior.sample(noise=noise[:1])
