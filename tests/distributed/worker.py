"""Gloo processes that find each other as under torchrun."""

import os
import socket
import sys
from collections.abc import Callable

import torch.multiprocessing


def on_ranks(num_ranks: int, function: Callable, *arguments) -> None:
    """Calls a function in spawned processes that find each other as under torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_join, (num_ranks, port, function, arguments), nprocs=num_ranks)


def _join(rank: int, size: int, port: int, function: Callable, arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    function(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's end, in which the rank that was done first has aborted ("terminate
    # called without an active exception", seen twice with PyTorch 2.15 and gloo).
    os._exit(0)
