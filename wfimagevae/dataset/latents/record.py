"""The record of a cache of latents, latents.json, and its names of files."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

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

from wfimagevae.dataset.protocol import DataError
from wfimagevae.files import read_json

RECORD_NAME = "latents.json"
RECORD_VERSION = 1


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
    typed = {"prefix": "", "text": None} | record
    if missing := _Record.model_fields.keys() - typed.keys():
        raise DataError(f"{path} has no {', '.join(sorted(missing))}: encode anew")
    try:
        _Record.model_validate(typed)
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
