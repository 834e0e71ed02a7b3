"""A shard of latents: a safetensors file whose rows are read, as reading its map can kill."""

import math
import os
from itertools import dropwhile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wfimagevae.dataset.protocol import DataError
from wfimagevae.files import fd_path, parse_json

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TYPES |= {"I64": torch.int64, "BOOL": torch.bool}


class LatentShard:
    """What is in a shard; DataError if it is missing or damaged.

    To read the memory map of a file that was cut ends the process (SIGBUS), so there is none.

    Attributes:
        facts: What it says of itself: ``plan``, ``count``, ...; nothing in a file of another kind.
        tensors: The type and shape of each.
    """

    def __init__(self, path: Path):
        self.path, self.tensors = path, {}
        try:
            with open(path, "rb") as opened, safe_open(fd_path(opened), "pt") as file:
                for name in file.offset_keys():
                    part = file.get_slice(name)
                    self.tensors[name] = _TYPES[part.get_dtype()], tuple(part.get_shape())
                self.facts = dict(parse_json((file.metadata() or {}).get("latents", "{}")))
            self._size = path.stat().st_size
        except FileNotFoundError:
            raise DataError(f"{path} is missing") from None
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is truncated or no safetensors file ({error})") from None
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path} is no shard of latents") from None

    def open(self) -> int:
        """A descriptor of the file, for `read`."""
        try:
            return os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"cannot open {self.path}: {error.strerror}") from None

    def read(self, handle: int, name: str, row: int | None = None) -> Tensor:
        """A tensor, or one row of it; DataError if there is none, or the file ends before it."""
        kind, shape = self.tensors.get(name, (torch.bool, (0,)))
        if row is not None and not 0 <= row < shape[0]:
            raise DataError(f"{self.path} has no row {row} of {name}: encode anew")
        # Tensors lie one after another, up to the end of the file.
        later = [self.tensors[key] for key in dropwhile(name.__ne__, self.tensors)]
        start = self._size - sum(each.itemsize * math.prod(sides) for each, sides in later)
        if row is not None:
            shape = shape[1:]
            start += row * math.prod(shape) * kind.itemsize
        content = bytearray(math.prod(shape) * kind.itemsize)
        if not content:
            return torch.empty(shape, dtype=kind)
        try:
            is_whole = os.fstat(handle).st_size == self._size
            is_whole = is_whole and os.preadv(handle, [content], start) == len(content)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from None
        if not is_whole:
            raise DataError(f"{self.path} was cut short since training started: encode it again")
        return torch.frombuffer(content, dtype=kind).view(shape)
