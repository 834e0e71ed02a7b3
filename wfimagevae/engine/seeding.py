"""Randomness that belongs to a sample, and the state of the rest."""

import hashlib
import random

import numpy as np
import torch
from torch import Tensor

from wfimagevae.engine.device import to_device


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seeds the global generators of Python, NumPy and torch, differently on each rank."""
    value = stable_hash(seed, rank) % 2**32
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def stable_hash(*values: int | str) -> int:
    """A number of 63 bits that depends on the values alone: not on process, machine or Python."""
    digest = hashlib.sha256(repr(values).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def sample_noise(
    seed: int, positions: list[int], shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Standard normal noise that follows each sample, whatever its rank, batch or worker.

    Gives (len(positions), *shape), float32. No two data positions below 2**32 have the same noise;
    CUDA and CPU draw different numbers, and CUDA others where PyTorch lacks its Philox operator.
    """
    noise = torch.empty(len(positions), *shape, device=device)
    if device.type == "cuda" and hasattr(torch.ops.aten, "_philox_normal_"):
        return batched_noise(seed, positions, noise)
    generator = torch.Generator(device)
    for row, position in zip(noise, positions, strict=True):
        # The CPU's generator reads 32 bits of its seed; of plain hashes some would be equal among
        # 100,000 samples. A Feistel network's four rounds are a random permutation (Luby, Rackoff).
        block, rest = divmod(position, 2**32)
        left, right = divmod(rest, 2**16)
        for turn in range(4):
            left, right = right, left ^ stable_hash("noise", seed, block, turn, right) % 2**16
        row.normal_(generator=generator.manual_seed(left * 2**16 + right))
    return noise


def batched_noise(seed: int, positions: list[int], noise: Tensor) -> Tensor:
    """Fills the rows of ``noise`` in one call, each from its own place in a stream of numbers.

    The generator is Philox (Salmon et al. 2011), which counts: a position has 2**32 numbers.
    """
    words = [(stable_hash("noise", seed, i >> 32), i % 2**32 << 32) for i in positions]
    keys = to_device(torch.tensor(words, dtype=torch.uint64), noise.device)
    keys = keys.view(-1, *[1] * (noise.ndim - 1), 2)
    return torch.ops.aten._philox_normal_(noise, keys)


def sample_uniforms(seed: int, purpose: str, positions: list[int]) -> Tensor:
    """One number in (0, 1) for each data position, whatever its rank, batch or device.

    Numbers for different purposes are independent. Gives (len(positions),) float64 on the CPU.
    """
    words = [stable_hash(purpose, seed, position) >> 10 for position in positions]  # 53 bits
    return (torch.tensor(words, dtype=torch.float64) + 0.5) / 2**53


def random_state() -> dict:
    """State of this process's global generators, as plain values a checkpoint can hold."""
    # Lists and numbers only, which weights_only loading takes.
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": (version, list(words), gauss),
        "numpy": (name, keys.tolist(), position, has_gauss, cached),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(state["numpy"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
