"""Writes images, classes and captions as WebDataset shards, with an index beside each."""

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb
from wfimagevae.dataset.images.image_sets import ImageSet
from wfimagevae.dataset.images.index import MANIFEST_KEYS
from wfimagevae.dataset.order import shuffled
from wfimagevae.dataset.protocol import DataError
from wfimagevae.dataset.shards.index import INDEX_SUFFIX, RECORD_NAME, write_index
from wfimagevae.dataset.shards.tar import index_tar
from wfimagevae.files import DAMAGED_ARRAYS, file_version, replacing

FORMATS = ("keep", "jpg", "png", "webp")
RECORD_VERSION = 1
# MPO is what many cameras write: a JPEG with more pictures behind it.
_TYPES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_ENCODERS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


@dataclass(frozen=True)
class WriteOptions:
    """How shards are written.

    Attributes:
        samples_per_shard: Samples a shard, but for the last.
        resize: Images whose short side is longer are shrunk to this many pixels; 0 keeps all.
        image_format: ``keep`` copies files as they are (BMP and GIF become PNG); another one
            encodes every image anew.
        quality: Of JPEG and WebP files that are encoded anew, 1 to 100.
        seed: Of the order of samples; None keeps the sorted order.

    Raises:
        ValueError: a bad value.
    """

    samples_per_shard: int = 4096
    resize: int = 0
    image_format: str = "keep"
    quality: int = 95
    seed: int | None = 1234

    def __post_init__(self):
        if self.image_format not in FORMATS:
            raise ValueError(f"unknown format {self.image_format!r}; use {', '.join(FORMATS)}")
        if self.samples_per_shard < 1 or not 1 <= self.quality <= 100:
            raise ValueError(
                "a shard has at least 1 sample and a quality is 1 to 100, got "
                f"{self.samples_per_shard} and {self.quality}"
            )


