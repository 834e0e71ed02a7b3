"""Generated images as files: a folder of PNGs with a grid and a record, or one .npz."""

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wfimagevae.engine.distributed import World, barrier, gather_objects
from wfimagevae.eval.generation import FlowGenerator, SamplingOptions, sample_batches
from wfimagevae.eval.image_writer import ImageWriter
from wfimagevae.eval.images import to_uint8
from wfimagevae.eval.report import write_json
from wfimagevae.eval.sample_grid import save_grid

MAX_IN_GRID = 64


def write_folder(
    folder: Path,
    generator: FlowGenerator,
    labels: Tensor | None,
    count: int,
    options: SamplingOptions,
    batch_size: int,
    here: World,
) -> None:
    """Writes ``<number>-<class>.png`` for each sample, ``grid.png`` and ``samples.json``.

    Args:
        folder: Made if need be; files of the same names are replaced.
        generator: Draws the samples.
        labels: Of all samples, (count,), or None.
        count: Samples over all processes.
        options: How to draw them.
        batch_size: Samples at a time.
        here: This process and the others.
    """
    shown: dict[int, Tensor] = {}
    with ImageWriter(folder) as writer:
        batches = sample_batches(generator, labels, count, options, batch_size, here)
        for indices, x in batches:
            pixels = to_uint8(generator.images(x)).cpu()
            for i, picture in zip(indices, pixels, strict=True):
                writer.write(_name(generator, labels, i), picture)
                if i < MAX_IN_GRID:
                    shown[i] = picture
    gathered = {i: picture for part in gather_objects(shown) for i, picture in part.items()}
    if not here.is_main:
        return
    order, columns, row_labels = _grid_order(generator, labels, len(gathered))
    pixels = torch.stack([gathered[i] for i in order])
    save_grid(folder / "grid.png", pixels.float() / 127.5 - 1, columns, row_labels)
    record = describe_sampling(generator, options, count)
    if labels is not None:
        record["labels"] = labels.tolist()
    write_json(folder / "samples.json", record)


def write_npz(
    path: Path,
    generator: FlowGenerator,
    labels: Tensor | None,
    count: int,
    options: SamplingOptions,
    batch_size: int,
    here: World,
) -> None:
    """Writes all samples to one file: ``arr_0``, uint8 (N, H, W, 3), and ``arr_1``, the labels.

    Args:
        path: Ends in .npz.
        generator: As for `write_folder`, like the rest.
        labels: As there.
        count: As there.
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
    for indices, x in sample_batches(generator, labels, count, options, batch_size, here):
        pixels = to_uint8(generator.images(x)).permute(0, 2, 3, 1).cpu().numpy()
        if array is None:
            array = _shared_array(partial, (count, *pixels.shape[1:]), here)
        array[indices] = pixels
    if array is None:  # fewer samples than processes: this one has none, but must not hang
        _shared_array(partial, None, here)
    else:
        array.flush()
    barrier()
    if not here.is_main:
        return
    content = {"arr_0": np.load(partial, mmap_mode="r")}
    if labels is not None:
        content["arr_1"] = labels.numpy()
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


def describe_sampling(generator: FlowGenerator, options: SamplingOptions, count: int) -> dict:
    """All that is needed to draw the same samples again, for JSON."""
    return {
        "num_images": count,
        "sampling": asdict(options),
        "model": generator.record,
        "torch": torch.__version__,
    }


def _name(generator: FlowGenerator, labels: Tensor | None, i: int) -> str:
    if labels is None:
        return f"{i:06d}.png"
    name = generator.class_name(int(labels[i]))
    return f"{i:06d}-{''.join(c if c.isalnum() or c in '-_' else '_' for c in name)}.png"


def _grid_order(
    generator: FlowGenerator, labels: Tensor | None, count: int
) -> tuple[list[int], int, list[str] | None]:
    """Which samples stand where: one row a class where that is tidy, else as they come."""
    if labels is not None:
        classes = list(dict.fromkeys(labels[:count].tolist()))
        rows = [[i for i in range(count) if labels[i] == number] for number in classes]
        columns = min(map(len, rows))
        if len(classes) > 1 and columns > 1:
            titles = [generator.class_name(number) for number in classes]
            return [i for row in rows for i in row[:columns]], columns, titles
    return list(range(count)), max(round(count**0.5), 1), None
