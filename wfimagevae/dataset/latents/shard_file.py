"""A shard of latents: a safetensors file whose rows are read, as reading its map can kill."""

import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wfimagevae.dataset.protocol import DataError
from wfimagevae.files import parse_json

_TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "BOOL": torch.bool,
}


class LatentShard:
    """What is in a shard; DataError if it is missing or damaged.

    To read the memory map of a file that was cut ends the process (SIGBUS), so there is none.

    Attributes:
        facts: What it says of itself: ``plan``, ``count``, ...; nothing in a file of another kind.
        tensors: The type and shape of each.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                metadata, names = file.metadata() or {}, file.offset_keys()
                parts = {name: file.get_slice(name) for name in names}
                shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
                types = {name: _TYPES.get(part.get_dtype()) for name, part in parts.items()}
            self._size = path.stat().st_size
        except FileNotFoundError:
            raise DataError(f"{path} is missing") from None
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is truncated or no safetensors file ({error})") from None
        self.tensors = {n: (types[n], shapes[n]) for n in names if types[n]}
        # Tensors lie one after another, up to the end of the file.
        self._starts, end = {}, self._size
        for name in reversed(list(self.tensors)):
            end -= math.prod(shapes[name]) * types[name].itemsize
            self._starts[name] = end
        try:
            self.facts = parse_json(metadata.get("latents", "{}"))
        except ValueError:
            self.facts = None
        if not isinstance(self.facts, dict) or len(self.tensors) < len(names):
            raise DataError(f"{path} is no shard of latents")

    def open(self) -> int:
        """A descriptor of the file, for `read`."""
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"cannot open {self.path}: {error.strerror}") from None
        if os.fstat(handle).st_size > self._size:
            os.close(handle)
            raise DataError(f"{self.path} changed since training started: start it again")
        return handle

    def read(self, handle: int, name: str, row: int | None = None) -> Tensor:
        """A tensor, or one row of it; DataError if there is none, or the file ends before it."""
        kind, shape = self.tensors.get(name, (None, ()))
        if kind is None or (row is not None and not 0 <= row < (*shape, 0)[0]):
            what = name if kind is None else f"row {row} in {name}"
            raise DataError(f"{self.path} has no {what}: encode anew")
        start = self._starts[name]
        if row is not None:
            shape = shape[1:]
            start += row * math.prod(shape) * kind.itemsize
        content = bytearray(math.prod(shape) * kind.itemsize)
        if not content:
            return torch.empty(shape, dtype=kind)
        try:
            length = os.preadv(handle, [content], start)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from None
        if length < len(content):
            raise DataError(f"{self.path} was cut short since training started: encode it again")
        return torch.frombuffer(content, dtype=kind).view(shape)
