"""Writes images, classes and captions as WebDataset shards, with an index beside each."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wfimagevae.dataset.arrays import from_json_array, json_array
from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb, opened
from wfimagevae.dataset.images.image_sets import ImageSet
from wfimagevae.dataset.images.index import MANIFEST_KEYS
from wfimagevae.dataset.options import WriteOptions
from wfimagevae.dataset.order import shuffled
from wfimagevae.dataset.protocol import DataError
from wfimagevae.dataset.shards.index import RECORD_NAME
from wfimagevae.dataset.shards.tar import index_tar
from wfimagevae.files import DAMAGED_ARRAYS, file_version, replacing

RECORD_VERSION = 1
INDEX_SUFFIX = ".index.npz"
# MPO is what many cameras write: a JPEG with more pictures behind it.
_TYPES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


class ShardWriter:
    """Writes an `ImageSet` as shards; what is done stays done when it is started again.

    A sample has its image, ``txt`` (captions, one a line), ``cls`` (the class's number), and
    ``json``: ``name``, ``width``, ``height``, the class's name, and the fields of the manifest's
    line. Unreadable images are left out. Files of other formats become PNG. Anything else in the
    output folder is left alone; shards there of other images or options, or of files, captions or
    manifest lines that have changed since, are a DataError.
    """

    def __init__(self, samples: ImageSet, options: WriteOptions):
        self.samples, self.options = samples, options
        self.folder = Path(options.output_dir).expanduser()
        seed = options.seed if options.shuffle else None
        count = len(samples)
        self._order = np.arange(count) if seed is None else shuffled(count, seed, "shards")
        self.num_shards = -(-count // options.samples_per_shard)
        # What the shards depend on, under the names and in the order that shards.json has.
        self._settings = {
            "samples_per_shard": options.samples_per_shard,
            "resize": options.resize,
            "image_format": options.format,
            "quality": options.quality,
            "seed": seed,
        }
        self.plan = self._plan()
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.glob(f"*{INDEX_SUFFIX}")):
            if _written_facts(path).get("plan") != self.plan:
                name = path.name.removesuffix(INDEX_SUFFIX)
                raise DataError(
                    f"{self.folder} has shards of other images or options, or of images that have "
                    f"changed since, such as {name}.tar: choose another folder, or empty it"
                )

    def _paths(self, number: int) -> tuple[Path, Path]:
        stem = self.folder / f"shard-{number:06d}"
        return stem.with_suffix(".tar"), stem.with_suffix(INDEX_SUFFIX)

    def is_done(self, number: int) -> bool:
        tar, index = self._paths(number)
        facts = _written_facts(index)
        return bool(facts) and tar.exists() and tar.stat().st_size == facts["bytes"]

    def write(self, number: int, tick: Callable[[], Any] = lambda: None) -> None:
        """Writes one shard and its index, each whole or not at all; ticks after every image."""
        (tar, index_file), size = self._paths(number), self.options.samples_per_shard
        # The tar file first: where its index is, the shard is done.
        unreadable: list[list[str]] = []
        with replacing(tar, is_lasting=True) as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
                for i in map(int, self._order[number * size : (number + 1) * size]):
                    try:
                        for name, content in self._members(i):
                            member = tarfile.TarInfo(name)  # without owner and time: equal samples
                            member.size = len(content)  # make equal files
                            archive.addfile(member, io.BytesIO(content))
                    except UnreadableImage as error:
                        unreadable.append([self.samples.images.name(i), str(error)])
                    tick()
            file.flush()
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        index = index_tar(str(tar))
        facts = {"plan": self.plan, "samples": len(index), "bytes": tar.stat().st_size}
        facts |= {"sha256": sha256, "unreadable": unreadable}
        with replacing(index_file, is_lasting=True) as file:
            np.savez_compressed(file, **index.arrays(), written=json_array(facts))

    def write_record(self) -> dict[str, Any]:
        """Writes shards.json, once all shards are there, and returns its content."""
        shards, unreadable = [], []
        for tar, index in map(self._paths, range(self.num_shards)):
            facts = _written_facts(index)
            unreadable += facts["unreadable"]
            shards.append(
                {"name": tar.name}
                | {key: facts[key] for key in ("samples", "bytes", "sha256")}
                | {"index": index.name}
                | {"index_sha256": hashlib.sha256(index.read_bytes()).hexdigest()}
            )
        record = {
            "version": RECORD_VERSION,
            "plan": self.plan,
            "options": self._settings,
            "class_names": self.samples.labels[1],
            "num_samples": sum(shard["samples"] for shard in shards),
            "unreadable": unreadable,
            "shards": shards,
        }
        with replacing(self.folder / RECORD_NAME, is_lasting=True) as file:
            file.write(json.dumps(record, indent=1).encode())
        return record

    def _members(self, i: int) -> list[tuple[str, bytes]]:
        samples = self.samples
        try:
            content = Path(samples.images.path(i)).read_bytes()
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error
        kind, content, size = self._encoded(content)
        labels, class_names = samples.labels
        record = samples.record(i) if samples.record else {}
        record = {key: value for key, value in record.items() if key not in MANIFEST_KEYS}
        record |= {"name": samples.images.relative(i), "width": size[0], "height": size[1]}
        key = f"{i:09d}"
        members = [(f"{key}.{kind}", content)]
        if labels is not None:
            members.append((f"{key}.cls", str(labels[i]).encode()))
            record["class"] = class_names[labels[i]]
        if samples.captions is not None:
            members.append((f"{key}.txt", "\n".join(samples.captions.all(i)).encode()))
        # A name that is no UTF-8, or half an emoji, becomes an escape, which JSON reads.
        content = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace")
        members.append((f"{key}.json", content))
        return members

    def _encoded(self, content: bytes) -> tuple[str, bytes, tuple[int, int]]:
        resize, format = self.options.resize, self.options.format
        # Decoded in any case: what is damaged must not come to light in training.
        image = open_rgb(io.BytesIO(content))
        with opened(io.BytesIO(content)) as original:
            kind = _TYPES.get(original.format)
        must_shrink = 0 < resize < min(image.size)
        if format == "keep" and kind and not must_shrink:
            return kind, content, image.size
        kind = (kind or "png") if format == "keep" else format
        if must_shrink:
            image = open_rgb(io.BytesIO(content), short_side=resize)
        file = io.BytesIO()
        quality = {} if kind == "png" else {"quality": self.options.quality}
        try:
            image.save(file, {"jpg": "JPEG"}.get(kind, kind), **quality)
        except (OSError, ValueError) as error:  # a side longer than the format has
            raise UnreadableImage(f"{image.width}x{image.height}, no {kind}: {error}") from error
        return kind, file.getvalue(), image.size

    def _plan(self) -> str:
        """A hash of what the shards are made from; of files, of their sizes and times."""
        # Shards of former versions go on: the text is that of the class they had for the options.
        text = ", ".join(f"{name}={value!r}" for name, value in self._settings.items())
        digest = hashlib.sha256(f"WriteOptions({text})".encode())
        samples, labels = self.samples, self.samples.labels[0]
        for i in range(len(samples)):
            captions = samples.captions.all(i) if samples.captions else None
            label = None if labels is None else int(labels[i])
            record = samples.record(i) if samples.record else None
            version = file_version(samples.images.path(i))
            facts = (samples.images.relative(i), version, label, captions, record)
            digest.update(repr(facts).encode())
        return digest.hexdigest()


def _written_facts(index: Path) -> dict[str, Any]:
    try:
        with open(index, "rb") as file, np.load(file) as arrays:
            return from_json_array(arrays["written"])
    except FileNotFoundError:
        return {}
    except DAMAGED_ARRAYS as error:
        raise DataError(f"{index} is no index of a shard ({error}); remove it") from None
