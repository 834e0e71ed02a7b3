"""Images, classes and captions in WebDataset shards, each read by its place in a tar file."""

import functools
import io
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wfimagevae.dataset.arrays import PackedTexts
from wfimagevae.dataset.images.decode import UnreadableImage
from wfimagevae.dataset.images.image_sets import ImageParts, ImageSet
from wfimagevae.dataset.images.labels import number_labels
from wfimagevae.dataset.open_files import OpenFiles
from wfimagevae.dataset.options import StreamOptions
from wfimagevae.dataset.protocol import DataError, Images
from wfimagevae.dataset.shards.index import index_shards
from wfimagevae.dataset.shards.specs import expand_shards
from wfimagevae.dataset.shards.store import ShardFile, ShardStore, shown_url
from wfimagevae.dataset.shards.tar import APART, DOTS, ExtraTypes, TarIndex
from wfimagevae.dataset.text.captions import (
    TOO_LONG,
    CaptionTable,
    field_captions,
    readable,
    text_captions,
)
from wfimagevae.files import codec_of, parse_json, plain_text

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_log = logging.getLogger("wfimagevae")


class ShardImages(Images):
    """Images in tar files, in the order in which they lie there.

    ``shard`` is the number of the file of each, uint32, increasing; ``places`` are its offset there
    and its length, in bytes, int64 (N, 2); ``keys`` are the names of the samples.
    """

    def __init__(
        self,
        shards: list[ShardFile],
        store: ShardStore,
        shard: np.ndarray,
        places: np.ndarray,
        keys: PackedTexts,
    ):
        self._shards, self._store = shards, store
        self._shard, self._places, self._keys = shard, places, keys
        # The space of a shard that left a limited cache is free once nobody has it open.
        self._files = OpenFiles(min(64, store.read_at_a_time if store.max_bytes > 0 else 64))

    def __len__(self) -> int:
        return len(self._shard)

    def key(self, i: int) -> str:
        return os.fsdecode(self._keys[i])

    def name(self, i: int) -> str:
        return f"{self._shards[self._shard[i]].source}::{self.key(i)}"

    def aliases(self, i: int) -> list[str]:
        key = self.key(i)
        return [key, key.rpartition("/")[2]]

    def relative(self, i: int) -> str:
        """Shard's name and sample's key, as a path that stays below a folder."""
        parts = [part for part in self.key(i).split("/") if part not in ("", ".", "..")]
        shard = Path(self._shards[self._shard[i]].source.partition("?")[0])
        return "/".join([shard.name.removesuffix(".tar"), *parts]) + ".png"

    def file(self, i: int) -> BinaryIO:
        return io.BytesIO(self.content(i))

    def content(self, i: int) -> bytes:
        """The file of image ``i``.

        Raises:
            UnreadableImage: the shard cannot be read there.
            DataError: the shard is missing, was changed or cut, or cannot be fetched.
        """
        shard, (offset, length) = self._shards[self._shard[i]], map(int, self._places[i])
        try:
            content = self._files.read(
                shard.source, length, offset, lambda: self._store.open(shard)
            )
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error
        if len(content) < length:
            raise DataError(f"shard {shown_url(shard.source)} was cut since training started")
        return content

    def select(self, indices: Sequence[int]) -> "ShardImages":
        rows = np.asarray(indices, np.int64)
        columns = self._shard[rows], self._places[rows], self._keys.select(rows)
        return ShardImages(self._shards, self._store, *columns)


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
    kinds, usual = [key.partition(":")[0] for key in keys], ExtraTypes()
    extra = ExtraTypes(
        tuple(kind for kind in dict.fromkeys(image_types) if not usual.is_image(kind)),
        tuple(kind for kind in sorted(set(kinds)) if not usual.is_text(kind)),
    )
    with_captions, with_labels = wanted.captions.kind != "none", wanted.labels.kind != "none"
    with_texts = with_captions or with_labels or wanted.records
    max_bytes = int(options.wds_cache_gb * 1e9)
    store = ShardStore(options.wds_cache_dir, max_bytes, 2 * options.wds_shuffle_shards)
    expanded = (expand_shards(spec, options.allow_pipe) for spec in specs)
    sources = list(dict.fromkeys(itertools.chain.from_iterable(expanded)))
    indexed = index_shards(sources, wanted.index_cache_dir, store, extra, with_texts)
    damaged = [shown_url(shard.source) for shard, index in indexed if index.damage]
    if damaged and options.wds_refuse_damaged:
        raise DataError(
            f"{len(damaged)} of {len(indexed)} shards are damaged, as warned of above, for example "
            f"{damaged[0]}: mend or remove them, or --no_wds_refuse_damaged for what is whole"
        )
    shards, indexes = zip(*indexed, strict=True)

    # Take the samples that have an image, and say how many have none. Of each array there is one at
    # a time besides its parts: a hundred million samples shall take 100 bytes each.
    chosen = [_with_image(index, image_types) for index in indexes]
    pairs = [(index, part["row"].copy()) for index, part in zip(indexes, chosen, strict=True)]
    shard = np.repeat(np.arange(len(chosen), dtype=np.uint32), list(map(len, chosen)))
    _tell_left_out(pairs, sources[0], options.wds_image_key, image_types)
    read = list(itertools.compress(kinds, (with_captions, with_labels, wanted.records)))
    for source, (index, part) in zip(sources, pairs, strict=True):
        _check_together(source, index, part, read)
    places = np.empty((len(shard), 2), np.int64)
    for column, name in zip(places.T, ("offset", "length"), strict=True):
        np.concatenate([part[name] for part in chosen], out=column)
    sides = np.concatenate([part["sides"] for part in chosen])
    del chosen
    keys = PackedTexts.concatenate([index.keys.select(part) for index, part in pairs])
    images = ShardImages(shards, store, shard, places, keys)

    def texts(key: str) -> Iterator[bytes]:
        kind = key.partition(":")[0]
        for index, part in pairs:
            yield from map(index.texts(kind).__getitem__, part)

    # Read what goes with them.
    samples = ImageSet(images, sides, shard=shard)
    if with_labels:
        class_names = wanted.labels.class_names
        values = _label_values(texts, options, class_names)
        if all(value is None for value in values):
            raise ValueError(
                f"no sample of {images.name(0)} and so on has a class under "
                f"{options.wds_label_key}; set --wds_label_key, or --labels none"
            )
        samples.labels = number_labels(values, images.name, sources[0], class_names)
    if with_captions:
        kind, _, field = options.wds_caption_key.partition(":")
        sizes = np.concatenate([index.sizes(kind)[part] for index, part in pairs])
        contents = zip(texts(kind), map(int, sizes), strict=True)
        lines = readable(functools.partial(_captions, field), contents, images.name)
        samples.captions = CaptionTable(lines, wanted.captions.prefix)
    if wanted.records:
        records = PackedTexts.pack(texts(options.wds_json_key))
        samples.record = lambda i: _record(records[i])
    return samples


