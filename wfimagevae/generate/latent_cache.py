"""Images encoded once, in shards with a record of what they are; statistics of latents.

The statistics turn latents into inputs of mean 0 and variance 1 for a flow.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from wfimagevae.dataset import DataError, IndexedImages, batch_loader
from wfimagevae.dataset.latents.latent_dataset import FLIPPED
from wfimagevae.dataset.latents.record import (
    RECORD_NAME,
    RECORD_VERSION,
    LatentShard,
    compact,
    shard_path,
    text_tensors,
    texts_path,
)
from wfimagevae.dataset.protocol import to_signed_unit
from wfimagevae.engine.device import PRECISIONS, autocast
from wfimagevae.engine.distributed import World, all_reduce_sum, barrier, broadcast_object
from wfimagevae.files import read_json, sole_writer, write_atomically, write_json, write_text
from wfimagevae.generate.autoencoders import Autoencoder
from wfimagevae.generate.options import CacheOptions
from wfimagevae.model.text import TextEncoder
from wfimagevae.model.vae.tiling import pad_to_multiple
from wfimagevae.model.weight_files import weights_fingerprint

_log = logging.getLogger("wfimagevae")


class LatentCache:
    """Writes a cache of latents, or finishes one that was begun.

    ``vae_source`` says where the autoencoder came from, for the record; ``text`` is a frozen text
    encoder, whose embeddings of all captions are stored besides. A model without a posterior to
    sample or a configuration to normalise by, a resolution that is no multiple of the model's, or
    another cache in the folder are a ValueError.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        vae_source: str,
        images: IndexedImages,
        folder: Path,
        options: CacheOptions,
        text: TextEncoder | None = None,
    ):
        if text is not None and not images.has_captions:
            raise ValueError("--text_encoder needs captions: give --captions")
        if images.resolution % autoencoder.multiple:
            raise ValueError(
                f"resolution {images.resolution} is no multiple of {autoencoder.multiple}, "
                f"which {vae_source} needs"
            )
        if options.normalization == "vae" and autoencoder.normalization is None:
            raise ValueError(
                f"the configuration of {vae_source} has no shift and scale of its own; "
                "use --normalization statistics, or run scripts/latent_stats.py --write first"
            )
        self.autoencoder, self.vae_source, self.images = autoencoder, vae_source, images
        self.folder, self.options, self.text = folder, options, text
        self.tensor_name = "moments" if options.posterior == "sample" else "latents"

        # The shapes of what will be stored are those of one gray image.
        gray = torch.zeros(1, 3, images.resolution, images.resolution)
        stored, _ = self._encode(gray, ["a gray image"])
        self._nothing = {name: values[:0] for name, values in stored.items()}
        channels, *size = stored[self.tensor_name].shape[1:]
        self.latent_shape = (channels // (2 if options.posterior == "sample" else 1), *size)
        self.facts = self._facts()
        plan = _without_places(self.facts)
        self.plan_hash = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
        self.num_shards = -(-len(images) // options.shard_size)
        if not (folder / RECORD_NAME).exists():
            return
        old = _without_places(read_json(folder / RECORD_NAME))
        plan = {"text": None} | plan | {"version": RECORD_VERSION}
        if different := [key for key in plan if old.get(key) != plan[key]]:
            raise ValueError(
                f"{folder} holds a cache made with other {', '.join(different)}: give another "
                "--output_dir, or delete that one"
            )

    def run(self, world: World) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Encodes this process's share of the missing shards; the main one writes the record.

        Gives the record, the same on all processes, and (path, reason) of the unreadable images
        that this process met in this run; those of shards found whole are counted in the record
        only. Latents that are not finite, or no readable image, are a ValueError.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(sole_writer(self.folder, world.is_main))
            # One process sees what is missing, all share it out, one writes the record of all.
            missing = broadcast_object(self._prepare() if world.is_main else None)
            # One loader reads all batches ahead, also across shards.
            size, step = self.options.shard_size, self.options.batch_size
            batches = {}
            for number in missing[world.rank :: world.size]:
                own = range(len(self.images))[number * size : (number + 1) * size]
                batches[number] = [list(own[i : i + step]) for i in range(0, len(own), step)]
            flat = [batch for parts in batches.values() for batch in parts]
            loader = batch_loader(self.images, flat, self.options.num_workers)
            unreadable, total = [], sum(map(len, flat))
            is_quiet = not (world.is_main and total)
            bar = tqdm(total=total, unit="img", desc="encode", disable=is_quiet)
            stack.enter_context(bar)
            for number, parts in batches.items():
                unreadable += self._write_shard(number, islice(loader, len(parts)), bar)
            barrier()
            return broadcast_object(self._finish() if world.is_main else None), unreadable

    def _facts(self) -> dict[str, Any]:
        """What makes shards parts of one cache, and where it came from; batches, ranks and workers
        may differ.
        """
        network, options, images = self.autoencoder.network, self.options, self.images
        text = {}
        if self.text is not None:
            text["text"] = self.text.facts | {"config_keys": self.text.config_keys}
        if images.prefix:
            text["prefix"] = images.prefix
        fingerprint = images.fingerprint()
        return {
            "vae": {
                "source": self.vae_source,
                "class": type(network).__name__,
                "fingerprint": weights_fingerprint(network),
                "multiple": self.autoencoder.multiple,
            },
            "images": {"path": images.source, "count": len(images), "fingerprint": fingerprint},
            "resolution": images.resolution,
            "crop": "center",
            "posterior": options.posterior,
            "flip": options.flip,
            "dtype": options.latent_dtype,
            "precision": options.mixed_precision,
            "shard_size": options.shard_size,
            "latent_shape": list(self.latent_shape),
            "class_names": list(images.class_names),
        } | text

    def _prepare(self) -> list[int]:
        """Makes the folder ready; the numbers of the shards that are not there, or not whole."""
        if not (self.folder / RECORD_NAME).exists():
            self._write_record()
        return [number for number in range(self.num_shards) if not self._is_whole(number)]

    def _is_whole(self, number: int) -> bool:
        """Whether a whole shard is there; ValueError if it is of another cache."""
        path = shard_path(self.folder, number)
        if not path.exists():
            return False
        try:
            facts = LatentShard(path).facts
        except DataError as error:
            _log.warning("%s: encoding it again", error)
            return False
        if facts.get("plan") != self.plan_hash:
            raise ValueError(f"{path} belongs to another cache: delete it or its folder")
        is_whole = facts.keys() >= {"count", "unreadable", "sums"}
        return is_whole and texts_path(self.folder, number).exists()

    def _write_shard(
        self, number: int, batches: Iterator[dict], bar: tqdm
    ) -> list[tuple[str, str]]:
        from safetensors.torch import save

        sums = torch.zeros(3, self.latent_shape[0], dtype=torch.float64)
        indices, unreadable = [], []
        parts, texts = [self._nothing], []
        for batch in batches:
            bar.update(len(batch["position"]))
            unreadable += batch["unreadable"]
            if not batch["index"]:
                continue
            images = to_signed_unit(batch["pixels"].to(self.autoencoder.device))
            names = [self.images.text(index)["name"] for index in batch["index"]]
            tensors, moments = self._encode(images, names)
            add_posteriors(sums, *moments)
            parts.append(tensors)
            indices += batch["index"]
            if self.text is not None:
                captions = [text for i in batch["index"] for text in self.images.captions(i)]
                texts += [compact(self.text(captions))] if captions else []

        # A shard whose images are all unreadable has every tensor, too, without rows.
        tensors = {name: torch.cat([part[name] for part in parts]) for name in self._nothing}
        if self.text is not None:  # without captions, too, a shard has tensors of texts
            counts = [len(self.images.captions(i)) for i in indices]
            nothing = {name: values[:0] for name, values in self.text([""]).items()}
            tensors |= text_tensors([compact(nothing), *texts], counts)
        if self.images.labels is not None:
            tensors["labels"] = torch.from_numpy(self.images.labels[indices])
        facts = {
            "plan": self.plan_hash,
            "count": len(indices),
            "unreadable": len(unreadable),
            "sums": sums.tolist(),
        }
        lines = [json.dumps(self.images.text(i), ensure_ascii=False) + "\n" for i in indices]
        # The tensors come last: where they are, the shard is done.
        write_text(texts_path(self.folder, number), "".join(lines))
        content = save(tensors, {"latents": json.dumps(facts)})
        write_atomically(shard_path(self.folder, number), lambda file: file.write(content))
        return unreadable

    @torch.inference_mode()
    def _encode(self, images: Tensor, names: list[str]) -> tuple[dict[str, Tensor], tuple]:
        """What is stored of some images, on the CPU, and the posterior of the unmirrored ones."""
        options, stored, first = self.options, {}, None
        for suffix, pixels in (("", images), (FLIPPED, images.flip(-1)))[: 1 + options.flip]:
            pixels = pixels.to(self.autoencoder.device, memory_format=torch.channels_last)
            with autocast(pixels.device, options.mixed_precision):
                mean, logvar = self.autoencoder.moments(pixels)
            if options.posterior == "mode":
                logvar = None
            elif logvar is None:
                raise ValueError(
                    f"{type(self.autoencoder.network).__name__} has no posterior to sample: "
                    "use --posterior mode"
                )
            first = first or (mean, logvar)
            values = mean if logvar is None else torch.cat([mean, logvar], dim=1)
            values = values.to(PRECISIONS[options.latent_dtype]).cpu().contiguous()
            bad = (~values.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"latents of {names[bad[0]]} are not finite, computed in "
                    f"{options.mixed_precision} and stored as {options.latent_dtype}; try bf16 or "
                    "fp32"
                )
            stored[self.tensor_name + suffix] = values
        return stored, first

    def _finish(self) -> dict[str, Any]:
        paths = [shard_path(self.folder, number) for number in range(self.num_shards)]
        shards = [LatentShard(path).facts for path in paths]
        sums = torch.tensor([shard["sums"] for shard in shards], dtype=torch.float64).sum(0)
        mean, std = mean_and_std(sums)

        # The VAE's own shift and scale win, one number for all channels spread over them.
        facts, origin = normalization(mean, std), "statistics"
        if self.autoencoder.normalization and self.options.normalization != "statistics":
            channels, origin = self.latent_shape[0], "vae"
            pairs = zip(("shift", "scale"), self.autoencoder.normalization, strict=True)
            facts = {name: list(values) * (channels // len(values)) for name, values in pairs}
        counts = [shard["count"] for shard in shards]
        unreadable = sum(shard["unreadable"] for shard in shards)
        numbers = {"num_samples": sum(counts), "num_unreadable": unreadable, "samples": counts}
        statistics = {"mean": mean, "std": std, "normalization": origin}
        return self._write_record(**numbers, **statistics, **facts)

    def _write_record(self, **facts) -> dict[str, Any]:
        """Writes the record: of a cache that is begun, or with all facts, of one that is whole."""
        begun = {"version": RECORD_VERSION, "complete": bool(facts), "plan": self.plan_hash}
        record = begun | self.facts | facts
        write_json(self.folder / RECORD_NAME, record)
        return record


def _without_places(facts: dict[str, Any]) -> dict[str, Any]:
    """A plan: what may lie elsewhere is the same, wherever it lies."""
    places = ("source", "path")
    return {
        name: {n: v for n, v in fact.items() if n not in places} if isinstance(fact, dict) else fact
        for name, fact in facts.items()
    }


def add_posteriors(sums: Tensor, mean: Tensor, logvar: Tensor | None) -> None:
    """Adds to the sums of z, of z^2 and of ones, per channel, float64 (3, C).

    Of the posterior's samples, not of means only: Var[z] = Var[mean] + E[var]. Means and
    log-variances are (B, C, h, w); None is no variance.
    """
    mean = mean.detach().cpu().double().transpose(0, 1).flatten(1)  # (C, B h w)
    sums[0] += mean.sum(1)
    sums[1] += mean.square().sum(1)
    sums[2] += mean.shape[1]
    if logvar is not None:
        variance = logvar.detach().cpu().double().exp()
        sums[1] += variance.transpose(0, 1).flatten(1).sum(1)


def mean_and_std(sums: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, from what `add_posteriors` summed.

    Raises ValueError for no latents, some that are not finite, or a channel that does not vary.
    """
    total, squares, count = sums
    if not count.all():
        raise ValueError("no image could be encoded")
    if not sums.isfinite().all():
        raise ValueError("latents are not finite; try --mixed_precision bf16 or fp32")
    mean = total / count
    variance = squares / count - mean.square()
    dead = (variance <= 0).nonzero().flatten().tolist()
    if dead:
        raise ValueError(f"latent channels {dead} do not vary: their scale would be infinite")
    return mean.tolist(), variance.sqrt().tolist()


@torch.inference_mode()
def measure_latents(
    vae: nn.Module, batches: Iterable[Tensor], world: World, precision: str = "fp32"
) -> tuple[list[float], list[float]]:
    """`mean_and_std` of a model's latents over the images of all processes, the same on all.

    The model, one of ours, is moved to the device; batches, (B, 3, H, W) in [-1, 1], are this
    process's share; the precision is that of the encoder.
    """
    vae.to(world.device, memory_format=torch.channels_last)
    sums = torch.zeros(3, vae.config.latent_dim, dtype=torch.float64)
    for images in batches:
        images = images.to(world.device, memory_format=torch.channels_last)
        images, _ = pad_to_multiple(images, vae.spatial_factor)
        with autocast(world.device, precision):
            posterior = vae.encode(images).latent_dist
        add_posteriors(sums, posterior.mean, posterior.logvar)
    sums = sums.to(world.device) if world.device.type == "cuda" else sums  # NCCL needs it there
    return mean_and_std(all_reduce_sum(sums).cpu())


def write_normalization(config: Path, mean: list[float], std: list[float]) -> None:
    """Puts ``shift`` and ``scale`` into a model's config.json."""
    write_json(config, read_json(config) | normalization(mean, std))


def normalization(mean: list[float], std: list[float]) -> dict[str, list[float]]:
    """What turns latents into ``(z - shift) * scale``, of mean 0 and variance 1."""
    return {"shift": mean, "scale": [1 / value for value in std]}
