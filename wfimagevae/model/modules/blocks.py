"""Building blocks of both halves: norms, activations, residual, attention, halving, doubling.

Norms keep images channels_last, and compute in float32 inside the kernels also where the tensors
are bfloat16 or float16, so under autocast no float32 copy of the activations is made or kept.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPS = 1e-6
NUM_GROUPS = 32
NUM_VALUES = 5  # of a Bezier curve: t and the four control points
HIDDEN_CHANNELS = 64  # between a modulation's two convolutions
FLASH_WIDTH = 256  # the widest head of flash attention
NUM_SCORES = 2**25  # of attention, held at a time: 128 MiB


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of each pixel of (B, C, H, W), affine."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)

    @staticmethod
    def normalize(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight, bias = matched(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            # Of channels_last memory, the permuted view is contiguous: nothing is copied.
            y = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, EPS)
        return y.permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        if is_hooked(self.norm):
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
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
        weight, bias = matched(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            y = F.group_norm(x, NUM_GROUPS, weight, bias, EPS)
        return y.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.weight, self.bias)


def matched(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A norm's parameters in the type of ``x``, but for the CPU, whose kernels mix types."""
    return (weight, bias) if x.device.type == "cpu" else (weight.to(x.dtype), bias.to(x.dtype))


def is_hooked(module: nn.Module) -> bool:
    """Whether calling it does more than its class says: accelerate's and diffusers' offloading, and
    casting layer by layer, fetch weights that nobody else may use."""
    return "forward" in vars(module)