_PLACE = [("row", np.int32), ("offset", np.int64), ("length", np.int64), ("sides", np.int32, 2)]


def _with_image(index: TarIndex, kinds: list[str]) -> np.ndarray:
    """Samples of one shard that have an image, and where the first choice of theirs lies."""
    places = np.zeros(len(index), _PLACE)
    places["row"], places["offset"] = np.arange(len(index)), -1
    for kind in (kind for kind in kinds if kind in index.types):
        offset, length, width, height = (
            index.columns[f"{name}.{kind}"] for name in ("offset", "size", "width", "height")
        )
        new = (places["offset"] < 0) & (offset >= 0)
        places["offset"][new], places["length"][new] = offset[new], length[new]
        places["sides"][new] = np.stack([width, height], axis=1)[new]
    return places[places["offset"] >= 0]


def _check_together(source: str, index: TarIndex, with_image: np.ndarray, kinds: list[str]) -> None:
    """Refuses a shard (ValueError) where images have their texts elsewhere in it."""
    if not any(APART in fault for fault in index.damage):
        return
    has_image = np.isin(np.arange(len(index)), with_image)
    for kind in (kind for kind in kinds if kind in index.types):
        has_text = index.columns[f"offset.{kind}"] >= 0
        strays = {index.keys[i] for i in np.flatnonzero(~has_image & has_text)}
        lonely = (index.keys[i] for i in np.flatnonzero(has_image & ~has_text))
        if apart := [key for key in lonely if key in strays]:
            raise ValueError(
                f"{shown_url(source)}: key {os.fsdecode(apart[0])} comes again later: {APART}; "
                f"{len(apart)} images have their {kind} elsewhere"
            )


