"""What is in one tar shard: which samples, where their members lie, how large the images are."""

import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np

from wfimagevae.dataset.images.decode import image_size
from wfimagevae.dataset.index_cache import from_json_array, json_array
from wfimagevae.dataset.protocol import DataError
from wfimagevae.dataset.text.packed_texts import PackedTexts

IMAGE_TYPES = ("png", "jpg", "jpeg", "webp", "bmp", "gif")
TEXT_TYPES = ("txt", "json", "cls")

_HEADER_BYTES = 64 * 1024
_MOST_TEXT_BYTES = 2**20  # a longer text is no caption
_MOST_TYPES = 64
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_META = re.compile(r"__[^/]*__($|/)")  # what the webdataset library leaves out


@dataclass
class Column:
    """The members of one type, one a sample.

    Attributes:
        offset, size: Where members begin, and their lengths, in bytes, int64 (N,); offset -1 for a
            sample that has none.
        width, height: Size of images, upright, in pixels, int32 (N,); 0 where the header is
            damaged, None for other types.
        text: Contents of texts; None for other types.
    """

    offset: np.ndarray
    size: np.ndarray
    width: np.ndarray | None = None
    height: np.ndarray | None = None
    text: PackedTexts | None = None


@dataclass
class TarIndex:
    """The samples of one shard.

    Attributes:
        keys: Names of the samples' members up to the first dot of the file name.
        columns: By type, which is what follows that dot, in lower case.
        damage: What is wrong with the file or some of its samples; mostly nothing.
        lost: Number of samples that were left out for it, as far as they can be told.
        sha256: Hash of the whole file, where the index was not made from it but came with it.
    """

    keys: PackedTexts
    columns: dict[str, Column]
    damage: list[str] = field(default_factory=list)
    lost: int = 0
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    def arrays(self) -> dict[str, np.ndarray]:
        facts = {"damage": self.damage, "lost": self.lost, "types": list(self.columns)}
        arrays = {"facts": json_array(facts | {"sha256": self.sha256})}
        arrays |= {"keys": self.keys.text, "keys.ends": self.keys.ends}
        for kind, column in self.columns.items():
            arrays |= {f"offset.{kind}": column.offset, f"size.{kind}": column.size}
            if column.width is not None:
                arrays |= {f"width.{kind}": column.width, f"height.{kind}": column.height}
            if column.text is not None:
                arrays |= {f"text.{kind}": column.text.text, f"ends.{kind}": column.text.ends}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], with_texts: bool = True) -> "TarIndex":
        facts = from_json_array(arrays["facts"])
        columns = {}
        for kind in facts["types"]:
            column = columns[kind] = Column(arrays[f"offset.{kind}"], arrays[f"size.{kind}"])
            if f"width.{kind}" in arrays:
                column.width, column.height = arrays[f"width.{kind}"], arrays[f"height.{kind}"]
            if with_texts and f"text.{kind}" in arrays:
                column.text = PackedTexts(arrays[f"text.{kind}"], arrays[f"ends.{kind}"])
        keys = PackedTexts(arrays["keys"], arrays["keys.ends"])
        return cls(keys, columns, facts["damage"], facts["lost"], facts.get("sha256", ""))


@dataclass(frozen=True)
class ExtraTypes:
    """Types that count as images or texts besides those ending in `IMAGE_TYPES` or `TEXT_TYPES`."""

    images: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @classmethod
    def besides_the_usual(cls, images: Iterable[str], texts: Iterable[str]) -> "ExtraTypes":
        images, texts = (dict.fromkeys(kinds) for kinds in (images, sorted(texts)))
        return cls(
            tuple(kind for kind in images if not cls().is_image(kind)),
            tuple(kind for kind in texts if not cls().is_text(kind)),
        )

    def is_image(self, kind: str) -> bool:
        return kind in self.images or kind.rpartition(".")[2] in IMAGE_TYPES

    def is_text(self, kind: str) -> bool:
        return kind in self.texts or kind.rpartition(".")[2] in TEXT_TYPES


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


@dataclass
class _Sample:
    key: str
    members: dict[str, _Member] = field(default_factory=dict)
    fault: str = ""


