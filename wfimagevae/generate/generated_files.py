"""Generated images as files: a folder of PNGs, each with its record, and a grid; or one .npz."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wfimagevae.engine.distributed import World, barrier, broadcast_object, gather_objects
from wfimagevae.files import json_text, write_json
from wfimagevae.generate.generator import FlowGenerator, SamplingOptions, sample_batches
from wfimagevae.generate.picture_record import describe_model, draw_again, picture_record
from wfimagevae.generate.prompts import Prompt, free_names
from wfimagevae.generate.subjects import Subject
from wfimagevae.pictures.grid import save_grid
from wfimagevae.pictures.pixels import to_uint8
from wfimagevae.pictures.writer import ImageWriter, save_image

MAX_IN_GRID = 64


@dataclass(frozen=True)
class Sheet:
    """Pictures to draw: rows that all show the same at each guidance scale.

    Attributes:
        subjects: A row each.
        stems: What the rows' files are called, without extension and scale.
        scales: Of guidance, a column each.
        keep: Never replace a file: a name that is taken gets a number behind it.
    """

    subjects: Sequence[Subject]
    stems: Sequence[str]
    scales: Sequence[float]
    keep: bool

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self.subjects) * len(self.scales)

    def options(self, options: SamplingOptions) -> list[SamplingOptions]:
        """The options at each scale."""
        return [
            replace(options, guidance=replace(options.guidance, scale=scale))
            for scale in self.scales
        ]

    def names(self, folder: Path) -> list[str]:
        """Names of the files without extension, scale by scale."""
        stems = list(self.stems)
        if len(self.scales) > 1:
            stems = [f"{stem}-w{scale:g}" for scale in self.scales for stem in self.stems]
        return free_names(folder, stems) if self.keep else stems


def class_sheet(
    generator: FlowGenerator, subjects: Sequence[Subject], scales: Sequence[float] = (1.0,)
) -> Sheet:
    """Samples without prompts, called ``<number>-<class>``; files of these names are replaced.

    Args:
        generator: Knows the classes' names.
        subjects: The samples.
        scales: Of guidance.
    """
    return Sheet(subjects, [_name(generator, subject) for subject in subjects], scales, keep=False)


def prompt_sheet(
    prompts: Sequence[Prompt], labels: Sequence[int], per_prompt: int, scales: Sequence[float]
) -> Sheet:
    """Some samples of each prompt; sample i of every prompt starts from the same noise.

    So a picture depends on its prompt, the seed and its number alone, not on the other prompts.

    Args:
        prompts: What to draw.
        labels: Classes, taken in turn by the samples; none for no class.
        per_prompt: Rows of each prompt.
        scales: Of guidance.
    """
    rows = [(prompt, i) for prompt in prompts for i in range(per_prompt)]
    subjects = [
        Subject(i, labels[row % len(labels)] if labels else None, prompt.text)
        for row, (prompt, i) in enumerate(rows)
    ]
    return Sheet(subjects, [prompt.stem for prompt, _ in rows], scales, keep=True)


@dataclass(frozen=True)
class _Drawn:
    """A picture: its number on the sheet, its place, how it was drawn, and its pixels.

    ``batch`` says how many samples were drawn at once, and which of them it was; ``pixels`` are
    uint8 (3, H, W), on the CPU.
    """

    number: int
    row: int
    column: int
    options: SamplingOptions
    batch: tuple[int, int]
    pixels: Tensor


def _draw(
    generator: FlowGenerator, sheet: Sheet, options: SamplingOptions, batch_size: int, here: World
) -> Iterator[_Drawn]:
    """This process's share of a sheet."""
    for column, scaled in enumerate(sheet.options(options)):
        first = column * len(sheet.subjects)
        for rows, x in sample_batches(generator, sheet.subjects, scaled, batch_size, here):
            pixels = to_uint8(generator.images(x)).cpu()
            for place, row in enumerate(rows):
                batch = (len(rows), place)
                yield _Drawn(first + row, row, column, scaled, batch, pixels[place])


def write_folder(
    folder: Path,
    generator: FlowGenerator,
    sheet: Sheet,
    options: SamplingOptions,
    batch_size: int,
    here: World,
) -> None:
    """Writes a PNG and a record for each picture, a grid, and ``samples.json``.

    Args:
        folder: Made if need be.
        generator: Draws the samples.
        sheet: Which.
        options: How; the sheet has the guidance scales.
        batch_size: Samples at a time.
        here: This process and the others.
    """
    names = broadcast_object(sheet.names(folder) if here.is_main else None)
    model, grid, shown = describe_model(generator), _grid(generator, sheet), {}
    with ImageWriter(folder) as writer:
        for drawn in _draw(generator, sheet, options, batch_size, here):
            name, subject = names[drawn.number], sheet.subjects[drawn.row]
            writer.write(f"{name}.png", drawn.pixels)
            record = picture_record(generator, model, subject, drawn.options, drawn.batch)
            writer.write_text(f"{name}.json", json_text(record))
            if (place := (drawn.row, drawn.column)) in grid.places:
                shown[place] = drawn.pixels
    gathered = {place: p for part in gather_objects(shown) for place, p in part.items()}
    if not here.is_main:
        return
    pixels = torch.stack([gathered[place] for place in grid.places]).float() / 127.5 - 1
    path = _grid_path(folder, sheet.keep)
    save_grid(path, pixels, grid.columns, grid.row_titles, grid.column_titles)
    summary = describe_sampling(generator, sheet, options)
    write_json(folder / "samples.json", summary | {"files": [f"{name}.png" for name in names]})


