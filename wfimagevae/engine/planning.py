"""How to train on this machine within a given time."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from wfimagevae.engine.device import resolve_device


class Plan(NamedTuple):
    """How to train on this machine."""

    precision: str
    threads: int
    steps: int


def plan_training(
    device_name: str,
    time_step: Callable[[torch.device, str], float],
    minutes: float,
    overhead: float,
    bounds: tuple[int, int],
) -> Plan:
    """The fastest precision and number of threads, and the steps that fit into the time.

    Args:
        device_name: As for `resolve_device`.
        time_step: ``time_step(device, precision)``: seconds of a forward and backward pass.
        minutes: For training.
        overhead: Time of a whole training step over that of such a pass.
        bounds: Fewest and most steps.
    """
    device = resolve_device(device_name)
    # Threads wait for each other hundreds of times a step: on a busy machine one is faster.
    cores = torch.get_num_threads()
    choices = sorted({1, min(8, cores), cores}) if device.type == "cpu" else [cores]
    seconds = {}
    for threads in choices:
        torch.set_num_threads(threads)
        for precision in ("fp32", "bf16"):
            seconds[precision, threads] = time_step(device, precision)
    torch.set_num_threads(cores)
    precision, threads = min(seconds, key=seconds.get)
    listed = [f"{1000 * s:.0f} ms ({name}, threads: {n})" for (name, n), s in seconds.items()]
    print(f"device {device}; a training step takes {', '.join(listed)}")
    fitting = int(60 * minutes / (seconds[precision, threads] * overhead)) // 50 * 50
    return Plan(precision, threads, min(max(fitting, bounds[0]), bounds[1]))
