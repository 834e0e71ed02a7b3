"""Safetensors files read by memory map, and found out where they are cut short."""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from wfimagevae.dataset.protocol import DataError

# NumPy has no bfloat16: its 16 bits are the upper half of a float32.
_DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "BOOL": np.bool_,
}
_MAX_HEADER_BYTES = 100 * 2**20  # the format's own limit


@dataclass(frozen=True)
class Shard:
    """What the header of a whole file says.

    Attributes:
        path: The file.
        metadata: Its strings by name.
        tensors: Name -> type, shape, and where in the file the values begin, in bytes.
    """

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, tuple[str, tuple[int, ...], int]]

    def map(self, name: str) -> np.ndarray:
        """A tensor, read when it is used; bfloat16 as uint16, for `as_float32`."""
        kind, shape, start = self.tensors[name]
        if not prod(shape):
            return np.empty(shape, _DTYPES[kind])
        return np.memmap(self.path, _DTYPES[kind], "r", start, shape)

    def as_float32(self, name: str, values: np.ndarray) -> np.ndarray:
        """A part of what `map` gave for ``name``, as float32."""
        if self.tensors[name][0] == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


def open_shard(path: Path) -> Shard:
    """Reads the header of a safetensors file and compares it with the file's size.

    Raises:
        DataError: the file is missing, cut short, or no such file; its path is named.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _MAX_HEADER_BYTES):
                raise DataError(f"{path} is truncated or no safetensors file")
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            spans = {name: entry["data_offsets"] for name, entry in header.items()}
            tensors = {
                name: (entry["dtype"], tuple(entry["shape"]), 8 + length + spans[name][0])
                for name, entry in header.items()
            }
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is truncated or no safetensors file ({error})") from None
    whole = 8 + length + max((end for _, end in spans.values()), default=0)
    if size != whole:
        raise DataError(f"{path} is truncated: {size} of {whole} bytes")
    return Shard(path, metadata, tensors)
