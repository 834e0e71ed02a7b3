"""Generated images as files: a folder of PNGs, and beside it one of their records; or one .npz.

From its record a picture is drawn again.
"""

import io
import logging
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wfimagevae.engine.distributed import World, barrier, broadcast_object, gather_objects
from wfimagevae.files import json_text, read_json, replacing, write_json
from wfimagevae.generate.generator import DISCRETE, GUIDANCE, FlowGenerator, Progress, Size
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject, free_names, records_folder
from wfimagevae.pictures.flow_frames import background, path_frames
from wfimagevae.pictures.grid import sample_grid, save_png
from wfimagevae.pictures.pixels import from_uint8, to_uint8
from wfimagevae.pictures.writer import ImageWriter, save_image

MAX_IN_GRID = 64
_log = logging.getLogger("wfimagevae")
_OF_MODEL = ("path", "model_name", "raw_weights", "vae", "text_encoder", "fingerprint")
_PACKAGES = ("wfimagevae", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Sheet:
    """Pictures to draw: a row a subject, a column a guidance scale, in which alone columns differ.

    ``stems`` are the names of the rows' files, without extension and scale; pictures of prompts
    never replace a file: a name that is taken gets a number behind it. ``size`` is the height and
    width of all in the model's space; None is the model's own.
    """

    subjects: Sequence[Subject]
    stems: Sequence[str]
    columns: Sequence[SamplingOptions]
    size: Size | None = None

    @property
    def count(self) -> int:
        return len(self.subjects) * len(self.columns)

    @property
    def scales(self) -> list[float]:
        return [options.guidance_scale for options in self.columns]

    @property
    def has_prompts(self) -> bool:
        return self.subjects[0].prompt is not None

    def describe(self, generator: FlowGenerator) -> dict[str, Any]:
        """What is drawn and how, for JSON."""
        labels = [subject.label for subject in self.subjects]
        prompts = [subject.prompt for subject in self.subjects]
        return {
            "num_images": self.count,
            "sampling": generator.describe(self.columns[-1], self.size),
            "guidance_scales": self.scales,
            "model": generator.record,
            "torch": torch.__version__,
            **({} if None in labels else {"labels": labels}),
            **({} if None in prompts else {"prompts": list(dict.fromkeys(prompts))}),
        }

    def record(
        self, generator: FlowGenerator, model: dict, row: int, column: int, batch: tuple[int, int]
    ) -> dict[str, Any]:
        """All that is needed to draw a picture again, with what `describe_model` says.

        ``batch`` is how many samples were drawn at once, and which of them it is: arithmetic rounds
        differently in batches of another size.
        """
        subject, (height, width) = self.subjects[row], generator.pixel_size(self.size)
        # Another version of one of these may round differently.
        versions = {n: sys.modules[n].__version__ for n in _PACKAGES if n in sys.modules}
        return {
            **asdict(subject),
            "class_name": None if subject.label is None else generator.class_name(subject.label),
            "height": height,
            "width": width,
            **generator.describe(self.columns[column], self.size),
            "batch": {"size": batch[0], "row": batch[1]},
            "device": generator.device.type,
            "model": model,
            "versions": versions,
        }

    def draw(
        self, generator: FlowGenerator, batch_size: int, world: World
    ) -> Iterator[tuple[int, int, tuple[int, int], Tensor]]:
        """This process's share of the pictures.

        Yields row and column; how many samples were drawn at once and which of them it was; uint8
        pixels, (3, H, W), on the CPU.
        """
        shares = range(world.rank, len(self.subjects), world.size)
        total = len(shares) * len(self.columns)
        with tqdm(total=total, unit="img", desc="sample", disable=not world.is_main) as bar:
            for column, options in enumerate(self.columns):
                for first in range(0, len(shares), batch_size):
                    rows = shares[first : first + batch_size]
                    x = generator.draw([self.subjects[row] for row in rows], options, self.size)
                    pixels = to_uint8(generator.images(x)).cpu()
                    for place, row in enumerate(rows):
                        yield row, column, (len(rows), place), pixels[place]
                    bar.update(len(rows))


def class_stems(generator: FlowGenerator, subjects: Sequence[Subject]) -> list[str]:
    """Names of pictures without prompts: ``<number>-<class>``, or the number alone."""
    stems = []
    for subject in subjects:
        name = "" if subject.label is None else f"-{generator.class_name(subject.label)}"
        stems.append(f"{subject.index:06d}" + re.sub(r"[^\w-]", "_", name))
    return stems


def write_folder(
    folder: Path, generator: FlowGenerator, sheet: Sheet, batch_size: int, world: World
) -> None:
    """Writes a PNG for each picture; into `records_folder` its record, a grid, ``samples.json``."""
    # The main process names the files, so that none of them is given twice.
    # A file's name may have 255 bytes, with what follows here.
    stems = [os.fsdecode(os.fsencode(stem)[:225]) for stem in sheet.stems]
    if len(sheet.columns) > 1:
        stems = [f"{stem}-w{scale:g}" for scale in sheet.scales for stem in stems]
    if sheet.has_prompts:
        stems = broadcast_object(free_names(folder, stems) if world.is_main else None)
    model, drawn = describe_model(generator), {}
    places, width, row_titles, column_titles = _lay_out(generator, sheet)
    records = records_folder(folder).absolute()
    with ImageWriter(folder) as writer:
        for row, column, batch, pixels in sheet.draw(generator, batch_size, world):
            name = stems[column * len(sheet.subjects) + row]
            writer.write(f"{name}.png", pixels)
            record = sheet.record(generator, model, row, column, batch)
            writer.write(records / f"{name}.json", json_text(record))
            if (row, column) in places:
                drawn[row, column] = pixels

    # The main process has the grid's pictures of all.
    drawn = {place: pixels for part in gather_objects(drawn) for place, pixels in part.items()}
    if not world.is_main:
        return
    path, number = records / "grid.png", 1
    while sheet.has_prompts and path.exists():
        path, number = records / f"grid-{number}.png", number + 1
    images = from_uint8(torch.stack([drawn[place] for place in places]))
    save_png(path, sample_grid(images, width, row_titles, column_titles))
    files = {"files": [f"{name}.png" for name in stems]}
    write_json(records / "samples.json", sheet.describe(generator) | files)


def write_npz(
    path: Path, generator: FlowGenerator, sheet: Sheet, batch_size: int, world: World
) -> None:
    """Writes all samples to one file: ``arr_0``, uint8 (N, H, W, 3), and ``arr_1``, the labels.

    A name that ends in something else than .npz is a ValueError.
    """
    if path.suffix != ".npz":
        raise ValueError(f"--npz {path} must end in .npz")
    # Every process writes its pictures to their places in one array on disk, which the main one
    # begins. It is not mapped: a full disk is an error then, not the end of the process.
    partial = path.with_name(f".{path.name[:50]}.partial.tmp")
    header, height_and_width = io.BytesIO(), generator.pixel_size(sheet.size)
    shape = (sheet.count, *height_and_width, 3)
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    if world.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(header.getvalue())
    barrier()
    with partial.open("r+b") as file:
        for row, column, _, pixels in sheet.draw(generator, batch_size, world):
            number = column * len(sheet.subjects) + row
            file.seek(header.tell() + number * pixels.numel())
            file.write(pixels.permute(1, 2, 0).numpy().tobytes())
    barrier()
    if not world.is_main:
        return

    # The finished file takes its place in one step.
    labels = [subject.label for subject in sheet.subjects]
    with replacing(path) as target, zipfile.ZipFile(target, "w") as archive:
        archive.write(partial, "arr_0.npy")
        if None not in labels:
            with archive.open("arr_1.npy", "w") as file:
                np.save(file, np.array(labels * len(sheet.columns), np.int64))
    partial.unlink()


def _lay_out(
    generator: FlowGenerator, sheet: Sheet
) -> tuple[list[tuple[int, int]], int, list[str] | None, list[str] | None]:
    """Which pictures, (row of the sheet, column), stand in a grid, its width, and its titles.

    A row a prompt or class where that is tidy, or a column a scale; else as they come.
    """
    titles = [generator.title(subject) for subject in sheet.subjects]
    count, groups = len(sheet.columns), {}
    for row, title in enumerate(titles):
        key = row if count > 1 else title
        groups.setdefault(key, []).extend((row, column) for column in range(count))
    lines = list(groups.values())
    # As wide as the smallest group.
    width = min(*map(len, lines), max(MAX_IN_GRID // len(lines), count))
    is_tidy = count > 1 or (len(lines) > 1 and (width > 1 or sheet.has_prompts))
    if is_tidy:
        width = max(width, 1)
        lines = [line[:width] for line in lines[: max(MAX_IN_GRID // width, 1)]]
        names = [titles[line[0][0]] for line in lines]
    else:
        places = [(row, 0) for row in range(min(len(titles), MAX_IN_GRID))]
        width = max(round(len(places) ** 0.5), 1)
        lines = [places[i : i + width] for i in range(0, len(places), width)]
        names = [titles[0]] + [""] * (len(lines) - 1) if sheet.has_prompts else []
    heads = [f"guidance {scale:g}" for scale in sheet.scales] if count > 1 else None
    places = [place for line in lines for place in line]
    return places, width, names if any(names) else None, heads


def describe_model(generator: FlowGenerator) -> dict[str, Any]:
    """Where the model was read from, and the fingerprint of its weights."""
    return generator.source | {"fingerprint": generator.fingerprint()}


def read_picture_record(path: str | Path) -> dict[str, Any]:
    """The record of a picture, given by its own path or the picture's; else a ValueError."""
    path = Path(path)
    if path.suffix == ".png":
        path = records_folder(path.parent) / f"{path.stem}.json"
    record = read_json(path)
    try:
        _what_to_draw(record)
        missing = {"device", "precision"} - record.keys()
        missing |= {f"model.{name}" for name in _OF_MODEL if name not in record["model"]}
    except KeyError as error:
        missing = {error.args[0]}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not say what to draw: {error}") from None
    if missing:
        raise ValueError(
            f"{path} is no record of a picture of generate.py: no {', '.join(sorted(missing))}"
        )
    return record


def _what_to_draw(
    record: Mapping[str, Any],
) -> tuple[list[Subject], SamplingOptions, Size | None, int]:
    """A batch as large as then, of copies, of which the sample of the last number counts."""
    count, row = record["batch"]["size"], record["batch"]["row"]
    if not (isinstance(count, int) and isinstance(row, int) and 0 <= row < count):
        raise ValueError(f"there is no sample {row!r} in a batch of {count!r}")
    subject = Subject(record["index"], record["label"], record["prompt"])
    values = {f"guidance_{name}": record["guidance"][name] for name in GUIDANCE}
    values |= {name: record[name] for name in ("sampler", "steps", "seed")}
    if values["guidance_scale"] != 1:  # else it changes nothing
        values["negative_prompt"] = record["negative_prompt"]
    values |= {name: record[name] for name in DISCRETE if name in record}
    options = SamplingOptions(**values, time_shift=record["shift"])
    return [subject] * count, options, record["size"] and tuple(record["size"]), row


def write_again(
    folder: Path, generator: FlowGenerator, record: Mapping[str, Any], name: str
) -> Path:
    """Draws the picture of a record and writes it and, to its place, the record; the path.

    No file is replaced: a number goes behind the name, which has no extension, where it is taken.
    Weights that are not those that drew it are a ValueError.
    """
    (name,) = free_names(folder, [name])
    path = folder / f"{name}.png"
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
    subjects, options, size, row = _what_to_draw(record)
    samples = generator.draw(subjects, options, size)
    save_image(path, to_uint8(generator.images(samples)[row]))
    write_json(records_folder(folder) / f"{name}.json", record | {"model": model})
    return path


class SamplePicture:
    """About ``count`` samples that are drawn at once and can be saved later, by one process.

    The rows show ``subjects``, as many as fit, or else classes; ``batch_size`` samples are drawn
    and decoded at a time. ``content`` are images in [-1, 1], or points, row by row.
    """

    def __init__(
        self,
        generator: FlowGenerator,
        options: SamplingOptions,
        count: int,
        batch_size: int,
        subjects: Sequence[Subject] = (),
        progress: Progress | None = None,
    ):
        self.generator = generator
        num_classes = generator.model.num_classes
        side = max(round(count**0.5), 1)
        # A square of rows, each of which shows one thing.
        if subjects:
            self.rows = list(subjects[:side])
        elif num_classes:
            classes = torch.linspace(0, num_classes - 1, min(num_classes, side)).round().long()
            self.rows = [Subject(0, label) for label in classes.tolist()]
        else:
            self.rows = [Subject(0)] * side
        self.columns = max(count // len(self.rows), 1)
        rows = [row for row in self.rows for _ in range(self.columns)]
        samples, parts = [replace(row, index=i) for i, row in enumerate(rows)], []
        for first in range(0, len(samples), batch_size):
            x = generator.draw(samples[first : first + batch_size], options, progress=progress)
            # Low precision may overflow; a picture does not end a training.
            x = x.nan_to_num(0.0, 0.0, 0.0)
            is_point = generator.facts["space"] == "point"
            parts.append((x if is_point else generator.images(x)).cpu())
        self.content = torch.cat(parts)

    def save(self, path: Path) -> None:
        """Writes the picture as a PNG."""
        if self.generator.facts["space"] == "point":
            data = background(self.generator.facts["dataset"])
            (picture,) = path_frames(self.content[None], [1.0], data)
        else:
            titles = [self.generator.title(row) for row in self.rows]
            picture = sample_grid(self.content, self.columns, titles if any(titles) else None)
        save_png(path, picture)