def _tell_left_out(
    pairs: list[tuple[TarIndex, np.ndarray]], source: str, image_key: str, image_types: list[str]
) -> None:
    """Warns of samples without an image: of what types they are; ValueError if none has one."""
    total, count, kinds = 0, 0, set()
    for index, part in pairs:
        without = np.setdiff1d(np.arange(len(index)), part)
        total, count = total + len(index), count + len(without)
        kinds |= {k for k in index.types if (index.columns[f"offset.{k}"][without] >= 0).any()}
    if not count:
        return
    kinds = sorted(kinds)
    dotted = [kind for kind in kinds if kind.rpartition(".")[2] in image_types and "." in kind]
    some = ", ".join(kinds[:6]) + (f" and {len(kinds) - 6} more" if len(kinds) > 6 else "")
    advice = [f"{DOTS}: rename them"] if dotted else []
    advice += ["set --wds_image_key"] if len(dotted) < 2 else []  # which one type can be given by
    about = f"members are of type {some or 'no known one'}; {', or '.join(advice)}"
    if count == total:
        raise ValueError(f"no sample of {source} has an image of type {image_key}: its {about}")
    message = "left out %d of %d samples, which have no image of type %s; their %s"
    _log.warning(message, count, total, image_key, about)


def _record(text: bytes) -> dict[str, Any]:
    try:
        record = parse_json(plain_text(text), may_repeat=True) if text else {}
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _label_values(
    texts: Callable[[str], Iterable[bytes]],
    options: StreamOptions,
    class_names: Sequence[str] | None,
) -> list[Any]:
    """The label of each sample, None where it has none; texts are numbers if all of them are."""
    _, colon, field = options.wds_label_key.partition(":")
    found = texts(options.wds_label_key)
    if colon:
        values = (_record(text).get(field) for text in found)
        return [sys.intern(v) if isinstance(v, str) else v for v in values]
    words = (text.decode(codec_of(text), "replace") for text in found)
    # One object a class: a hundred million would take as many times 50 bytes.
    values = [sys.intern(word.removeprefix("\ufeff").strip()) or None for word in words]
    if not any(values) or not all(_NUMBER.fullmatch(value) for value in values if value):
        return values
    # The names of numbered classes where `ShardWriter` wrote them; numbers without names stay.
    numbers = {value: int(value) if value else None for value in set(values)}
    values = [numbers[value] for value in values]
    names = [_written_class(text) for text in texts(options.wds_json_key)]
    pairs = zip(values, names, strict=True)
    if class_names is None and all(name in (None, str(value)) for value, name in pairs):
        return values
    return [v if name is None else name for v, name in zip(values, names, strict=True)]


def _written_class(text: bytes) -> str | None:
    record = _record(text) if b'"class"' in text else {}
    name = record.get("class")
    is_ours = isinstance(name, str) and record.keys() >= {"name", "width", "height"}
    return sys.intern(name) if is_ours else None


def _captions(field: str, member: tuple[bytes, int]) -> list[str]:
    """The captions in a member's content and size, or in fields of it; ValueError if it's bad."""
    content, size = member
    if not content and size:  # what is longer is in no index
        raise ValueError(TOO_LONG)
    if not field:
        return text_captions(content)
    value = parse_json(plain_text(content), may_repeat=True) if content else {}
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {content[:80]!r}")
    values = map(value.get, field.split(";"))  # the first field that has something
    found = next((value for value in values if value not in (None, "", [])), None)
    return field_captions(found, by_line=True)
