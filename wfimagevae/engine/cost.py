"""What a network costs: arithmetic, time and memory."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from wfimagevae.engine.device import synchronize


@contextmanager
def shapes_only() -> Iterator[None]:
    """Networks called inside compute nothing but shapes, in a moment and without memory."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield


def count_macs(function: Callable[[], object]) -> int:
    """Multiply-accumulates of a call: convolutions, matrix products and attention.

    Attention counts the same whichever kernel serves it.
    """
    with FlopCounterMode(display=False, custom_mapping=_attention_formulas()) as counter:
        function()
    return counter.get_total_flops() // 2


@functools.cache
def _attention_formulas() -> dict:
    """FLOP by query's, key's and value's shapes for every kernel behind attention.

    PyTorch's counter knows CUDA's kernels and takes others, such as the CPU's, for nothing.
    """

    def forward(q, k, v, *args, **kwargs) -> int:  # scores and their product with the values
        return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])

    def backward(grad, q, k, v, *args, **kwargs) -> int:  # scores again, then four products
        return 2 * math.prod(q[:-1]) * k[-2] * (3 * q[-1] + 2 * v[-1])

    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    return {
        getattr(torch.ops.aten, name): backward if name.endswith("_backward") else forward
        for name in names
        if name.startswith("_scaled_dot_product_")
    }


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def seconds_per_call(
    function: Callable[[], Tensor], device: torch.device, min_seconds: float = 3.0, warm_up: int = 2
) -> float:
    """Median time of a call, with the device synchronised around each.

    Repeats until ``min_seconds`` have passed, and at least three times, after ``warm_up`` calls.
    """
    for _ in range(warm_up):
        function()
    times: list[float] = []
    while len(times) < 3 or sum(times) < min_seconds:
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_memory(function: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes that tensors held during a call, weights included; None but on CUDA.

    Other devices keep no such count, and a process's resident size would mostly show what
    libraries and earlier calls left behind.
    """
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device)
