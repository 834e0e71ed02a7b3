"""Processes: one without torchrun, one per GPU with it; the same code for both."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from wfimagevae.engine.device import use_device
from wfimagevae.engine.options import DDP_TIMEOUT


class World:
    """This process's place among all of them: its rank, 0 to size - 1, and its device."""

    def __init__(self, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device
        self.is_main = rank == 0


@contextmanager
def world(device: str = "auto", timeout_minutes: float = DDP_TIMEOUT) -> Iterator[World]:
    """Joins the process group that torchrun announced, if any, and leaves it at the end.

    The device is that of `use_device`.
    Inside another ``world`` the group is the outer one's, and is left by that one. A collective
    waits ``timeout_minutes`` for the other processes.
    """
    # torchrun's variables; without it this is the only process.
    rank, size = int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)
    resolved = use_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    joins = size > 1 and not dist.is_initialized()
    if joins:
        backend = "nccl" if resolved.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    try:
        yield World(rank, size, resolved)
    finally:
        if joins:
            dist.destroy_process_group()


def cpu_group(timeout_minutes: float) -> dist.ProcessGroup | None:
    """A group of all processes that talks beside the first one's work; None of one. Collective."""
    # It does not take over the timeout of the first one.
    timeout = timedelta(minutes=timeout_minutes)
    return dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sums ``tensor`` over all processes in place and returns it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Averages ``tensor`` over all processes in place and returns it."""
    if dist.is_initialized():
        all_reduce_sum(tensor).div_(dist.get_world_size())
    return tensor


def gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of every process's ``tensor``, in rank order; as many on each. No gradient."""
    if not dist.is_initialized():
        return tensor
    rows = tensor.new_empty(dist.get_world_size() * len(tensor), *tensor.shape[1:])
    dist.all_gather_into_tensor(rows, tensor.contiguous())
    return rows


def gather_objects(value) -> list:
    """The picklable ``value`` of every process, in rank order, on every process."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value):
    """Rank 0's picklable ``value``, on every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