def widened(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` in the type of ``weight``, unless that is only stored so, in fewer bits."""
    return x.to(weight.dtype) if weight.itemsize > x.itemsize else x


# What a config calls them.
NORMS = {"layernorm": ChannelLayerNorm, "groupnorm": ChannelGroupNorm}


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
    return BezierActivation(channels) if name == "bezier" else ELEMENTWISE[name]


def norm_activation_conv(
    norm: nn.Module, activation: Callable[..., Tensor], conv: nn.Conv2d, x: Tensor
) -> Tensor:
    """``conv(activation(norm(x)))``, of stride 1, that keeps only ``x`` for the backward pass.

    The norm and the activation are computed again there, which costs about as much time as not
    writing and reading them saves, and leaves one tensor in memory instead of three. Compiled, or
    with an activation that has parameters, it is the plain expression: the compiler makes the
    same choice by itself. An activation without parameters takes ``inplace``.
    """
    # A layer norm keeps its weights in a module of its own, as its checkpoints name it.
    affine = getattr(norm, "norm", norm)
    is_plain = isinstance(activation, nn.Module) or is_hooked(conv) or is_hooked(affine)
    if torch.compiler.is_compiling() or is_plain:
        return conv(activation(norm(x)))
    weight, bias, device = conv.weight, conv.bias, x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    functions = norm.normalize, activation
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


class Spade(nn.Module):
    """Scales and shifts a norm's result by what two convolutions read off the latent.

    The last of them starts at zero, so a fresh one changes nothing.

    Source: Park et al. 2019, arXiv:1903.07291, with the latent in place of a segmentation map.
    """

    def __init__(self, latent_dim: int, channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(latent_dim, HIDDEN_CHANNELS, 3, padding=1)
        self.conv_out = nn.Conv2d(HIDDEN_CHANNELS, 2 * channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """``x * (1 + scale) + shift`` of x (B, C, H, W), to whose size the latent is brought."""
        if latent.shape[2:] != x.shape[2:]:
            latent = F.interpolate(latent, size=x.shape[2:], mode="bilinear")
            latent = latent.contiguous(memory_format=torch.channels_last)
        hidden = F.relu(self.conv_in(latent), inplace=True)
        scale, shift = self.conv_out(hidden).chunk(2, dim=1)
        return torch.addcmul(shift.to(x.dtype), x, 1 + scale.to(x.dtype))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`scaled_dot_product_attention` of one head, (B, 1, N, C), by products where those are faster.

    Flash attention ends at heads of 256; what CUDA has for wider ones is several times as slow.
    """
    if q.is_cuda and q.shape[-1] > FLASH_WIDTH and q.dtype in (torch.bfloat16, torch.float16):
        q, k, v = (x.squeeze(1) for x in (q, k, v))
        return ChunkedAttention.apply(q, k, v, NUM_SCORES).unsqueeze(1)
    return F.scaled_dot_product_attention(q, k, v)


class ChunkedAttention(torch.autograd.Function):
    """One head of attention, (B, N, C), by products of some queries with all keys at a time.

    Scores are float32, at most ``num_scores`` of them, but no less than those of one query, and are
    computed again in backward: memory grows with N, not with its square.

    Source: Dao et al. 2022 (FlashAttention), arXiv:2205.14135, appendix B.
    """

    @staticmethod
    def forward(ctx, q, k, v, num_scores):
        ctx.scale = q.shape[-1] ** -0.5
        ctx.size = max(1, num_scores // (k.shape[0] * k.shape[1]))
        outputs, sums = [], []
        with torch.autocast(q.device.type, enabled=False):
            for rows in q.split(ctx.size, dim=1):
                scores = _float32_product(rows, k.mT).mul_(ctx.scale)  # (B, n, N)
                sums.append(scores.logsumexp(-1, keepdim=True))
                outputs.append(scores.sub_(sums[-1]).exp_().to(v.dtype) @ v)
        output, log_sum = torch.cat(outputs, 1), torch.cat(sums, 1)
        ctx.save_for_backward(q, k, v, output, log_sum)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, output, log_sum = ctx.saved_tensors
        grad_q, grad_k, grad_v = [], 0, 0
        with torch.autocast(q.device.type, enabled=False):
            # Softmax' backward takes from each weight's gradient their mean: output times grad.
            mean = (output.to(log_sum.dtype) * grad).sum(-1, keepdim=True)
            chunks = (x.split(ctx.size, dim=1) for x in (q, grad, log_sum, mean))
            for rows, grad_rows, sums, means in zip(*chunks, strict=True):
                weights = _float32_product(rows, k.mT).mul_(ctx.scale).sub_(sums).exp_()
                grad_v = grad_v + _float32_product(weights.to(v.dtype).mT, grad_rows)
                grad_scores = _float32_product(grad_rows, v.mT).sub_(means).mul_(weights)
                grad_scores = grad_scores.mul_(ctx.scale).to(q.dtype)  # (B, n, N)
                grad_q.append(grad_scores @ k)
                grad_k = grad_k + _float32_product(grad_scores.mT, rows)
        return torch.cat(grad_q, 1), grad_k.to(k.dtype), grad_v.to(v.dtype), None


def _float32_product(a: Tensor, b: Tensor) -> Tensor:
    """Product of matrices whose sums are also given in float32, or more."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(a, b, out_dtype=torch.float32)
    dtype = torch.promote_types(a.dtype, torch.float32)
    return a.to(dtype) @ b.to(dtype)


class AttnBlock2D(nn.Module):
    """One head of self-attention over all H W positions, plus the input.

    With ``latent_dim``, a latent of so many channels modulates the norm.
    """

    def __init__(self, channels: int, norm_type: str = "layernorm", latent_dim: int = 0):
        super().__init__()
        self.norm = NORMS[norm_type](channels)
        self.spade = Spade(latent_dim, channels) if latent_dim else None
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, latent: Tensor | None = None) -> Tensor:
        h = self.norm(x)
        if self.spade is not None:
            h = self.spade(h, latent)
        # One head of tokens, (B, 1, H W, C), a view of channels_last memory. Contiguous, because
        # with a strided last dimension the CPU kernel falls back to holding the whole matrix.
        q, k, v = (
            project(h).permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1).contiguous()
            for project in (self.q, self.k, self.v)
        )
        h = attend(q, k, v)  # (B, 1, H W, C)
        h = h.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)  # (B, C, H, W)
        return self.proj_out(h).add_(x)


class ResnetBlock2D(nn.Module):
    """Norm, activation, 3x3, norm, activation, dropout, 3x3, plus the input.

    A 1x1 convolution brings the input to another width. A latent of ``latent_dim`` channels, unless
    that is 0, modulates the norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float = 0.0,
        norm_type: str = "layernorm",
        activation: str = "silu",
        latent_dim: int = 0,
    ):
        super().__init__()
        self.norm1 = NORMS[norm_type](in_channels)
        self.spade1 = Spade(latent_dim, in_channels) if latent_dim else None
        self.activation1 = build_activation(activation, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = NORMS[norm_type](out_channels)
        self.spade2 = Spade(latent_dim, out_channels) if latent_dim else None
        self.activation2 = build_activation(activation, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels == out_channels:
            self.nin_shortcut = nn.Identity()
        else:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, latent: Tensor | None = None) -> Tensor:
        # Norm, activation and convolution are one function where nothing stands between them.
        drops = self.training and self.dropout.p > 0
        if self.spade1 is None:
            h = norm_activation_conv(self.norm1, self.activation1, self.conv1, x)
        else:
            h = self.conv1(self.activation1(self.spade1(self.norm1(x), latent)))
        if self.spade2 is None and not drops:
            h = norm_activation_conv(self.norm2, self.activation2, self.conv2, h)
        else:
            h = self.norm2(h)
            h = h if self.spade2 is None else self.spade2(h, latent)
            h = self.conv2(self.dropout(self.activation2(h)))
        return h.add_(self.nin_shortcut(x))


class Downsample(nn.Module):
    """Convolution, 3x3, of stride 2; one row and one column of zeros at the bottom and right."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Each pixel repeated 2x2, then a 3x3 convolution.

    Both are one transposed convolution of stride 2, whose 4x4 kernel is the 3x3 kernel spread by a
    2x2 box: 16 instead of 36 products per input pixel, and no repeated image in memory.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if is_hooked(self.conv):
            return self.conv(F.interpolate(x, scale_factor=2.0))
        kernel = self.conv.weight.flip(-2, -1).transpose(0, 1)
        # Convolve the (I, O, 3, 3) kernels with a 2x2 box of ones, to (I, O, 4, 4).
        wide = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
        kernel = F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