def index_tar(path: str, extra: ExtraTypes | None = None, handle: int | None = None) -> TarIndex:
    """Reads the headers of an uncompressed shard, its texts, and the headers of its images.

    Members are grouped to samples as the webdataset library does. Of a file that is cut short or
    damaged, the whole samples in front of the damage count. A ``handle`` is the file's descriptor
    where it is open already, and is closed; ``path`` is then for messages.
    """
    try:
        with open(path if handle is None else handle, "rb") as file:
            return _index(file, path, extra or ExtraTypes())
    except OSError as error:
        raise DataError(f"cannot read shard {path}: {error.strerror or error}") from None


def _index(file: BinaryIO, path: str, extra: ExtraTypes) -> TarIndex:
    # Group the members to samples; those with a fault count as damage.
    faults: list[str] = []
    samples = _grouped(_members(file, path, faults))
    if faults and samples:  # the last one may lack members that lay behind
        samples[-1].fault = "the file is damaged"
    damage = faults + [f"sample {s.key}: {s.fault}" for s in samples if s.fault]
    again = [key for key, count in Counter(s.key for s in samples).items() if count > 1]
    if again:
        damage.append(
            f"{again[0]} comes again later: members of a sample must lie together (tar --sort=name)"
        )
    whole = [s for s in samples if not s.fault]
    kinds = {kind for sample in whole for kind in sample.members}
    kinds = sorted(kind for kind in kinds if extra.is_image(kind) or extra.is_text(kind))
    if len(kinds) > _MOST_TYPES:
        raise DataError(
            f"{path} has {len(kinds)} types of members, such as {', '.join(kinds[:3])}: a type is "
            "what follows the first dot of a file name, so sample names must not have dots"
        )
    # One column for each type of member, over all whole samples.
    columns = {}
    for kind in kinds:
        members = [sample.members.get(kind) for sample in whole]
        column = columns[kind] = Column(
            np.array([m.offset if m else -1 for m in members], np.int64),
            np.array([m.size if m else -1 for m in members], np.int64),
        )
        if extra.is_image(kind):
            sizes = np.array([_image_size(file, m) if m else (0, 0) for m in members], np.int32)
            column.width, column.height = sizes.reshape(-1, 2).T.copy()
        if extra.is_text(kind):
            column.text = PackedTexts.pack(_text(file, m) if m else b"" for m in members)
    keys = PackedTexts.pack(os.fsencode(sample.key) for sample in whole)
    return TarIndex(keys, columns, damage, len(samples) - len(whole))


def _members(file: BinaryIO, path: str, faults: list[str]) -> Iterator[_Member]:
    """The whole files in a tar, in order; adds what ended it early to ``faults``."""
    start = file.read(6)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"shard {path} is compressed ({name}): decompress it, images gain nothing from it"
            )
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()
                if member.offset_data + member.size > length:
                    faults.append(f"cut short inside {member.name}, at byte {length}")
                    return
                if member.isreg() and not member.issparse() and not _META.match(member.name):
                    yield _Member(member.name, member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, ValueError, EOFError) as error:
        faults.append(f"no tar file, or damaged: {error}")
        return
    # The tarfile module takes damage behind a whole member for the end: that is a block of zeros.
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        faults.append(f"damaged header at byte {end} of {length}")
    elif len(block) < tarfile.BLOCKSIZE:
        faults.append(f"cut short at byte {length}: no end mark")


def _grouped(members: Iterator[_Member]) -> list[_Sample]:
    from webdataset.tariterators import base_plus_ext

    samples: list[_Sample] = []
    for member in members:
        key, kind = base_plus_ext(member.name)
        if key is None:
            continue
        if not samples or samples[-1].key != key:
            samples.append(_Sample(key))
        if kind.lower() in samples[-1].members:
            samples[-1].fault = f"two members of type {kind.lower()}"
        samples[-1].members[kind.lower()] = member
    return samples


def _image_size(file: BinaryIO, member: _Member) -> tuple[int, int]:
    file.seek(member.offset)
    head = file.read(min(member.size, _HEADER_BYTES))
    size = image_size(io.BytesIO(head))
    if size == (0, 0) and len(head) < member.size:  # a long profile in front of it
        size = image_size(io.BytesIO(head + file.read(member.size - len(head))))
    return size


def _text(file: BinaryIO, member: _Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size) if member.size <= _MOST_TEXT_BYTES else b""
