"""A cache of latents on disk: its record, latents.json, its files, and embeddings of captions."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    create_model,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wfimagevae.dataset.open_files import OpenFiles
from wfimagevae.dataset.protocol import DataError
from wfimagevae.files import parse_json, read_json

RECORD_NAME = "latents.json"
RECORD_VERSION = 1
# Parts of an embedding -> their tensors in a shard: (M, l, D), (M, l) and (M, P) for M captions,
# whose longest has l tokens. The captions of sample i are those before ENDS[i].
PARTS = {"tokens": "text_tokens", "mask": "text_mask", "pooled": "text_pooled"}
ENDS = "text_ends"
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TYPES |= {"I64": torch.int64, "BOOL": torch.bool}


def _strict(**fields: Any) -> type[BaseModel]:
    kinds = {name: (kind, ...) for name, kind in fields.items()}
    return create_model("Record", __config__=ConfigDict(strict=True), **kinds)


# What training relies on; there is more in a record. The last two it may lack.
_Keys = _strict(text_length=PositiveInt, text_width=PositiveInt, pooled_width=PositiveInt)
_Text = _strict(kind=str, source=str, length=int, fingerprint=str, config_keys=_Keys)
_Record = _strict(
    plan=str,
    vae=_strict(source=str, fingerprint=str),
    resolution=PositiveInt,
    posterior=Literal["sample", "mode"],
    flip=bool,
    class_names=list[str],
    latent_shape=Annotated[list[PositiveInt], Field(min_length=3, max_length=3)],
    samples=Annotated[list[NonNegativeInt], Field(min_length=1)],
    shift=list[FiniteFloat],
    scale=list[FiniteFloat],
    prefix=str,
    text=_Text | None,
)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"latents-{number:05d}.safetensors"


def texts_path(folder: Path, number: int) -> Path:
    return folder / f"latents-{number:05d}.jsonl"


def read_record(folder: str | Path) -> dict[str, Any]:
    """The record of a cache; DataError if there is none, of this version, finished and whole."""
    path = Path(os.path.expanduser(folder)) / RECORD_NAME
    try:
        record = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"no {RECORD_NAME} in {path.parent}: make latents with scripts/cache_latents.py"
        ) from None
    except ValueError as error:
        raise DataError(str(error)) from None
    if (version := record.get("version")) != RECORD_VERSION:
        raise DataError(
            f"{path} is of version {version!r}, this code reads {RECORD_VERSION}: encode anew"
        )
    if record.get("complete") is False:
        raise DataError(
            f"{path}: encoding has not finished; run the same cache_latents.py command again"
        )
    try:
        _Record.model_validate({"prefix": "", "text": None} | record)
    except ValidationError as error:
        (first, *_) = error.errors()
        place, reason = ".".join(map(str, first["loc"])), first["msg"]
        raise DataError(
            f"{path}: {place}: {reason}, got {first['input']!r:.80}: encode anew"
        ) from None
    channels = record["latent_shape"][0]
    for name in ("shift", "scale"):
        if len(record[name]) != channels:
            count = len(record[name])
            raise DataError(f"{path}: {name}: {count} numbers, expected one a channel, {channels}")
    return record


class LatentShard:
    """What is in a shard, a safetensors file; DataError if it is missing or damaged.

    Attributes:
        facts: What it says of itself: ``plan``, ``count``, ...; nothing in a file of another kind.
        tensors: The type and shape of each.
    """

    def __init__(self, path: Path):
        self.path, self.tensors, self._starts, start = path, {}, {}, 0
        try:
            with open(path, "rb") as opened, safe_open(f"/dev/fd/{opened.fileno()}", "pt") as file:
                for name in file.offset_keys():  # they lie one after another, up to the end
                    part = file.get_slice(name)
                    kind, shape = _TYPES[part.get_dtype()], tuple(part.get_shape())
                    self.tensors[name], self._starts[name] = (kind, shape), start
                    start += kind.itemsize * math.prod(shape)
                self.facts = dict(parse_json((file.metadata() or {}).get("latents", "{}")))
            self._first = path.stat().st_size - start
        except FileNotFoundError:
            raise DataError(f"{path} is missing") from None
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is truncated or no safetensors file ({error})") from None
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path} is no shard of latents") from None

    def read(self, files: OpenFiles, name: str, row: int | None = None) -> Tensor:
        """A tensor, or one row of it; DataError if there is none, or it cannot be read."""
        kind, shape = self.tensors.get(name, (torch.bool, (0,)))
        start = self._first + self._starts.get(name, 0)
        if row is not None:
            if not 0 <= row < shape[0]:
                raise DataError(f"{self.path} has no row {row} of {name}: encode anew")
            shape = shape[1:]
            start += row * math.prod(shape) * kind.itemsize
        length = math.prod(shape) * kind.itemsize
        if not length:
            return torch.empty(shape, dtype=kind)
        path = str(self.path)
        try:
            content = files.read(path, length, start, lambda: os.open(path, os.O_RDONLY))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        if len(content) < length:
            raise DataError(f"{path} was cut short since training started: encode it again")
        return torch.frombuffer(bytearray(content), dtype=kind).view(shape)


def compact(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is kept of embeddings: float16, on the CPU, without common padding.

    ``part`` has ``tokens`` (n, L, D), ``mask`` bool (n, L) and ``pooled`` (n, P).
    """
    used = part["mask"].any(0).nonzero()
    length = int(used.max()) + 1 if len(used) else 0
    kept = {
        "tokens": part["tokens"][:, :length].half().cpu(),
        "mask": part["mask"][:, :length].cpu(),
        "pooled": part["pooled"].half().cpu(),
    }
    if not (kept["tokens"].isfinite().all() and kept["pooled"].isfinite().all()):
        raise ValueError("the text encoder's output is beyond the range of float16")
    return kept


