"""Images, classes and captions in WebDataset shards, each read by its place in a tar file."""

import collections
import contextlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from wfimagevae.dataset.images.decode import UnreadableImage
from wfimagevae.dataset.images.image_sets import ImageParts, ImageSet
from wfimagevae.dataset.images.labels import number_labels
from wfimagevae.dataset.options import StreamOptions
from wfimagevae.dataset.protocol import DataError, Images
from wfimagevae.dataset.shards.index import ShardFile, file_stamp, index_shards
from wfimagevae.dataset.shards.remote import RemoteShards
from wfimagevae.dataset.shards.specs import expand_all, is_remote
from wfimagevae.dataset.shards.tar import ExtraTypes, TarIndex
from wfimagevae.dataset.text.captions import CaptionTable, caption_lines, check_captions
from wfimagevae.dataset.text.packed_texts import PackedTexts

_OPEN_SHARDS = 64  # files that a process keeps open
_NUMBER = re.compile(r"[+-]?[0-9]+")
_log = logging.getLogger("wfimagevae")


class ShardImages(Images):
    """Images in tar files, in the order in which they lie there.

    Args:
        store: Gives local copies of the remote files.
        shard: Number of the file of each image, uint32, increasing.
        span: Offset and length of each image in its file, in bytes, int64.
        sizes: Width and height of each, upright, int32 (N, 2); 0 where its header is damaged.
        keys: Names of the samples.
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
        return os.fsdecode(self.keys[i])

    def name(self, i: int) -> str:
        return f"{self.shards[self.shard[i]].source}::{self.key(i)}"

    def aliases(self, i: int) -> list[str]:
        key = self.key(i)
        return [key, key.rpartition("/")[2]]

    def relative(self, i: int) -> str:
        """Shard's name and sample's key, as a path that stays below a folder."""
        parts = [part for part in self.key(i).split("/") if part not in ("", ".", "..")]
        return "/".join([self.shards[self.shard[i]].stem, *parts]) + ".png"

    def file(self, i: int) -> BinaryIO:
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
        rows = np.asarray(indices, np.int64)
        span = self._offset[rows], self._length[rows]
        sizes, keys = self.sizes[rows], self.keys.select(rows)
        return ShardImages(self.shards, self._store, self.shard[rows], span, sizes, keys)

    def _handle(self, number: int) -> int:
        """The descriptor of a shard, one of the few that this process keeps open."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        # The space of a shard that left a limited cache is free once nobody has it open.
        is_limited = self._store.max_bytes > 0
        most = min(_OPEN_SHARDS, self._store.read_at_a_time) if is_limited else _OPEN_SHARDS
        while len(self._open) >= most:
            os.close(self._open.popitem(last=False)[1])
        shard = self.shards[number]
        try:
            if is_remote(shard.source):
                handle = self._store.open(shard.source, shard.stamp, shard.sha256)
            elif file_stamp(shard.source) == shard.stamp:
                handle = os.open(shard.source, os.O_RDONLY)
            else:
                raise DataError(
                    f"shard {shard.source} changed since training started: start it again"
                )
        except OSError as error:
            raise DataError(f"cannot open shard {shard.source}: {error.strerror}") from None
        self._open[number] = handle
        return handle


