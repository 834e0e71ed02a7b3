"""The record beside a generated picture, and the picture again from its record."""

import importlib.metadata
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from wfimagevae.diffusion.guidance import Guidance
from wfimagevae.files import read_json
from wfimagevae.generate.generator import FlowGenerator, SamplingOptions, draw_subjects
from wfimagevae.generate.subjects import Subject
from wfimagevae.model.weight_files import weights_fingerprint

_log = logging.getLogger("wfimagevae")
# What a record holds besides single values, and what is in it.
_PARTS = {
    "batch": ("size", "row"),
    "guidance": tuple(field.name for field in fields(Guidance)),
    "model": ("path", "model_name", "raw_weights", "vae", "text_encoder", "fingerprint"),
}
_PACKAGES = ("wfimagevae", "torch", "diffusers", "transformers")


def describe_model(generator: FlowGenerator) -> dict[str, Any]:
    """Which model it is: where it was read from, and the fingerprint of its weights."""
    return generator.source | {"fingerprint": weights_fingerprint(generator.model)}


def picture_record(
    generator: FlowGenerator,
    model: Mapping[str, Any],
    subject: Subject,
    options: SamplingOptions,
    batch: tuple[int, int],
) -> dict[str, Any]:
    """All that is needed to draw a picture again.

    Args:
        generator: Drew it.
        model: What `describe_model` says of it.
        subject: What it shows.
        options: How it was drawn.
        batch: Samples that were drawn at once, and which of them it is: arithmetic rounds
            differently in batches of another size.
    """
    height, width = options.size or generator.model.sample_shape[1:]
    size, row = batch
    return {
        **asdict(subject),
        "class_name": None if subject.label is None else generator.class_name(subject.label),
        "height": height * generator.downsampling,
        "width": width * generator.downsampling,
        **asdict(options),
        "batch": {"size": size, "row": row},
        "device": generator.device.type,
        "model": dict(model),
        "versions": _versions(),
    }


def read_picture_record(path: str | Path) -> dict[str, Any]:
    """A record that was written beside a picture.

    Raises:
        ValueError: it is no such file.
    """
    record = read_json(path)
    needed = {field.name for field in fields(SamplingOptions) + fields(Subject)}
    missing = (needed | {"device"} | _PARTS.keys()) - record.keys()
    for name, keys in _PARTS.items():
        part = record.get(name, dict.fromkeys(keys))
        missing |= {
            f"{name}.{key}" for key in keys if not isinstance(part, dict) or key not in part
        }
    if missing:
        raise ValueError(
            f"{path} is no record of a picture of generate.py: no {', '.join(sorted(missing))}"
        )
    size, row = (record["batch"][key] for key in ("size", "row"))
    if not (isinstance(size, int) and isinstance(row, int) and 0 <= row < size):
        raise ValueError(f"{path}: there is no sample {row!r} in a batch of {size!r}")
    try:
        _options(record)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not say how to sample: {error}") from None
    return record


def draw_again(generator: FlowGenerator, record: Mapping[str, Any]) -> Tensor:
    """The image of a record, in [-1, 1], float32 (3, H, W).

    Raises:
        ValueError: the generator's weights are not those that drew it.
    """
    expected, found = record["model"]["fingerprint"], weights_fingerprint(generator.model)
    if found != expected:
        raise ValueError(
            f"the picture was drawn by weights {expected[:12]}, those of "
            f"{generator.source['path']} are {found[:12]}"
        )
    if generator.device.type != record["device"]:
        _log.warning(
            "drawn on %s, now on %s: pixels may differ by rounding",
            record["device"],
            generator.device.type,
        )
    options = _options(record)
    subject = Subject(**{field.name: record[field.name] for field in fields(Subject)})
    copies = [subject] * record["batch"]["size"]
    images = generator.images(draw_subjects(generator, copies, options))
    return images[record["batch"]["row"]]


def _options(record: Mapping[str, Any]) -> SamplingOptions:
    values = {field.name: record[field.name] for field in fields(SamplingOptions)}
    guidance = record["guidance"] | {"interval": tuple(record["guidance"]["interval"])}
    size = record["size"] and tuple(record["size"])
    return SamplingOptions(**values | {"guidance": Guidance(**guidance), "size": size})


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # not installed, or run from its folder
            continue
    return found
