"""The record of a cache of latents, latents.json, and its names of files."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from wfimagevae.dataset.protocol import DataError
from wfimagevae.files import read_json

RECORD_NAME = "latents.json"
RECORD_VERSION = 1
_Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Vae(_Strict):
    source: str
    fingerprint: str


class _TextKeys(_Strict):
    text_length: _Count
    text_width: _Count
    pooled_width: _Count


class _Text(_Strict):
    kind: str
    source: str
    length: int
    fingerprint: str
    config_keys: _TextKeys


class _Record(_Strict):
    """What training relies on, and its types; there is more in a record."""

    plan: str
    vae: _Vae
    resolution: _Count
    posterior: Literal["sample", "mode"]
    flip: bool
    class_names: list[str]
    latent_shape: Annotated[list[_Count], Field(min_length=3, max_length=3)]
    samples: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    shift: list[FiniteFloat]
    scale: list[FiniteFloat]
    prefix: str = ""
    text: _Text | None = None


_FIELDS = {name for name, field in _Record.model_fields.items() if field.is_required()}


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
    if missing := _FIELDS - record.keys():
        raise DataError(f"{path} has no {', '.join(sorted(missing))}: encode anew")
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        (first, *_) = error.errors()
        place, reason = ".".join(map(str, first["loc"])), first["msg"]
        reason += f", got {first['input']!r:.80}: encode anew"
        raise DataError(f"{path}: {place}: {reason}") from None
    channels = record["latent_shape"][0]
    for name in ("shift", "scale"):
        if len(record[name]) != channels:
            count = len(record[name])
            raise DataError(f"{path}: {name}: {count} numbers, expected one a channel, {channels}")
    return record
