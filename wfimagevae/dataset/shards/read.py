"""Images, classes and captions in WebDataset shards, each read by its place in a tar file."""

import collections
import contextlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wfimagevae.dataset.images.decode import UnreadableImage
from wfimagevae.dataset.images.image_sets import ImageSet
from wfimagevae.dataset.images.labels import number_labels
from wfimagevae.dataset.protocol import DataError, Images
from wfimagevae.dataset.shards.index import ShardFile, file_stamp, index_shards
from wfimagevae.dataset.shards.remote import RemoteOptions, RemoteShards
from wfimagevae.dataset.shards.specs import expand_all, is_remote
from wfimagevae.dataset.shards.tar import ExtraTypes, TarIndex
from wfimagevae.dataset.text.captions import CaptionTable, caption_lines, check_captions
from wfimagevae.dataset.text.packed_texts import PackedTexts

_OPEN_SHARDS = 64  # files that a process keeps open
_NUMBER = re.compile(r"[+-]?[0-9]+")
_log = logging.getLogger("wfimagevae")


@dataclass(frozen=True)
class ShardOptions:
    """What to take from shards.

    Attributes:
        image_key: Types of members that are images, separated by ``;``: the first that a sample
            has is taken.
        caption_key: Type of the member that is the caption (each line one), or ``json:FIELD``; a
            field may be a string or a list of them.
        label_key: Type of the member that is the class's number or name, or ``json:FIELD``. Of
            samples that `ShardWriter` wrote, whose numbers mean their own shards' classes, the
            name counts that goes with a number.
        json_key: Type of the member that holds the record.
        with_captions, with_labels, with_records: What is wanted besides images.
        class_names: As for `Labels`.
        caption_prefix: As for `Captions`.
        may_lack_captions: Leave it to the caller to check that there are any.
        index_cache_dir: Where indices are kept; see `index_shards`.
        remote: How remote shards are fetched.
    """

    image_key: str = "png;jpg;jpeg;webp"
    caption_key: str = "txt"
    label_key: str = "cls"
    json_key: str = "json"
    with_captions: bool = False
    with_labels: bool = False
    with_records: bool = False
    class_names: Sequence[str] | None = None
    caption_prefix: str = ""
    may_lack_captions: bool = False
    index_cache_dir: str | Path | None = None
    remote: RemoteOptions = field(default_factory=RemoteOptions)

    @property
    def image_types(self) -> list[str]:
        """The types of images, first choice first."""
        return [kind.strip().lower() for kind in self.image_key.split(";") if kind.strip()]