def text_tensors(parts: Sequence[dict[str, Tensor]], counts: Sequence[int]) -> dict[str, Tensor]:
    """The tensors that a shard keeps of its captions' embeddings.

    ``parts`` are what `compact` gave of the captions in turn, at least one; each sample has
    ``counts`` of them.
    """
    length = max(part["mask"].shape[1] for part in parts)
    padded = [
        part
        | {
            "tokens": F.pad(part["tokens"], (0, 0, 0, length - part["tokens"].shape[1])),
            "mask": F.pad(part["mask"], (0, length - part["mask"].shape[1])),
        }
        for part in parts
    ]
    tensors = {PARTS[name]: torch.cat([part[name] for part in padded]) for name in PARTS}
    return tensors | {ENDS: torch.tensor(counts, dtype=torch.int64).cumsum(0)}


def read_embeddings(
    record: dict[str, Any],
    stored: Callable[[int, str, int], Tensor],
    places: Sequence[tuple[int, int, int | None]],
) -> dict[str, Tensor]:
    """Embeddings of captions; zeros and an empty mask for a sample without one.

    ``record`` is what the cache's says of the text encoder, ``stored(shard number, name, row)``
    gives a row of a tensor, and ``places`` are the shard's number, the row there, and which
    caption, of each sample.
    Gives ``tokens`` float16 (B, L, D), ``mask`` bool (B, L) and ``pooled`` float16 (B, P).
    """
    keys, count = record["config_keys"], len(places)
    tokens = torch.zeros(count, keys["text_length"], keys["text_width"], dtype=torch.float16)
    mask = torch.zeros(count, keys["text_length"], dtype=torch.bool)
    pooled = torch.zeros(count, keys["pooled_width"], dtype=torch.float16)
    for slot, (number, row, line) in enumerate(places):
        if line is None:
            continue
        caption = (int(stored(number, ENDS, row - 1)) if row else 0) + line
        used = stored(number, PARTS["mask"], caption)
        mask[slot, : len(used)] = used
        tokens[slot, : len(used)] = stored(number, PARTS["tokens"], caption)
        pooled[slot] = stored(number, PARTS["pooled"], caption)
    return {"tokens": tokens, "mask": mask, "pooled": pooled}
