"""The autoencoder's attention, one head wider than most kernels take, by each of them."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from wfimagevae.engine.cost import count_macs, seconds_per_call
from wfimagevae.engine.device import PRECISIONS
from wfimagevae.model.modules.blocks import attend
from wfimagevae.task.bench import TrainBenchmark

_FUSED = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION


def compare_attention(benchmark: TrainBenchmark, lengths: list[int]) -> list[dict]:
    """Time of forward and backward by each kernel, at so many positions.

    Images are as many as have the positions of a batch together.

    Returns:
        Of each kernel and length: ``kernel``, ``batch``, ``positions``, ``ms``, ``tflop_per_s``
        and ``mfu``, or ``why_not`` where a kernel cannot.
    """
    from torch.nn.attention.flex_attention import flex_attention  # a second, for the compiler

    options, device = benchmark.options, benchmark.device
    network, dtype = benchmark.task.network, PRECISIONS[options.mix_precision]
    total = options.batch_size * (options.resolution // network.spatial_factor) ** 2
    calls = {"ours": attend, "PyTorch's choice": scaled_dot_product_attention}
    calls["products"] = _products
    calls |= {"products, compiled": torch.compile(_products, dynamic=False)}
    calls |= {"FlexAttention, compiled": torch.compile(flex_attention, dynamic=False)}
    calls |= {kind.name: sdpa_kernel(kind)(scaled_dot_product_attention) for kind in _FUSED}
    rows = []
    for length in lengths:
        shape = max(1, total // length), 1, length, network.config.base_channels[-1]
        inputs = [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in "qkv"]
        flops = 6 * count_macs(_products, *inputs)  # backward takes twice as many again
        for name, call in calls.items():
            row = {"kernel": name, "batch": shape[0], "positions": length}
            try:
                seconds = seconds_per_call(partial(_backpropagate, call, inputs), device, 0.3)
                row |= {"ms": 1000 * seconds, "tflop_per_s": flops / seconds / 1e12}
                row |= {"mfu": flops / seconds / benchmark.peak} if benchmark.peak else {}
            except Exception as error:  # of any library; that a kernel cannot is a finding
                row["why_not"] = str(error).strip().split("\n")[0]
            rows.append(row)
    return rows


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v


def _backpropagate(call, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(call(*inputs).sum(), inputs)
