"""What a network costs: arithmetic, time and memory."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wfimagevae.engine.device import synchronize


def count_macs(function: Callable[[], object]) -> int:
    """Multiply-accumulates of a call: convolutions, matrix products and attention.

    Networks called inside compute nothing but shapes, in a moment and without memory.
    """
    # PyTorch's counter takes some kernels of attention for nothing; as products it counts all.
    fake, counter = FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False)
    eager, products = torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH)
    with fake, torch.no_grad(), eager, products, counter:
        function()
    return counter.get_total_flops() // 2


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