class ShardImages(Images):
    """Images in tar files, in the order in which they lie there.

    Args:
        shards: The files.
        store: Gives local copies of the remote ones.
        shard: Number of the shard of each image, uint32, increasing.
        span: Offset and length of each image in its shard, in bytes, int64.
        sizes: Width and height of each, upright, int32 (N, 2); 0 where its header is damaged.
        keys: Of the samples.
    """

    def __init__(
        self,
        shards: list[ShardFile],
        store: RemoteShards,
        shard: np.ndarray,
        span: tuple[np.ndarray, np.ndarray],
        sizes: np.ndarray,
        keys: PackedTexts,
    ):
        self.shards, self._store, self.shard = shards, store, shard
        self._offset, self._length = span
        self.sizes, self.keys = sizes, keys
        self._open: collections.OrderedDict[int, int] = collections.OrderedDict()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": collections.OrderedDict()}

    def __del__(self):
        for handle in self._open.values():
            with contextlib.suppress(OSError):
                os.close(handle)

    def __len__(self) -> int:
        return len(self.shard)

    def key(self, i: int) -> str:
        """Key of the sample."""
        return os.fsdecode(self.keys[i])

    def name(self, i: int) -> str:
        """Shard and key of the sample."""
        return f"{self.shards[self.shard[i]].source}::{self.key(i)}"

    def aliases(self, i: int) -> list[str]:
        """The sample's key, with and without folders."""
        key = self.key(i)
        return [key, key.rpartition("/")[2]]

    def relative(self, i: int) -> str:
        """Shard's name and sample's key, as a path that stays below a folder."""
        parts = [part for part in self.key(i).split("/") if part not in ("", ".", "..")]
        return "/".join([self.shards[self.shard[i]].stem, *parts]) + ".png"

    def file(self, i: int) -> BinaryIO:
        """Its content in memory."""
        return io.BytesIO(self.content(i))

    def content(self, i: int) -> bytes:
        """The file of image ``i``.

        Raises:
            UnreadableImage: the shard ends before it does, or cannot be read there.
            DataError: the shard is missing, was changed, or cannot be fetched.
        """
        length, handle = int(self._length[i]), self._handle(int(self.shard[i]))
        try:
            content = os.pread(handle, length, int(self._offset[i]))
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error
        if len(content) < length:
            raise UnreadableImage(f"cut short: {len(content)} of {length} bytes")
        return content

    def select(self, indices: Sequence[int]) -> "ShardImages":
        """Some of these images."""
        rows = np.asarray(indices, np.int64)
        span = self._offset[rows], self._length[rows]
        sizes, keys = self.sizes[rows], self.keys.select(rows)
        return ShardImages(self.shards, self._store, self.shard[rows], span, sizes, keys)

    def _handle(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        remote = self._store.options
        most = min(_OPEN_SHARDS, remote.read_at_a_time) if remote.max_bytes else _OPEN_SHARDS
        while len(self._open) >= most:
            os.close(self._open.popitem(last=False)[1])
        self._open[number] = self._opened(self.shards[number])
        return self._open[number]

    def _opened(self, shard: ShardFile) -> int:
        try:
            if not is_remote(shard.source):
                if file_stamp(shard.source) != shard.stamp:
                    raise DataError(
                        f"shard {shard.source} changed since training started: start it again"
                    )
                return os.open(shard.source, os.O_RDONLY)
            return self._store.open(shard.source, shard.stamp, shard.sha256)
        except OSError as error:
            raise DataError(f"cannot open shard {shard.source}: {error.strerror}") from None


def open_shards(specs: Sequence[str | Path], options: ShardOptions) -> ImageSet:
    """The samples that have an image, in all shards of some specifications.

    Args:
        specs: See `expand_shards`.
        options: What to take from them.

    Raises:
        ValueError: no shards, or no sample has an image, a label or a caption of the types asked.
        DataError: a shard that cannot be read at all.
    """
    texts = {
        "caption": options.caption_key,
        "label": options.label_key,
        "json": options.json_key,
    }
    kinds = {name: key.partition(":")[0] for name, key in texts.items()}
    plain = ExtraTypes()
    extra = ExtraTypes(
        tuple(kind for kind in options.image_types if not plain.is_image(kind)),
        tuple(sorted({kind for kind in kinds.values() if not plain.is_text(kind)})),
    )
    with_texts = options.with_captions or options.with_labels or options.with_records
    sources = expand_all(specs)
    indexed = index_shards(sources, options.index_cache_dir, options.remote, extra, with_texts)
    chosen = [_with_image(index, options.image_types) for _, index in indexed]
    images = _assembled(indexed, chosen, RemoteShards(options.remote))
    if not len(images):
        found = sorted({kind for _, index in indexed for kind in index.columns})
        raise ValueError(
            f"no sample of {sources[0]} has an image of type {options.image_key}: its members are "
            f"of type {', '.join(found) or 'no known one'}; set --wds_image_key"
        )
    _tell_left_out(indexed, chosen, options.image_key)

    def texts(kind: str) -> PackedTexts:
        pairs = zip(indexed, chosen, strict=True)
        return PackedTexts.concatenate(
            [_texts(index, rows, kind) for (_, index), (rows, *_) in pairs]
        )

    labels, captions, record = (None, []), None, None
    if options.with_labels:
        values = _label_values(texts(kinds["label"]), options.label_key)
        if ":" not in options.label_key:
            values = _by_name(values, texts(kinds["json"]), options.class_names)
        labels = _labels(images, values, options)
    if options.with_captions:
        captions = _captions(images, texts(kinds["caption"]), options)
    if options.with_records:
        json_texts = texts(kinds["json"])
        record = lambda i: _record(json_texts[i])  # noqa: E731
    return ImageSet(images, images.sizes, labels, captions, record, images.shard)


_Chosen = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _with_image(index: TarIndex, kinds: list[str]) -> _Chosen:
    """Samples that have an image: row, offset, length, and (width, height) of its first choice."""
    count = len(index)
    offset, length = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    sizes = np.zeros((count, 2), np.int32)
    for kind in kinds:
        column = index.columns.get(kind)
        if column is None:
            continue
        new = (offset < 0) & (column.offset >= 0)
        offset[new], length[new] = column.offset[new], column.size[new]
        sizes[new] = np.stack([column.width, column.height], axis=1)[new]
    rows = np.flatnonzero(offset >= 0)
    return rows, offset[rows], length[rows], sizes[rows]


def _tell_left_out(
    indexed: list[tuple[ShardFile, TarIndex]], chosen: list[_Chosen], image_key: str
) -> None:
    total, count, kinds = 0, 0, set()
    for (_, index), (rows, *_) in zip(indexed, chosen, strict=True):
        without = np.setdiff1d(np.arange(len(index)), rows)
        total, count = total + len(index), count + len(without)
        kinds |= {kind for kind, c in index.columns.items() if (c.offset[without] >= 0).any()}
    if count:
        _log.warning(
            "left out %d of %d samples, which have no image of type %s; their members are of "
            "type %s; see --wds_image_key",
            count,
            total,
            image_key,
            ", ".join(sorted(kinds)) or "no known one",
        )


def _assembled(
    indexed: list[tuple[ShardFile, TarIndex]], chosen: list[_Chosen], store: RemoteShards
) -> ShardImages:
    counts = [len(rows) for rows, *_ in chosen]
    shard = np.repeat(np.arange(len(chosen), dtype=np.uint32), counts)
    offset, length, sizes = (np.concatenate(parts) for parts in list(zip(*chosen, strict=True))[1:])
    keys = PackedTexts.concatenate(
        [
            index.keys if len(rows) == len(index) else index.keys.select(rows)
            for (_, index), (rows, *_) in zip(indexed, chosen, strict=True)
        ]
    )
    return ShardImages([shard for shard, _ in indexed], store, shard, (offset, length), sizes, keys)


def _texts(index: TarIndex, rows: np.ndarray, kind: str) -> PackedTexts:
    column = index.columns.get(kind)
    if column is None or column.text is None:
        return PackedTexts.pack([b""] * len(rows))
    return column.text if len(rows) == len(index) else column.text.select(rows)


def _record(text: bytes) -> dict[str, Any]:
    """The object in a json member; empty where there is none."""
    try:
        record = json.loads(text.decode("utf-8-sig")) if text else {}
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _values(texts: PackedTexts, key: str) -> Iterator[Any]:
    """What a key of the options means for each sample: a text, or a field of an object."""
    _, colon, name = key.partition(":")
    for i in range(len(texts)):
        if colon:
            yield _record(texts[i]).get(name)
        else:
            yield texts[i].decode("utf-8", "replace").removeprefix("\ufeff")


def _label_values(texts: PackedTexts, key: str) -> list[Any]:
    """The label of each sample, None where it has none; texts are numbers if all of them are."""
    values = list(_values(texts, key))
    if ":" in key:
        return values
    values = [text.strip() or None for text in values]
    if all(_NUMBER.fullmatch(value) for value in values if value):
        return [int(value) if value else None for value in values]
    return values


def _by_name(
    values: list[Any], records: PackedTexts, class_names: Sequence[str] | None
) -> list[Any]:
    """The names of numbered classes where `ShardWriter` wrote them; numbers without names stay."""
    if not any(isinstance(value, int) for value in values):
        return values
    names = [_written_class(records[i]) for i in range(len(records))]
    pairs = list(zip(values, names, strict=True))
    if class_names is None and all(name in (None, str(value)) for value, name in pairs):
        return values
    return [value if name is None else name for value, name in pairs]


def _written_class(text: bytes) -> str | None:
    record = _record(text) if b'"class"' in text else {}
    name = record.get("class")
    is_ours = isinstance(name, str) and record.keys() >= {"name", "width", "height"}
    return name if is_ours else None


def _labels(
    images: ShardImages, values: list[Any], options: ShardOptions
) -> tuple[np.ndarray, list[str]]:
    if all(value is None for value in values):
        raise ValueError(
            f"no sample of {images.name(0)} and so on has a class under {options.label_key}; set "
            "--wds_label_key, or --labels none"
        )
    source = images.shards[0].source
    return number_labels(values, images.name, source, options.class_names)


def captions_place(options: ShardOptions) -> str:
    """Where a message says that captions were looked for."""
    return f"looked under {options.caption_key}; --wds_caption_key"


def _captions(images: ShardImages, texts: PackedTexts, options: ShardOptions) -> CaptionTable:
    def lines(value: Any) -> list[str]:
        if isinstance(value, list):
            return [" ".join(text.split()) for text in value if isinstance(text, str) and text]
        return caption_lines(value) if isinstance(value, str) else []

    found = (lines(value) for value in _values(texts, options.caption_key))
    table = CaptionTable(found, options.caption_prefix)
    if not options.may_lack_captions:
        check_captions(table, images.name, captions_place(options))
    return table