class ShardWriter:
    """Writes an `ImageSet` as shards; what is done stays done when it is started again.

    A sample has its image, ``txt`` (captions, one a line), ``cls`` (the class's number), and
    ``json``: ``name``, ``width``, ``height``, the class's name, and the fields of the manifest's
    line. Unreadable images are left out.

    Args:
        found: The images.
        folder: Where shards go; anything else in it is left alone.
        options: How they are written.

    Raises:
        DataError: the folder has shards of other images or options, or of files, captions or
            manifest lines that have changed since.
    """

    def __init__(self, found: ImageSet, folder: Path, options: WriteOptions):
        self.found, self.folder, self.options = found, folder, options
        count = len(found)
        seed = options.seed
        self._order = np.arange(count) if seed is None else shuffled(count, seed, "shards")
        self.num_shards = -(-count // options.samples_per_shard)
        self.plan = self._plan()
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob(f"*{INDEX_SUFFIX}")):
            if self._facts(path).get("plan") != self.plan:
                name = path.name.removesuffix(INDEX_SUFFIX)
                raise DataError(
                    f"{folder} has shards of other images or options, or of images that have "
                    f"changed since, such as {name}.tar: choose another folder, or empty it"
                )

    def stem(self, number: int) -> str:
        """Name of a shard without its extension."""
        return f"shard-{number:06d}"

    def remove_leftovers(self) -> None:
        """Removes what a process that was killed left half written; nobody may be writing."""
        for path in self.folder.glob(".shard-*"):
            path.unlink()

    def is_done(self, number: int) -> bool:
        """Whether a shard is there, whole."""
        facts = self._facts(self.folder / f"{self.stem(number)}{INDEX_SUFFIX}")
        tar = self.folder / f"{self.stem(number)}.tar"
        return bool(facts) and tar.exists() and tar.stat().st_size == facts["bytes"]

    def write(self, number: int, tick: Callable[[], Any] = lambda: None) -> None:
        """Writes one shard and its index, each whole or not at all.

        Args:
            number: Of the shard.
            tick: Called after every image.
        """
        tar = self.folder / f"{self.stem(number)}.tar"
        unreadable: list[list[str]] = []
        with replacing(tar, is_lasting=True) as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
                for i in self._images(number):
                    try:
                        for name, content in self._members(i):
                            _add(archive, name, content)
                    except UnreadableImage as error:
                        unreadable.append([self.found.images.name(i), str(error)])
                    tick()
            file.flush()
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        index = index_tar(str(tar))
        facts = {
            "plan": self.plan,
            "samples": len(index),
            "bytes": tar.stat().st_size,
            "sha256": sha256,
            "unreadable": unreadable,
        }
        with replacing(
            tar.with_name(f"{self.stem(number)}{INDEX_SUFFIX}"), is_lasting=True
        ) as file:
            write_index(file, index, written=facts)

    def write_record(self) -> dict[str, Any]:
        """Writes shards.json, once all shards are there, and returns its content."""
        shards, unreadable = [], []
        for number in range(self.num_shards):
            index = self.folder / f"{self.stem(number)}{INDEX_SUFFIX}"
            facts = self._facts(index)
            unreadable += facts["unreadable"]
            shards.append(
                {"name": f"{self.stem(number)}.tar"}
                | {key: facts[key] for key in ("samples", "bytes", "sha256")}
                | {"index": index.name}
                | {"index_sha256": hashlib.sha256(index.read_bytes()).hexdigest()}
            )
        record = {
            "version": RECORD_VERSION,
            "plan": self.plan,
            "options": asdict(self.options),
            "class_names": self.found.labels[1],
            "num_samples": sum(shard["samples"] for shard in shards),
            "unreadable": unreadable,
            "shards": shards,
        }
        with replacing(self.folder / RECORD_NAME, is_lasting=True) as file:
            file.write(json.dumps(record, indent=1).encode())
        return record

    def _images(self, number: int) -> Iterator[int]:
        size = self.options.samples_per_shard
        return (int(i) for i in self._order[number * size : (number + 1) * size])

    def _members(self, i: int) -> list[tuple[str, bytes]]:
        found = self.found
        with open_bytes(found.images.path(i)) as file:
            kind, content, size = self._encoded(file.read())
        labels, class_names = found.labels
        record = dict(found.record(i)) if found.record else {}
        record = {key: value for key, value in record.items() if key not in MANIFEST_KEYS}
        record |= {"name": found.images.relative(i), "width": size[0], "height": size[1]}
        key = f"{i:09d}"
        members = [(f"{key}.{kind}", content)]
        if labels is not None:
            members.append((f"{key}.cls", str(labels[i]).encode()))
            record["class"] = class_names[labels[i]]
        if found.captions is not None:
            members.append((f"{key}.txt", "\n".join(found.captions.all(i)).encode()))
        # A name that is no UTF-8, or half an emoji, becomes an escape, which JSON reads.
        content = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace")
        members.append((f"{key}.json", content))
        return members

    def _encoded(self, content: bytes) -> tuple[str, bytes, tuple[int, int]]:
        """Type, content, and width and height of an image as it is kept."""
        options = self.options
        # Decoded in any case: what is damaged must not come to light in training.
        image = open_rgb(io.BytesIO(content))
        own = _TYPES.get(_format(content))
        must_shrink = 0 < options.resize < min(image.size)
        if options.image_format == "keep" and own and not must_shrink:
            return own, content, image.size
        kind = (own or "png") if options.image_format == "keep" else options.image_format
        if must_shrink:
            image = open_rgb(io.BytesIO(content), short_side=options.resize)
        file = io.BytesIO()
        how = {} if kind == "png" else {"quality": options.quality}
        image.save(file, _ENCODERS[kind], **how)
        return kind, file.getvalue(), image.size

    def _plan(self) -> str:
        """A hash of what the shards are made from; of files, of their sizes and times."""
        digest = hashlib.sha256(repr(self.options).encode())
        labels = self.found.labels[0]
        for i in range(len(self.found)):
            captions = self.found.captions.all(i) if self.found.captions else None
            label = None if labels is None else int(labels[i])
            record = self.found.record(i) if self.found.record else None
            version = file_version(self.found.images.path(i))
            told = (self.found.images.relative(i), version, label, captions, record)
            digest.update(repr(told).encode())
        return digest.hexdigest()

    def _facts(self, index: Path) -> dict[str, Any]:
        """What the index of a finished shard says of it; nothing where there is none."""
        try:
            with open(index, "rb") as file, np.load(file) as arrays:
                return json.loads(arrays["written"].tobytes())
        except FileNotFoundError:
            return {}
        except DAMAGED_ARRAYS as error:
            raise DataError(f"{index} is no index of a shard ({error}); remove it") from None


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """An open file.

    Raises:
        UnreadableImage: it cannot be opened or read.
    """
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error


def _format(content: bytes) -> str | None:
    with Image.open(io.BytesIO(content)) as image:
        return image.format


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # of no owner and time: equal samples make equal files
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
