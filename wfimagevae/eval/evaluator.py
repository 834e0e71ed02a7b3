"""Metrics of images against references: of pairs, and of whole sets, on any number of processes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from wfimagevae.engine.distributed import World, barrier, gather_objects
from wfimagevae.eval.clip_score import clip_scores
from wfimagevae.eval.features import Extractor, describe_features, load_features, load_inception
from wfimagevae.eval.options import (
    METRICS,
    REFERENCE_METRICS,
    SET_METRICS,
    MetricOptions,
    SetMetricOptions,
)
from wfimagevae.eval.psnr import psnr
from wfimagevae.eval.sample_sets import SampleSet
from wfimagevae.eval.set_metrics import (
    KID_SEED,
    NEIGHBOURS,
    energy_distance,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from wfimagevae.eval.ssim import ssim
from wfimagevae.generate.image_folder import Unreadable, list_unreadable
from wfimagevae.model.clip import Clip, load_clip
from wfimagevae.model.losses.lpips_network import LPIPS, MissingWeights
from wfimagevae.model.weight_files import weights_fingerprint
from wfimagevae.pictures.pixels import to_unit


@contextmanager
def _main_process_first() -> Iterator[None]:
    """Rank 0 loads networks first: it downloads what the others then find in the cache."""
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    if not is_main:
        barrier()
    yield
    if is_main:
        barrier()


def _lpips(network: LPIPS, x: Tensor, y: Tensor) -> Tensor:
    """Perceptual distances, (B,), of images in [0, 1], (B, 3, H, W)."""
    return network(x * 2 - 1, y * 2 - 1).flatten()


class Evaluator:
    """Metrics of pairs, accumulated over batches; every image weighs the same.

    ``unavailable`` maps a metric to the way to get its weights, if they are missing; after
    `compute`, ``notes`` maps one to what its value hides, and ``count`` images are those of all
    processes.
    """

    def __init__(
        self, metrics: Sequence[str], device: torch.device, options: MetricOptions | None = None
    ):
        unknown = [name for name in metrics if name not in METRICS]
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]!r}; choose from {', '.join(METRICS)}")
        self.device, options = device, options or MetricOptions()
        self.names = [name for name in METRICS if name in metrics]
        self.unavailable: dict[str, str] = {}
        self._per_image: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        self._extract: Extractor | None = None
        with _main_process_first():
            for name in self.names:
                try:
                    if name == "rfid":
                        self._extract = load_inception(device, options.inception_weights)
                    elif name == "lpips":
                        network = LPIPS(options.lpips_net, options.lpips_weights).to(device)
                        self._per_image[name] = partial(_lpips, network)
                    else:
                        self._per_image[name] = psnr if name == "psnr" else ssim
                except MissingWeights as error:
                    self.unavailable[name] = str(error)
        self.reset()

    def reset(self) -> None:
        self._images = 0
        # Per metric its values, (B,); and what rFID compares.
        self._kept: dict[str, list[Tensor]] = {name: [] for name in self._per_image}
        self._features: tuple[list[Tensor], list[Tensor]] = [], []
        self.notes: dict[str, str] = {}
        self.count = 0

    @torch.no_grad()
    def update(self, real: Tensor, generated: Tensor) -> None:
        """Adds originals in [-1, 1], (B, 3, H, W), and reconstructions of that shape and range."""
        x, y = to_unit(real.to(self.device)), to_unit(generated.to(self.device))
        for name, measure in self._per_image.items():
            self._kept[name].append(measure(x, y).cpu().double())
        for images, features in zip((x, y), self._features, strict=True):
            if self._extract:  # of 8-bit images, as those of published FIDs
                features.append(self._extract(images.mul(255).round().to(torch.uint8)).cpu())
        self._images += len(x)

    def compute(self) -> dict[str, float]:
        """Available metric -> mean over images of all processes; every process must call it.

        PSNR is infinite if any pair is identical; rFID is one distance between the two sets. No
        image at all, or a single one for rFID, is a ValueError.
        """
        self.count, values = sum(gather_objects(self._images)), {}
        if not self.count:
            raise ValueError("no images to evaluate")
        for name, kept in self._kept.items():
            finite = [v for v in gather_rows(kept).tolist() if v != math.inf]
            infinite = self.count - len(finite)
            values[name] = math.inf if infinite else sum(finite) / self.count
            if infinite:  # an infinite mean says nothing of the finite values
                note = f"infinite: {infinite} of {self.count} reconstructions equal their original"
                if finite:
                    mean = sum(finite) / len(finite)
                    note += f"; the mean {name} of the others is {mean:.4f}"
                self.notes[name] = note
        if self._extract:
            real, generated = map(gather_rows, self._features)
            values["rfid"] = frechet_distance(real, generated)
            if self.count < real.shape[1]:
                self.notes["rfid"] = (
                    f"{self.count} images are fewer than the {real.shape[1]} features: "
                    "compare only with figures from the same images"
                )
        return {name: values[name] for name in self.names if name in values}


def gather_rows(mine: list[Tensor]) -> Tensor:
    """The rows of all processes, rank by rank."""
    return torch.cat([rows for part in gather_objects(mine) for rows in part])


class _Collected(NamedTuple):
    """What is kept of a set: features, (N, F), raw samples for the energy distance, CLIP scores."""

    count: int
    left_out: int
    shape: tuple[int, ...]
    features: Tensor | None
    raw: Tensor | None
    clip_scores: Tensor | None


class SetEvaluator:
    """Metrics of sets of samples against a reference set, on any number of processes.

    The reference is read at once. ``unavailable`` maps a metric to the way to get its weights, if
    they are missing; ``unreadable`` images of the sets so far are left out. A weight file that
    holds something else, too few samples, or of unlike sizes, are a ValueError.
    """

    def __init__(
        self, options: SetMetricOptions, world: World, reference: SampleSet, batch_size: int
    ):
        metrics = options.metric or REFERENCE_METRICS
        self.names = [name for name in SET_METRICS if name in metrics]
        self.options, self.world, self.batch_size = options, world, batch_size
        # float64 statistics; a single Mac's GPU has none.
        self.device = torch.device("cpu") if world.device.type == "mps" else world.device
        self.unavailable: dict[str, str] = {}
        self.unreadable: Unreadable = []
        self._extract: Extractor | None = None
        self._clip: Clip | None = None
        names = [name for name in self.names if name not in ("energy_distance", "clip_score")]
        with _main_process_first():
            try:
                self._extract = load_features(options, self.device) if names else None
            except MissingWeights as error:
                self.unavailable = dict.fromkeys(names, str(error))
            if "clip_score" in self.names:
                try:
                    self._clip = load_clip(options.clip_model)
                    self._clip.network.to(self.device)
                except MissingWeights as error:
                    self.unavailable["clip_score"] = str(error)
        self._real: _Collected | None = None
        self._real = self._collect("reference", reference)

    def measure(self, samples: SampleSet) -> tuple[dict[str, float], dict[str, str], dict]:
        """Compares a set with the reference; every process must call it, all return the same.

        Gives the figures, unavailable ones left out: ``fid``, ``kid`` and ``kid_std``,
        ``precision`` and ``recall``, ``energy_distance``, ``clip_score``; metric -> what a
        reader of its figure should know; and the protocol. Too few samples, of unlike sizes, or
        without what CLIP compares them with, are a ValueError.
        """
        real, generated = self._real, self._collect("generated", samples)
        count = min(real.count, generated.count)
        values, notes = {}, {}
        protocol = {"real_count": real.count, "generated_count": generated.count}
        protocol["size"] = _size(real.shape)
        for name, collected in (("real", real), ("generated", generated)):
            protocol |= {f"{name}_left_out": collected.left_out} if collected.left_out else {}
        names, options = [name for name in self.names if name not in self.unavailable], self.options
        packages = ["torch", "numpy", "pillow"]
        if self._extract:
            a, b = real.features.to(self.device), generated.features.to(self.device)
            protocol["features"] = describe_features(options, a.shape[1])
            packages += ["torch-fidelity"]
        if "fid" in names:
            values["fid"] = frechet_distance(a, b)
            protocol["fid"] = "float64 moments, trace by eigenvalues"
            if count < a.shape[1]:
                notes["fid"] = (
                    f"{count} samples are fewer than the {a.shape[1]} features: compare only with "
                    "figures of as many samples"
                )
        if "kid" in names:
            size, number = min(options.kid_subset_size, count), options.kid_num_subsets
            values["kid"], values["kid_std"] = kernel_distance(a, b, size, number)
            protocol["kid"] = {
                "kernel": "(x y / F + 1)^3, unbiased",
                "subset_size": size,
                "num_subsets": number,
                "seed": KID_SEED,
            }
        if "precision_recall" in names:
            values["precision"], values["recall"] = precision_recall(a, b)
            protocol["precision_recall"] = f"k = {NEIGHBOURS}"
        if "energy_distance" in names:
            # Of images in [-1, 1]: distances of 8-bit values, rescaled, without a copy in floats.
            is_image = real.raw.dtype == torch.uint8
            distance = energy_distance(real.raw.to(self.device), generated.raw.to(self.device))
            values["energy_distance"] = distance * (1 / 127.5) if is_image else distance
            protocol["energy_distance"] = {
                "vectors": "raw pixels in [-1, 1], Euclidean" if is_image else "points, Euclidean",
                "estimator": "unbiased (U-statistic), float64",
                "real_samples": len(real.raw),
                "generated_samples": len(generated.raw),
            }
        if "clip_score" in names:
            values["clip_score"] = generated.clip_scores.double().mean().item()
            protocol["clip_score"] = {
                "model": self._clip.name,
                "weights": weights_fingerprint(self._clip.network)[:12],
                "average": "mean of cosines",
            }
            packages += [self._clip.package]
        protocol["versions"] = {name: version(name) for name in packages}
        return values, notes, protocol

    def _collect(self, title: str, samples: SampleSet) -> _Collected:
        """Features and raw samples of a set, each process its share; all return the same.

        Unreadable images are left out and printed.
        """
        count, world = len(samples), self.world
        captions = getattr(samples, "captions", None)
        clip = self._clip if self._real else None
        if clip and not captions:
            raise ValueError(f"clip_score: {title} samples have no prompts or captions")
        # Choose what the energy distance compares at random, since folders are sorted.
        kept = torch.zeros(count, dtype=torch.bool)
        if "energy_distance" in self.names:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
            kept[order[: self.options.energy_samples]] = True
        # Read this process's share, until a sample has another size.
        numbers, size = list(range(world.rank, count, world.size)), self.batch_size
        batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        features, raw, scores = [], [], []
        shapes = {self._real.shape} if self._real else set()
        left_out, read = getattr(samples, "left_out", {}), []
        with tqdm(total=len(numbers), desc=title, disable=not world.is_main) as bar:
            for batch, places in zip(samples.read(batches), batches, strict=True):
                bar.update(len(places))
                places = [n for n in places if n not in left_out]
                if not places:
                    continue
                read += places
                shapes.add(tuple(batch.shape[1:]))
                if len(shapes) > 1:
                    break
                if self._extract:
                    features.append(self._extract(batch).cpu())
                raw.append(batch[kept[places]].cpu())
                if clip:
                    scores.append(clip_scores(clip, batch, [captions[n] for n in places], size))
        # Every process learns of it; then the shares are put together in the set's order.
        shapes = set().union(*gather_objects(shapes))
        own = {self._real.shape} if self._real else set()
        if len(shapes) > 1:
            sizes = " and ".join(sorted(map(_size, shapes - own)))
            others = f", the reference's are {_size(self._real.shape)}" if own else ""
            raise ValueError(
                f"{title} samples differ in size, {sizes}{others}; give --resolution, or "
                "remove what is no sample"
            )
        unreadable = list_unreadable(list(left_out.values()), world)
        self.unreadable += unreadable
        count -= len(unreadable)
        if count <= NEIGHBOURS:
            raise ValueError(
                f"{title}: {count} samples are too few to compare distributions; use thousands"
            )
        return _Collected(
            count,
            len(unreadable),
            shapes.pop(),
            _pool(features, read) if self._extract else None,
            _pool(raw, [n for n in read if kept[n]]) if kept.any() else None,
            _pool(scores, read) if clip else None,
        )


def _pool(parts: list[Tensor], numbers: list[int]) -> Tensor:
    """Rows of all processes in the order of their numbers."""
    order = torch.tensor([n for part in gather_objects(numbers) for n in part]).argsort()
    return gather_rows(parts)[order]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}" if len(shape) == 3 else f"{shape[0]}-D"
