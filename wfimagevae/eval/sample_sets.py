"""Sets of samples to compare: image folders, .npz files, drawn data sets, a generator's output.

``read`` gives their batches, 8-bit images (B, 3, H, W) or points, float32 (B, 2), for batches of
their numbers; ``description`` is for a protocol.
"""

import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wfimagevae.dataset import (
    Captions,
    Cifar10Dataset,
    DataError,
    PointDataset,
    ShapesDataset,
    TrainData,
    ValidImageDataset,
    batch_loader,
)
from wfimagevae.dataset.text.captions import read_captions
from wfimagevae.engine.seeding import stable_hash
from wfimagevae.eval.options import LabelSampling, ReferenceOptions
from wfimagevae.files import DAMAGED_ARRAYS, read_json
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject, records_folder
from wfimagevae.pictures.pixels import to_uint8

# Shapes that training does not draw, whatever its --num_shapes.
_FIRST_FRESH_SHAPE = 10**9


class FolderImages:
    """Images of a folder or manifest, all of one size after resizing and cropping.

    ``captions`` are what images are compared with by CLIP, if they are given later;
    ``left_out`` has, by their numbers, paths and reasons of unreadable ones among those read.

    Sizes are those of `ValidImageDataset`. Images of an earlier run of generate.py among those of
    the last are a ValueError.
    """

    def __init__(self, path: str | Path, *sizes: int | None, num_workers: int = 0):
        self.dataset = ValidImageDataset(path, *sizes)
        record = records_folder(path) / "samples.json"
        if record.is_file():
            written = read_json(record).get("num_images")
            if written and len(self.dataset) > written:
                raise ValueError(
                    f"{path} holds {len(self.dataset)} images, of which generate.py's last run "
                    f"wrote {written}: empty the folder and generate again"
                )
        self.path, self.num_workers = path, num_workers
        self.captions: list[str] | None = None
        self.left_out: dict[int, tuple[str, str]] = {}
        resolution, crop = self.dataset.resolution, self.dataset.crop_size
        self.description = {
            "source": str(path),
            "resize": f"shorter side to {resolution}" if resolution else "none",
            "crop": f"centre {crop}x{crop}" if crop else "none",
        }

    def __len__(self) -> int:
        return len(self.dataset)

    def prompts(self, captions: Captions) -> list[str]:
        """A caption of each image, "" where it has none; ValueError if none has one."""
        table = read_captions(self.path, self.dataset.images, captions)
        return [table.pick(self.dataset.index(i), i, 0) for i in range(len(self))]

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Batches of those of these numbers that are readable; ValueError for different sizes."""
        for batch in batch_loader(self, batches, self.num_workers):
            self.left_out.update(batch["left_out"])
            yield to_uint8(batch["image"])

    def read_batch(self, numbers: list[int]) -> dict[str, Any]:
        """``image``, (B, 3, H, W) in [-1, 1], and ``left_out``; in a worker. Errors of `read`."""
        samples = {i: self.dataset[i] for i in numbers}
        left_out = {
            i: (self.dataset.images.name(self.dataset.index(i)), sample["error"])
            for i, sample in samples.items()
            if sample["error"]
        }
        samples = [sample for sample in samples.values() if not sample["error"]]
        shapes = {tuple(sample["image"].shape[1:]): sample["path"] for sample in samples}
        if len(shapes) > 1:
            sizes = " and ".join(f"{path} ({w}x{h})" for (h, w), path in shapes.items())
            raise DataError(
                f"{self.path}: images differ in size: {sizes}; give --resolution, or remove what "
                "is no sample"
            )
        images = [sample["image"] for sample in samples]
        return {"image": torch.stack(images) if images else torch.empty(0), "left_out": left_out}


class NpzImages:
    """Images of an .npz file as public FID code reads them: ``arr_0``, uint8 (N, H, W, 3).

    They are read as they are asked for: every process has such a set, and memory for few of them.
    """

    def __init__(self, path: str | Path):
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file")
        try:
            self._file = zipfile.ZipFile(path).open("arr_0.npy")  # noqa: SIM115 - read again
            is_first = np.lib.format.read_magic(self._file) == (1, 0)
            read_header = getattr(np.lib.format, f"read_array_header_{1 if is_first else 2}_0")
            self.shape, is_fortran, dtype = read_header(self._file)
        except DAMAGED_ARRAYS as error:
            raise ValueError(f"{path} has no images under 'arr_0': {error}") from None
        if dtype != np.uint8 or len(self.shape) != 4 or self.shape[3] != 3 or is_fortran:
            raise ValueError(
                f"{path}: 'arr_0' must be uint8 (N, H, W, 3), in C order, got {dtype} {self.shape}"
            )
        self.captions = None
        self._first, self._size = self._file.tell(), math.prod(self.shape[1:])
        self.description = {"source": str(path), "resize": "none", "crop": "none"}

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        path = self.description["source"]
        for numbers in batches:
            images = np.empty((len(numbers), *self.shape[1:]), np.uint8)
            for number, image in zip(numbers, images, strict=True):
                try:
                    self._file.seek(self._first + number * self._size)
                    if self._file.readinto(image.reshape(-1)) < self._size:
                        raise EOFError
                except EOFError:
                    raise DataError(f"{path} was cut: image {number} is missing") from None
                except DAMAGED_ARRAYS as error:
                    raise DataError(f"{path} is damaged at image {number}: {error}") from None
            yield torch.from_numpy(images).permute(0, 3, 1, 2)


class DrawnSamples:
    """The first ``count`` samples of a `TrainData` of pixels or points that does not augment."""

    def __init__(self, dataset: TrainData, count: int, name: str):
        self.dataset, self.count = dataset, count
        self.description = {"source": name, "seed": dataset.seed}

    def __len__(self) -> int:
        return self.count

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        cpu, key = torch.device("cpu"), self.dataset.data_key
        for numbers in batches:
            samples = self.dataset.to_inputs(self.dataset.read_batch(list(numbers)), cpu)[key]
            yield to_uint8(samples) if key == "image" else samples


def open_images(path: str, *sizes: int | None, num_workers: int = 0) -> FolderImages | NpzImages:
    """The images of an .npz file, taken as they are, or of a folder or manifest."""
    if Path(path).suffix != ".npz":
        return FolderImages(path, *sizes, num_workers=num_workers)
    if any(sizes):
        raise ValueError(f"{path}: images of an .npz file are taken as they are, all of them")
    return NpzImages(path)


class GeneratedSamples:
    """What a generator draws, sample by sample the same in any batch and on any rank.

    What is ``shown``, by class, prompt or both, is by default each class, or nothing; ``balanced``
    takes it in turn, ``random`` draws it anew for each sample. ``nfe``, after `read`, counts
    evaluations of the network for one sample: where guidance is active, a step's conditional and
    null ones are two.
    """

    def __init__(
        self,
        generator: FlowGenerator,
        options: SamplingOptions,
        count: int,
        label_sampling: LabelSampling = "balanced",
        shown: Sequence[Subject] = (),
    ):
        self.generator, self.options = generator, generator.resolve(options)
        self.count, self.nfe = count, 0.0
        num_classes = generator.model.num_classes
        shown = shown or [Subject(0, label) for label in range(num_classes)] or [Subject(0)]
        order = range(count)
        if label_sampling == "random":
            order = [stable_hash("label", options.seed, i) for i in range(count)]
        # The same subject, label or prompt, in any batch: it depends on the sample's number alone.
        self.subjects = [replace(shown[n % len(shown)], index=i) for i, n in enumerate(order)]
        prompts = [subject.prompt for subject in shown if subject.prompt is not None]
        has_labels = any(subject.label is not None for subject in shown)
        self.description = {
            "source": "generated",
            "labels": label_sampling if has_labels else "none",
            "model": generator.record,
        }
        self.captions = [subject.prompt for subject in self.subjects] if prompts else None
        if prompts:
            self.description["prompts"] = f"{label_sampling}, {len(prompts)}"
            self.description["prompts_hash"] = f"{stable_hash(*prompts):016x}"

    def __len__(self) -> int:
        return self.count

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Batches of these numbers; ValueError if images are not finite."""
        rows, drawn, is_points = 0, 0, self.generator.facts["space"] == "point"

        # Count the rows that the network sees: a guided step evaluates two for a sample.
        def count_rows(module, inputs) -> None:
            nonlocal rows
            rows += len(inputs[0])

        hook = self.generator.model.register_forward_pre_hook(count_rows)
        try:
            for numbers in batches:
                x = self.generator.draw([self.subjects[n] for n in numbers], self.options)
                drawn += len(numbers)
                self.nfe = rows / drawn
                yield x.float() if is_points else to_uint8(self.generator.images(x))
        finally:
            hook.remove()


SampleSet = FolderImages | NpzImages | DrawnSamples | GeneratedSamples


def open_reference(
    options: ReferenceOptions, num_generated: int, num_workers: int = 0
) -> SampleSet:
    """The reference set that the options name; drawn ones have ``num_generated`` samples."""
    if options.real_image_dir:
        sizes = options.resolution, options.crop_size, options.subset_size
        return open_images(options.real_image_dir, *sizes, num_workers=num_workers)
    name, count = options.dataset, options.num_real or num_generated
    if name == "cifar10":
        if not options.data_path:
            raise ValueError("--dataset cifar10 needs --data_path, the folder that holds it")
        dataset = Cifar10Dataset(options.data_path, augment=False)
        return DrawnSamples(dataset, min(options.num_real or len(dataset), len(dataset)), name)
    if name == "shapes":
        dataset = ShapesDataset(
            options.resolution or 32, num_items=count, first_index=_FIRST_FRESH_SHAPE, augment=False
        )
        return DrawnSamples(dataset, count, f"shapes, {dataset.resolution} px")
    return DrawnSamples(PointDataset(name, split="test"), count, name)
