"""What an autoencoder costs: arithmetic, time and memory."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wfimagevae.engine.device import synchronize


def count_macs(function: Callable[[], object]) -> int:
    """Multiply-accumulates of a call: convolutions, matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in network.parameters())


def seconds_per_call(
    function: Callable[[], Tensor], device: torch.device, min_seconds: float = 3.0, warm_up: int = 2
) -> float:
    """Median time of a call, with the device synchronised around each.

    Args:
        function: What to time.
        device: Where it runs.
        min_seconds: Repeats until this has passed, and at least three times.
        warm_up: Calls beforehand that do not count.
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
