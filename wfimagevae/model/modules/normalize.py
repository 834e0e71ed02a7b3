"""Norms over channels that keep images channels_last, activations, and the convolution after both.

Norms compute in float32 inside the kernels also where the tensors are bfloat16 or float16, so
under autocast no float32 copy of the activations is made or kept.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPS = 1e-6
NUM_GROUPS = 32
NUM_VALUES = 5  # of a Bezier curve: t and the four control points


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of each pixel of (B, C, H, W), affine."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)

    @staticmethod
    def normalize(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight, bias = _match(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            # Of channels_last memory, the permuted view is contiguous: nothing is copied.
            y = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, EPS)
        return y.permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.norm.weight, self.norm.bias)


class ChannelGroupNorm(nn.GroupNorm):
    """GroupNorm with 32 groups on (B, C, H, W), affine."""

    def __init__(self, channels: int):
        if channels % NUM_GROUPS:
            raise ValueError(
                f"norm_type 'groupnorm' needs widths that are multiples of {NUM_GROUPS}, "
                f"got {channels}; change the config's channels or use 'layernorm'"
            )
        super().__init__(NUM_GROUPS, channels, eps=EPS)

    @staticmethod
    def normalize(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight, bias = _match(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            y = F.group_norm(x, NUM_GROUPS, weight, bias, EPS)
        return y.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.weight, self.bias)


def _match(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters in the type that the kernel wants; the CPU's mixes bfloat16 and float32."""
    if x.device.type == "cpu":
        return weight, bias
    return weight.to(x.dtype), bias.to(x.dtype)


_NORMS = {"layernorm": ChannelLayerNorm, "groupnorm": ChannelGroupNorm}


def build_norm(norm_type: str, channels: int) -> ChannelLayerNorm | ChannelGroupNorm:
    """The norm that a config calls ``layernorm`` or ``groupnorm``."""
    if norm_type not in _NORMS:
        raise ValueError(f"unknown norm_type {norm_type!r}; use one of {', '.join(_NORMS)}")
    return _NORMS[norm_type](channels)


def cubic_bezier(values: Tensor) -> Tensor:
    """Each channel's own cubic Bezier curve: (B, 5 C, H, W) to (B, C, H, W).

    The input holds t before its sigmoid, then the control points p0 to p3, C channels each; the
    result is ``(1-t)^3 p0 + 3 (1-t)^2 t p1 + 3 (1-t) t^2 p2 + t^3 p3``.
    """
    if values.shape[1] % NUM_VALUES:
        raise ValueError(f"five values a channel expected, got {values.shape[1]} channels")
    t, p0, p1, p2, p3 = values.chunk(NUM_VALUES, dim=1)
    t = torch.sigmoid(t)
    # De Casteljau: only convex combinations, so half precision loses no more than its rounding.
    a, b, c = torch.lerp(p0, p1, t), torch.lerp(p1, p2, t), torch.lerp(p2, p3, t)
    return torch.lerp(torch.lerp(a, b, t), torch.lerp(b, c, t), t)


class BezierActivation(nn.Module):
    """Cubic Bezier whose place and control points a 1x1 convolution reads off the input.

    That projection has 5 C^2 + 5 C parameters for C channels, where SiLU and ReLU have none.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.project = nn.Conv2d(channels, NUM_VALUES * channels, 1)
        # Of a normalised input, this gives outputs about as large as SiLU's.
        nn.init.normal_(self.project.weight, std=channels**-0.5)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        return cubic_bezier(self.project(x))


# What needs no parameters is a function, which can work in place.
ELEMENTWISE: dict[str, Callable[..., Tensor]] = {"silu": F.silu, "relu": F.relu}


def build_activation(name: str, channels: int) -> Callable[..., Tensor]:
    """The activation that a config calls ``silu``, ``relu`` or ``bezier``."""
    if name == "bezier":
        return BezierActivation(channels)
    if name not in ELEMENTWISE:
        names = ", ".join((*ELEMENTWISE, "bezier"))
        raise ValueError(f"unknown activation {name!r}; use one of {names}")
    return ELEMENTWISE[name]


def norm_activation_conv(
    norm: nn.Module, activation: Callable[..., Tensor], conv: nn.Conv2d, x: Tensor
) -> Tensor:
    """``conv(activation(norm(x)))``, of stride 1, that keeps only ``x`` for the backward pass.

    The norm and the activation are computed again there, which costs about as much time as not
    writing and reading them saves, and leaves one tensor in memory instead of three. Compiled, or
    with an activation that has parameters, it is the plain expression: the compiler makes the
    same choice by itself. An activation without parameters takes ``inplace``.
    """
    if torch.compiler.is_compiling() or isinstance(activation, nn.Module):
        return conv(activation(norm(x)))
    weight, bias, device = conv.weight, conv.bias, x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    functions, affine = (norm.normalize, activation), getattr(norm, "norm", norm)
    return _NormActivationConv.apply(
        x, affine.weight, affine.bias, weight, bias, functions, conv.padding
    )


class _NormActivationConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, weight, bias, functions, padding):
        ctx.save_for_backward(x, norm_weight, norm_bias, weight, bias)
        ctx.functions, ctx.padding = functions, padding
        normalize, activation = functions
        activated = activation(normalize(x, norm_weight, norm_bias), inplace=True)
        return F.conv2d(activated, weight, bias, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        *inputs, weight, bias = ctx.saved_tensors
        normalize, activation = ctx.functions
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in inputs]
            activated = activation(normalize(*inputs))
        grad_activated, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad_output,
            activated.detach(),
            weight,
            bias_sizes=bias.shape,
            stride=(1, 1),
            padding=ctx.padding,
            dilation=(1, 1),
            transposed=False,
            output_padding=(0, 0),
            groups=1,
            output_mask=(True, True, True),
        )
        grads = torch.autograd.grad(activated, inputs, grad_activated)
        return *grads, grad_weight, grad_bias, None, None