def write_again(
    folder: Path, generator: FlowGenerator, record: Mapping[str, Any], name: str, here: World
) -> Path:
    """Draws the picture of a record and writes it, with the record beside it.

    Args:
        folder: Made if need be; no file is replaced.
        generator: Whose weights drew it.
        record: As `read_picture_record` gives it.
        name: Of the files, without extension; a number goes behind it where it is taken.
        here: This process, of which the main one draws.

    Returns:
        Where the picture is.
    """
    (name,) = broadcast_object(free_names(folder, [name]) if here.is_main else None)
    path = folder / f"{name}.png"
    if here.is_main:
        save_image(path, to_uint8(draw_again(generator, record)[None])[0])
        write_json(folder / f"{name}.json", record | {"model": describe_model(generator)})
    barrier()
    return path


def write_npz(
    path: Path,
    generator: FlowGenerator,
    sheet: Sheet,
    options: SamplingOptions,
    batch_size: int,
    here: World,
) -> None:
    """Writes all samples to one file: ``arr_0``, uint8 (N, H, W, 3), and ``arr_1``, the labels.

    Args:
        path: Ends in .npz.
        generator: As for `write_folder`, like the rest.
        sheet: As there; scale by scale.
        options: As there.
        batch_size: As there.
        here: As there.

    Raises:
        ValueError: another ending.
    """
    if path.suffix != ".npz":
        raise ValueError(f"--npz {path} must end in .npz")
    partial = path.with_name(f".{path.stem}.partial.npy")
    array = None
    for drawn in _draw(generator, sheet, options, batch_size, here):
        pixels = drawn.pixels.permute(1, 2, 0).numpy()
        if array is None:
            array = _shared_array(partial, (sheet.count, *pixels.shape), here)
        array[drawn.number] = pixels
    if array is None:  # fewer samples than processes: this one has none, but must not hang
        _shared_array(partial, None, here)
    else:
        array.flush()
    barrier()
    if not here.is_main:
        return
    content = {"arr_0": np.load(partial, mmap_mode="r")}
    labels = [subject.label for subject in sheet.subjects]
    if None not in labels:
        content["arr_1"] = np.array(labels * len(sheet.scales), np.int64)
    finished = path.with_name(f".{path.stem}.finished.npz")
    np.savez(finished, **content)
    os.replace(finished, path)
    partial.unlink()


def _shared_array(path: Path, shape: tuple[int, ...] | None, here: World) -> np.ndarray | None:
    """A file on disk that all processes write their rows to; the main one makes it."""
    if here.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    barrier()
    if here.is_main:
        return array
    return None if shape is None else np.lib.format.open_memmap(path, "r+")


def describe_sampling(generator: FlowGenerator, sheet: Sheet, options: SamplingOptions) -> dict:
    """What was drawn and how, for JSON."""
    summary = {
        "num_images": sheet.count,
        "sampling": asdict(options),
        "guidance_scales": list(sheet.scales),
        "model": generator.record,
        "torch": torch.__version__,
    }
    labels = [subject.label for subject in sheet.subjects]
    prompts = [subject.prompt for subject in sheet.subjects]
    summary |= {} if None in labels else {"labels": labels}
    return summary if None in prompts else summary | {"prompts": list(dict.fromkeys(prompts))}


def _name(generator: FlowGenerator, subject: Subject) -> str:
    if subject.label is None:
        return f"{subject.index:06d}"
    name = generator.class_name(subject.label)
    return f"{subject.index:06d}-{''.join(c if c.isalnum() or c in '-_' else '_' for c in name)}"


def _grid_path(folder: Path, keep: bool) -> Path:
    path, number = folder / "grid.png", 1
    while keep and path.exists():
        path, number = folder / f"grid-{number}.png", number + 1
    return path


@dataclass(frozen=True)
class _Grid:
    """Which pictures, (row of the sheet, column), stand where in a grid, and its titles."""

    places: list[tuple[int, int]]
    columns: int
    row_titles: list[str] | None = None
    column_titles: list[str] | None = None


def _grid(generator: FlowGenerator, sheet: Sheet) -> _Grid:
    """A row a prompt or class where that is tidy, or a column a scale; else as they come."""
    titles = [generator.title(subject) for subject in sheet.subjects]
    if len(sheet.scales) > 1:
        width = len(sheet.scales)
        count = min(len(titles), max(MAX_IN_GRID // width, 1))
        places = [(row, column) for row in range(count) for column in range(width)]
        names = [f"guidance {scale:g}" for scale in sheet.scales]
        return _Grid(places, width, titles[:count] if any(titles) else None, names)
    groups: dict[str, list[int]] = {}
    for row, title in enumerate(titles):
        groups.setdefault(title, []).append(row)
    has_prompts = sheet.subjects[0].prompt is not None
    width = min(*map(len, groups.values()), MAX_IN_GRID // len(groups)) if len(groups) > 1 else 0
    if width > 1 or (has_prompts and len(groups) > 1):
        names = list(groups)[:MAX_IN_GRID]
        width = max(width, 1)
        return _Grid([(row, 0) for name in names for row in groups[name][:width]], width, names)
    count = min(len(titles), MAX_IN_GRID)
    width = max(round(count**0.5), 1)
    names = [titles[0]] + [""] * (-(-count // width) - 1) if has_prompts else None
    return _Grid([(row, 0) for row in range(count)], width, names)