def open_shards(
    specs: Sequence[str | Path],
    wanted: ImageParts | None = None,
    options: StreamOptions | None = None,
) -> ImageSet:
    """The samples that have an image, in all shards of some specifications (see `expand_shards`).

    The classes and captions that are ``wanted`` are the shards' own, under the keys of ``options``,
    whatever the kind; numbers of classes that `ShardWriter` wrote mean its own shards' classes, so
    the names that go with them count.
    """
    wanted, options = wanted or ImageParts(), options or StreamOptions()
    image_types = [t.strip().lower() for t in options.wds_image_key.split(";") if t.strip()]
    keys = (options.wds_caption_key, options.wds_label_key, options.wds_json_key)
    extra = ExtraTypes.besides_the_usual(image_types, [key.partition(":")[0] for key in keys])
    with_captions, with_labels = wanted.captions.kind != "none", wanted.labels.kind != "none"
    with_texts = with_captions or with_labels or wanted.records
    max_bytes = int(options.wds_cache_gb * 1e9)
    store = RemoteShards(options.wds_cache_dir, max_bytes, 2 * options.wds_shuffle_shards)
    sources = expand_all(specs)
    indexed = index_shards(sources, wanted.index_cache_dir, store, extra, with_texts)
    indexes = [index for _, index in indexed]

    # Take the samples that have an image, and say how many have none.
    chosen = [_with_image(index, image_types) for index in indexes]
    pairs = list(zip(indexes, chosen, strict=True))
    if not any(len(part.rows) for part in chosen):
        kinds = sorted({kind for index in indexes for kind in index.columns})
        is_dotted = any(kind.rpartition(".")[2] in image_types for kind in kinds)
        hint = "names of samples must not have dots, or " if is_dotted else ""
        raise ValueError(
            f"no sample of {sources[0]} has an image of type {options.wds_image_key}: its members "
            f"are of type {', '.join(kinds) or 'no known one'}; {hint}set --wds_image_key"
        )
    _warn_of_left_out(pairs, options.wds_image_key)
    shard = np.repeat(np.arange(len(chosen), dtype=np.uint32), [len(part.rows) for part in chosen])
    offset, length, sizes = (np.concatenate(parts) for parts in list(zip(*chosen, strict=True))[1:])
    names = PackedTexts.concatenate([index.keys.select(part.rows) for index, part in pairs])
    shards = [file for file, _ in indexed]
    images = ShardImages(shards, store, shard, (offset, length), sizes, names)

    def texts(key: str) -> PackedTexts:
        kind, parts = key.partition(":")[0], []
        for index, part in pairs:
            column = index.columns.get(kind)
            has_texts = column is not None and column.text is not None
            texts = column.text if has_texts else PackedTexts.pack([b""] * len(index))
            parts.append(texts.select(part.rows))
        return PackedTexts.concatenate(parts)

    # Read what goes with them.
    samples = ImageSet(images, sizes, shard=shard)
    if with_labels:
        class_names = wanted.labels.class_names
        values = _label_values(texts(options.wds_label_key), options.wds_label_key)
        if ":" not in options.wds_label_key:
            values = _by_name(values, texts(options.wds_json_key), class_names)
        if all(value is None for value in values):
            raise ValueError(
                f"no sample of {images.name(0)} and so on has a class under "
                f"{options.wds_label_key}; set --wds_label_key, or --labels none"
            )
        samples.labels = number_labels(values, images.name, shards[0].source, class_names)
    if with_captions:
        key = options.wds_caption_key
        lines = map(_captions, _values(texts(key), key))
        samples.captions = CaptionTable(lines, wanted.captions.prefix)
        if not wanted.may_lack_captions:
            check_captions(samples.captions, images.name, captions_place(options))
    if wanted.records:
        records = texts(options.wds_json_key)
        samples.record = lambda i: _record(records[i])
    return samples


def captions_place(options: StreamOptions) -> str:
    return f"looked under {options.wds_caption_key}; --wds_caption_key"


class _Chosen(NamedTuple):
    """Samples of one shard that have an image; offset, length and size are of its first choice."""

    rows: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    sizes: np.ndarray


def _with_image(index: TarIndex, kinds: list[str]) -> _Chosen:
    count = len(index)
    offset, length = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    sizes = np.zeros((count, 2), np.int32)
    for column in (index.columns[kind] for kind in kinds if kind in index.columns):
        new = (offset < 0) & (column.offset >= 0)
        offset[new], length[new] = column.offset[new], column.size[new]
        sizes[new] = np.stack([column.width, column.height], axis=1)[new]
    rows = np.flatnonzero(offset >= 0)
    return _Chosen(rows, offset[rows], length[rows], sizes[rows])


def _warn_of_left_out(pairs: list[tuple[TarIndex, _Chosen]], image_key: str) -> None:
    total, count, kinds = 0, 0, set()
    for index, part in pairs:
        without = np.setdiff1d(np.arange(len(index)), part.rows)
        total, count = total + len(index), count + len(without)
        kinds |= {kind for kind, c in index.columns.items() if (c.offset[without] >= 0).any()}
    if count:
        _log.warning(
            "left out %d of %d samples, which have no image of type %s; their members are of "
            "type %s; see --wds_image_key",
            *(count, total, image_key, ", ".join(sorted(kinds)) or "no known one"),
        )


def _record(text: bytes) -> dict[str, Any]:
    try:
        record = json.loads(text.decode("utf-8-sig")) if text else {}
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _values(texts: PackedTexts, key: str) -> Iterator[Any]:
    """What a key of the options means for each sample: a text, or a field of an object."""
    _, colon, name = key.partition(":")
    for text in map(texts.__getitem__, range(len(texts))):
        if colon:
            yield _record(text).get(name)
        else:
            yield text.decode("utf-8", "replace").removeprefix("\ufeff")


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


def _captions(value: Any) -> list[str]:
    if isinstance(value, list):
        return [" ".join(text.split()) for text in value if isinstance(text, str) and text]
    return caption_lines(value) if isinstance(value, str) else []
