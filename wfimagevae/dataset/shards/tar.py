"""What is in one tar shard: which samples, where their members lie, how large the images are."""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from wfimagevae.dataset.arrays import PackedTexts, from_json_array, json_array
from wfimagevae.dataset.images.decode import image_size
from wfimagevae.dataset.protocol import DataError
from wfimagevae.dataset.text.captions import MOST_TEXT_BYTES

IMAGE_TYPES = ("png", "jpg", "jpeg", "webp", "bmp", "gif")
TEXT_TYPES = ("txt", "json", "cls")

# What tells that a sample's members lie in several places of a shard.
APART = "members of a sample must lie together (tar --sort=name)"
DOTS = "sample names must not have dots (a type is what follows the first dot of a file name)"
_MOST_TYPES = 64
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_META = re.compile(r"__[^/]*__($|/)")  # what the webdataset library leaves out


@dataclass
class TarIndex:
    """The samples of one shard.

    Attributes:
        columns: Arrays by name. Of each type of members, which is what follows the first dot of
            their file names, in lower case: ``offset.TYPE`` and ``size.TYPE``, integers (N,), where
            those of the samples begin (-1 where there is none) and their lengths, in bytes. Of
            images also ``width.TYPE`` and ``height.TYPE``, int32 (N,), upright, 0 where the header
            is damaged; of texts their contents, ``text.TYPE`` and ``ends.TYPE``. The samples'
            names, up to that dot, are ``keys`` and ``keys.ends``.
        damage: What is wrong with the file or some of its samples; mostly nothing.
        lost: Number of samples that were left out for it, as far as they can be told.
        types: The types that have columns.
        sha256: Hash of the whole file, where the index was not made from it but came with it.
    """

    columns: dict[str, np.ndarray]
    damage: list[str]
    lost: int
    types: list[str]
    sha256: str = ""

    def __post_init__(self):
        # Half the memory, as long as shards are below 2 GiB.
        for name, column in self.columns.items():
            if column.dtype == np.int64 and column.max(initial=0) < 2**31:
                self.columns[name] = column.astype(np.int32)

    def __len__(self) -> int:
        return len(self.columns["keys.ends"])

    @property
    def keys(self) -> PackedTexts:
        return PackedTexts(self.columns["keys"], self.columns["keys.ends"])

    def texts(self, kind: str) -> PackedTexts:
        """The contents of the members of a type, empty where there are none."""
        if f"text.{kind}" not in self.columns:
            return PackedTexts.pack([b""] * len(self))
        return PackedTexts(self.columns[f"text.{kind}"], self.columns[f"ends.{kind}"])

    def sizes(self, kind: str) -> np.ndarray:
        """The lengths of the members of a type, in bytes, 0 where there are none."""
        return self.columns.get(f"size.{kind}", np.zeros(len(self), np.int64))

    def arrays(self) -> dict[str, np.ndarray]:
        facts = {name: value for name, value in vars(self).items() if name != "columns"}
        return {"facts": json_array(facts)} | self.columns

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], with_texts: bool = True) -> "TarIndex":
        left_out = ("facts", "version", "written") + (() if with_texts else ("text.", "ends."))
        columns = {name: arrays[name] for name in arrays if not name.startswith(left_out)}
        return cls(columns, **from_json_array(arrays["facts"]))


@dataclass(frozen=True)
class ExtraTypes:
    """Types that count as images or texts besides those ending in `IMAGE_TYPES` or `TEXT_TYPES`."""

    images: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def is_image(self, kind: str) -> bool:
        return kind in self.images or kind.rpartition(".")[2] in IMAGE_TYPES

    def is_text(self, kind: str) -> bool:
        return kind in self.texts or kind.rpartition(".")[2] in TEXT_TYPES


_Member = tuple[int, int, tuple[int, int], bytes]  # offset, size, width and height, text
_NONE: _Member = -1, 0, (0, 0), b""


@dataclass
class _Sample:
    key: str
    members: dict[str, _Member] = field(default_factory=dict)  # by type
    fault: str = ""


