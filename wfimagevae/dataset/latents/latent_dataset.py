"""Latents that scripts/cache_latents.py encoded: read by position, drawn anew each epoch."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from wfimagevae.dataset.images.index import json_lines
from wfimagevae.dataset.latents.record import (
    ENDS,
    PARTS,
    RECORD_NAME,
    LatentShard,
    read_embeddings,
    read_record,
    shard_path,
    texts_path,
)
from wfimagevae.dataset.open_files import OpenFiles
from wfimagevae.dataset.order import ShuffledOrder, stable_seed
from wfimagevae.dataset.protocol import DataError, TrainData
from wfimagevae.dataset.text.captions import CaptionTable

FLIPPED = "_flipped"  # ends the name of the tensor of mirrored images
LOGVAR_RANGE = (-30.0, 20.0)
_CHECKED_BYTES = 256 * 2**20
# What data held out has in common with the training data.
_ALIKE: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "VAE weights": lambda record: record["vae"]["fingerprint"][:12],
    "resolution": lambda record: record["resolution"],
    "class_names": lambda record: record["class_names"],
    "text encoder": lambda record: {**(record.get("text") or {}), "source": None},
}


class LatentDataset(TrainData):
    """Normalised latents, (z - shift) * scale, in an endless shuffled order; see `TrainData`.

    The sample at a position depends on (seed, position) and the cache alone: which item it is, the
    draw from its posterior, whether the mirrored copy (if there is one) stands in for it, and which
    of its captions it shows. Up to 256 MiB of evenly spaced samples are checked to be finite at
    once, and each sample again when it is read; a DataError is one that is not, or a cache that is
    not finished or does not fit.

    ``like`` is the record of the training cache, for data held out: latents are normalised as
    there, and must come from the same VAE at the same resolution, with the same classes. ``text``
    is ``none``; ``captions``, each after ``prefix``; or ``embeddings``, which the cache must hold,
    besides.
    """

    data_key = "latent"

    def __init__(
        self,
        path: str | Path,
        seed: int = 1234,
        augment: bool = True,
        like: Mapping[str, Any] | None = None,
        prefix: str = "",
        text: Literal["none", "captions", "embeddings"] = "captions",
    ):
        self.folder = Path(os.path.expanduser(path))
        self.record = record = read_record(self.folder)
        self.seed, self.augment = seed, augment
        # Data held out must be of the training data's kind, and take its normalisation.
        if like is not None:
            has_texts = text == "embeddings" and like.get("text")
            for name, fact in _ALIKE.items():
                ours, theirs = fact(record), fact(like)
                if ours != theirs and (has_texts or name != "text encoder"):
                    raise DataError(
                        f"{self.folder} has {name} {ours!s:.80}, the training latents "
                        f"{theirs!s:.80}: encode both alike"
                    )
        normalization = record if like is None else like
        self.shift, self.scale = list(normalization["shift"]), list(normalization["scale"])
        self._shift, self._scale = (
            np.array(values, np.float32)[:, None, None] for values in (self.shift, self.scale)
        )
        self.sample_shape = tuple(record["latent_shape"])
        self.class_names = list(record["class_names"])
        # Look at every shard now, rather than when training comes to it.
        self._is_sampled = record["posterior"] == "sample"
        self._tensor = "moments" if self._is_sampled else "latents"
        numbers, self._files = range(len(record["samples"])), OpenFiles()
        self._shards = [LatentShard(shard_path(self.folder, number)) for number in numbers]
        for number in numbers:
            self._check_shard(number)
        self._files = OpenFiles()  # closes the shards until training comes to them
        self._ends = np.cumsum(record["samples"], dtype=np.int64)
        if not self._ends[-1]:
            raise DataError(f"{self.folder} holds no latents: no image of its source was readable")
        self._order = ShuffledOrder(int(self._ends[-1]), seed)
        # Captions, their embeddings, and labels, as far as they are asked for.
        if prefix and (record.get("prefix") or text == "embeddings"):
            raise DataError(
                f"{self.folder}: its captions were encoded, or begin with "
                f"{record.get('prefix', '')!r} already: leave out the prefix {prefix!r}, or encode "
                "anew with it"
            )
        self._captions = None if text == "none" else self._read_captions(prefix)
        self.has_captions = self._captions is not None
        self.text_facts = record.get("text") if text == "embeddings" else None
        if text == "embeddings" and not self.text_facts:
            raise DataError(
                f"{self.folder / RECORD_NAME} holds no embeddings of captions: run "
                "cache_latents.py with --text_encoder"
            )
        for shard in self._shards if self.text_facts else ():
            if missing := {*PARTS.values(), ENDS} - shard.tensors.keys():
                raise DataError(f"{shard.path} has no {', '.join(sorted(missing))}: encode anew")
        self._labels = self._read_labels()

    def read_batch(self, positions: list[int]) -> dict[str, Any]:
        """``latent`` float32 (B, C, h, w); with classes, ``label`` int64 (B,); with captions,
        ``caption``, B strings; with their embeddings ``tokens``, ``mask`` and ``pooled``.
        """
        latents = np.empty((len(positions), *self.sample_shape), np.float32)
        indices = [self._order.index(position) for position in positions]
        for slot, index, position in zip(latents, indices, positions, strict=True):
            slot[:] = self._draw(index, position)
        batch = {"latent": torch.from_numpy(latents)}
        if self._labels is not None:
            batch["label"] = self._labels[indices]
        pairs = list(zip(indices, positions, strict=True))
        if self._captions is not None:
            batch["caption"] = [self._captions.pick(i, k, self.seed) for i, k in pairs]
        if self.text_facts is not None:
            choose = self._captions.choose
            places = [(*self._place(i), choose(i, k, self.seed)) for i, k in pairs]
            batch |= read_embeddings(self.text_facts, self._stored, places)
        return batch

    def texts(self, number: int) -> list[dict[str, Any]]:
        """``name`` and ``caption`` of each sample of a shard, as `IndexedImages.text` has them.

        A line that has not is a DataError, which names it; so is another number of lines.
        """
        texts, path, count = [], texts_path(self.folder, number), self.record["samples"][number]
        for where, text, line in json_lines(str(path)):
            fields = text if isinstance(text, dict) else {}
            captions = fields.get("caption", False)
            if not isinstance(captions, list):
                captions = [] if captions is None else [captions]
            if not all(isinstance(part, str) for part in (fields.get("name"), *captions)):
                raise DataError(
                    f'{where}: expected {{"name": ..., "caption": ...}}, got {line:.80}'
                )
            texts.append(text)
        if len(texts) != count:
            raise DataError(
                f"{path} has names and captions of {len(texts)} samples, its shard {count} "
                "latents: delete it and run cache_latents.py again"
            )
        return texts

    def _draw(self, index: int, position: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=stable_seed(self.seed, "latent", position)))
        use_flipped = rng.random() < 0.5 and self.augment and self.record["flip"]
        name = self._tensor + (FLIPPED if use_flipped else "")
        number, row = self._place(index)
        values = self._stored(number, name, row).float().numpy()
        if self._is_sampled:
            mean, logvar = np.split(values, 2)
            std = np.exp(0.5 * logvar.clip(*LOGVAR_RANGE))
            values = mean + std * rng.standard_normal(mean.shape, np.float32)
        return (values - self._shift) * self._scale

    def _place(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - int(self._ends[number]) + self.record["samples"][number]

    def _stored(self, number: int, name: str, row: int | None = None) -> Tensor:
        """A tensor of a shard, or a row of it; a DataError for a latent that is not finite."""
        values = self._shards[number].read(self._files, name, row)
        if name.startswith(self._tensor) and not values.isfinite().all():
            raise DataError(
                f"{self._shards[number].path}: sample {row} of {name} is not finite (NaN or "
                "infinity); delete the shard and run cache_latents.py again"
            )
        return values

    def _check_shard(self, number: int) -> None:
        shard, count = self._shards[number], self.record["samples"][number]
        if shard.facts.get("plan") != self.record["plan"]:
            raise DataError(f"{shard.path} belongs to another cache than {RECORD_NAME} beside it")
        channels, *size = self.sample_shape
        expected = (count, channels * (2 if self._is_sampled else 1), *size)
        for name in [self._tensor] + [self._tensor + FLIPPED] * self.record["flip"]:
            kind, shape = shard.tensors.get(name, (None, None))
            if shape != expected:
                raise DataError(f"{shard.path}: {name} has shape {shape}, expected {expected}")
            size = math.prod(shape) * kind.itemsize
            stride = -(-size * len(self._shards) // _CHECKED_BYTES)
            for row in range(0, count, max(stride, 1)):
                self._stored(number, name, row)

    def _read_captions(self, prefix: str) -> CaptionTable | None:
        def lines() -> Iterator[list[str]]:
            for texts in map(self.texts, range(len(self._shards))):
                for caption in (text["caption"] for text in texts):
                    yield [caption] if isinstance(caption, str) else caption or []

        table = CaptionTable(lines(), prefix)
        return table if len(table.without()) < len(table) else None

    def _read_labels(self) -> Tensor | None:
        if not self.num_classes:
            return None
        labels = []
        for number, count in enumerate(self.record["samples"]):
            path, tensors = self._shards[number].path, self._shards[number].tensors
            if (found := tensors.get("labels")) != (torch.int64, (count,)):
                raise DataError(f"{path}: labels are {found}, expected {count} numbers")
            labels.append(self._stored(number, "labels"))
            wrong = labels[-1][(labels[-1] < 0) | (labels[-1] >= self.num_classes)]
            if len(wrong):
                raise DataError(
                    f"{path}: label {wrong[0]} is out of range, use 0 to {self.num_classes - 1}"
                )
        return torch.cat(labels)
