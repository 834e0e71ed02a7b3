"""The record beside a generated picture, and the picture again from its record."""

import importlib.metadata
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from wfimagevae.engine.distributed import World, barrier, broadcast_object
from wfimagevae.files import read_json, write_json
from wfimagevae.generate.generator import FlowGenerator, Size
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject, free_names
from wfimagevae.model.weight_files import weights_fingerprint
from wfimagevae.pictures.pixels import to_uint8
from wfimagevae.pictures.writer import save_image

_log = logging.getLogger("wfimagevae")
_SUBJECT = tuple(field.name for field in fields(Subject))
_VALUES = ("sampler", "steps", "shift", "seed", "precision", "negative_prompt", "size", "device")
# What a record holds besides single values, and what is in it.
_PARTS = {
    "batch": ("size", "row"),
    "guidance": ("scale", "interval", "rescale", "channels"),
    "model": ("path", "model_name", "raw_weights", "vae", "text_encoder", "fingerprint"),
}
_PACKAGES = ("wfimagevae", "torch", "diffusers", "transformers")


def describe_model(generator: FlowGenerator) -> dict[str, Any]:
    """Where the model was read from, and the fingerprint of its weights."""
    return generator.source | {"fingerprint": weights_fingerprint(generator.model)}


def picture_record(
    generator: FlowGenerator,
    model: Mapping[str, Any],
    subject: Subject,
    options: SamplingOptions,
    size: Size | None,
    batch: tuple[int, int],
) -> dict[str, Any]:
    """All that is needed to draw a picture again, with what `describe_model` says.

    ``batch`` is how many samples were drawn at once, and which of them it is: arithmetic rounds
    differently in batches of another size.
    """
    # Another version of one of these may round differently.
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # not installed, or run from its folder
            continue
    height, width = size or generator.model.sample_shape[1:]
    return {
        **asdict(subject),
        "class_name": None if subject.label is None else generator.class_name(subject.label),
        "height": height * generator.downsampling,
        "width": width * generator.downsampling,
        **generator.describe(options, size),
        "batch": {"size": batch[0], "row": batch[1]},
        "device": generator.device.type,
        "model": dict(model),
        "versions": versions,
    }


def read_picture_record(path: str | Path) -> dict[str, Any]:
    """A record that was written beside a picture; ValueError for any other file."""
    # Names first: all that are missing are told at once.
    record = read_json(path)
    missing = {*_SUBJECT, *_VALUES, *_PARTS} - record.keys()
    for part, keys in _PARTS.items():
        values = record.get(part, dict.fromkeys(keys))
        values = values if isinstance(values, dict) else {}
        missing |= {f"{part}.{key}" for key in keys if key not in values}
    if missing:
        raise ValueError(
            f"{path} is no record of a picture of generate.py: no {', '.join(sorted(missing))}"
        )

    # Then values.
    size, row = (record["batch"][key] for key in ("size", "row"))
    if not (isinstance(size, int) and isinstance(row, int) and 0 <= row < size):
        raise ValueError(f"{path}: there is no sample {row!r} in a batch of {size!r}")
    try:
        _read_sampling(record)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not say how to sample: {error}") from None
    return record


def write_again(
    folder: Path, generator: FlowGenerator, record: Mapping[str, Any], name: str, world: World
) -> Path:
    """Draws the picture of a record and writes it, with the record beside it; the path.

    No file is replaced: a number goes behind the name, which has no extension, where it is taken.
    Weights that are not those that drew it are a ValueError.
    """
    (name,) = broadcast_object(free_names(folder, [name]) if world.is_main else None)
    path = folder / f"{name}.png"
    if not world.is_main:
        barrier()
        return path
    expected, model = record["model"]["fingerprint"], describe_model(generator)
    if model["fingerprint"] != expected:
        raise ValueError(
            f"the picture was drawn by weights {expected[:12]}, those of "
            f"{generator.source['path']} are {model['fingerprint'][:12]}"
        )
    place = generator.device.type
    if place != record["device"]:
        _log.warning(
            "drawn on %s, now on %s: pixels may differ by rounding", record["device"], place
        )
    # A batch as large as then, of copies: only one of its samples is of interest.
    options, size = _read_sampling(record)
    subject = Subject(**{name: record[name] for name in _SUBJECT})
    samples = generator.draw([subject] * record["batch"]["size"], options, size)
    save_image(path, to_uint8(generator.images(samples)[record["batch"]["row"]]))
    write_json(path.with_suffix(".json"), record | {"model": model})
    barrier()
    return path


def _read_sampling(record: Mapping[str, Any]) -> tuple[SamplingOptions, Size | None]:
    values = {f"guidance_{name}": value for name, value in record["guidance"].items()}
    values |= {name: record[name] for name in ("sampler", "steps", "seed", "negative_prompt")}
    options = SamplingOptions(**values, time_shift=record["shift"])
    return options, record["size"] and tuple(record["size"])