def index_tar(path: str, extra: ExtraTypes | None = None, handle: int | None = None) -> TarIndex:
    """Reads the headers of an uncompressed shard, its texts, and the headers of its images.

    Members are grouped to samples as the webdataset library does. Of a file that is cut short or
    damaged, the whole samples in front of the damage count. A ``handle`` is the file's descriptor
    where it is open already, and is closed; ``path`` is then for messages.
    """
    extra = extra or ExtraTypes()
    damage: list[str] = []
    try:
        with open(path if handle is None else handle, "rb") as file:
            start = file.read(6)
            for magic, name in _COMPRESSED.items():
                if start.startswith(magic):
                    raise DataError(
                        f"shard {path} is compressed ({name}): decompress it, images gain nothing "
                        "from it"
                    )
            samples = _samples(file, extra, damage)
    except OSError as error:
        raise DataError(f"cannot read shard {path}: {error.strerror or error}") from None

    # Samples with a fault count as damage.
    if damage and samples:  # the last one may lack members that lay behind
        samples[-1].fault = "the file is damaged"
    damage += [f"sample {s.key}: {s.fault}" for s in samples if s.fault]
    again = [key for key, count in Counter(s.key for s in samples).items() if count > 1]
    damage += [f"key {key} comes again later: {APART}" for key in again[:1]]
    whole = [s for s in samples if not s.fault]
    kinds = {kind for sample in whole for kind in sample.members}
    kinds = sorted(kind for kind in kinds if extra.is_image(kind) or extra.is_text(kind))
    if len(kinds) > _MOST_TYPES:
        raise DataError(
            f"{path} has {len(kinds)} types of members, such as {', '.join(kinds[:3])}: {DOTS}"
        )

    # One column for each type of member, over all whole samples.
    keys = PackedTexts.pack(os.fsencode(sample.key) for sample in whole)
    columns = {"keys": keys.text, "keys.ends": keys.ends}
    for kind in kinds:
        members = (sample.members.get(kind, _NONE) for sample in whole)
        offsets, sizes, pixels, texts = zip(*members, strict=True)
        columns[f"offset.{kind}"] = np.array(offsets, np.int64)
        columns[f"size.{kind}"] = np.array(sizes, np.int64)
        if extra.is_image(kind):
            pixels = np.array(pixels, np.int32)
            columns[f"width.{kind}"], columns[f"height.{kind}"] = pixels.T.copy()
        if extra.is_text(kind):
            texts = PackedTexts.pack(texts)
            columns[f"text.{kind}"], columns[f"ends.{kind}"] = texts.text, texts.ends
    return TarIndex(columns, damage, len(samples) - len(whole), kinds)


def _samples(file: BinaryIO, extra: ExtraTypes, faults: list[str]) -> list[_Sample]:
    """The whole members in a tar, by sample; adds what ended it early to ``faults``."""
    from webdataset.tariterators import base_plus_ext

    samples: list[_Sample] = []
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()
                if member.offset_data + member.size > length:
                    faults.append(f"cut short inside {member.name}, at byte {length}")
                    return samples
                key, kind = base_plus_ext(member.name)
                is_file = member.isreg() and not member.issparse()
                if key is None or not is_file or _META.match(member.name):
                    continue
                kind = kind.lower()
                if not samples or samples[-1].key != key:
                    samples.append(_Sample(key))
                if kind in samples[-1].members:
                    samples[-1].fault = f"two members of type {kind}"
                pixels = image_size(tar.extractfile(member)) if extra.is_image(kind) else (0, 0)
                is_text = extra.is_text(kind) and member.size <= MOST_TEXT_BYTES
                text = tar.extractfile(member).read() if is_text else b""
                samples[-1].members[kind] = member.offset_data, member.size, pixels, text
            end = tar.offset
    except (tarfile.TarError, ValueError, EOFError) as error:
        faults.append(f"no tar file, or damaged: {error}")
        return samples
    # The tarfile module takes damage behind a whole member for the end: that is a block of zeros.
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        faults.append(f"damaged header at byte {end} of {length}")
    elif len(block) < tarfile.BLOCKSIZE:
        faults.append(f"cut short at byte {length}: no end mark")
    return samples
