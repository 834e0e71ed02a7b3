"""Indices of many shards: made in parallel, kept between runs."""

import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wfimagevae.dataset.index_cache import IndexCache, in_processes, json_array
from wfimagevae.dataset.protocol import DataError
from wfimagevae.dataset.shards.remote import RemoteShards, shown_url
from wfimagevae.dataset.shards.specs import is_remote
from wfimagevae.dataset.shards.tar import ExtraTypes, TarIndex, index_tar

RECORD_NAME = "shards.json"
INDEX_SUFFIX = ".index.npz"
_VERSION = 2
_ASKING = 16  # servers are asked about so many shards at once
_log = logging.getLogger("wfimagevae")


@dataclass(frozen=True)
class ShardFile:
    """A shard (absolute path, URL, or ``pipe:COMMAND``), of the version that was indexed.

    ``stamp`` is size and modification time of a file; of a remote one, what its server says.
    ``sha256`` is of the content that was indexed; empty where the index was made from the file.
    """

    source: str
    stamp: list[Any]
    sha256: str = ""

    @property
    def stem(self) -> str:
        return Path(self.source.partition("?")[0]).name.removesuffix(".tar")


def index_shards(
    sources: Sequence[str],
    cache_dir: str | Path | None = None,
    store: RemoteShards | None = None,
    extra: ExtraTypes | None = None,
    with_texts: bool = True,
) -> list[tuple[ShardFile, TarIndex]]:
    """The samples of every shard, from the cache where the shard has not changed.

    Shards (see `expand_shards`) that are new or changed are read once, headers and texts only, by
    as many processes as there are cores. A remote shard is fetched whole by ``store`` for that,
    unless the ``shards.json`` beside it (which scripts/make_webdataset.py writes) has a finished
    index. Damaged shards are warned of; a DataError is one that cannot be read or fetched at all,
    or no sample in any. Without ``with_texts``, the texts, which take the most memory, are left
    out.
    """
    store, extra = store or RemoteShards(), extra or ExtraTypes()
    # Where the user named no cache, it is no matter that shards stand in the home folder.
    named = {os.path.dirname(s) for s in sources if not is_remote(s)} if cache_dir else ()
    cache = IndexCache(cache_dir, "shard indices", named)

    def key(shard: ShardFile) -> str:
        return repr((shard.source, extra))

    def stamped(source: str) -> ShardFile:
        stamp = store.stamp(source) if is_remote(source) else file_stamp(source)
        return ShardFile(source, stamp)

    # Ask for the version of every shard, and look for its index in the cache.
    with ThreadPoolExecutor(_ASKING) as pool:
        shards = list(pool.map(stamped, sources))
    read = functools.partial(TarIndex.from_arrays, with_texts=with_texts)
    with cache.locked():  # the processes of a machine do the work once
        indexes = {s.source: cache.load(key(s), [_VERSION, s.stamp], read) for s in shards}
        published = _PublishedIndices(store) if extra == ExtraTypes() else None
        missing = [
            shard
            for shard in shards
            if (index := indexes[shard.source]) is None
            or (index.sha256 and published and not published.is_of(index, shard))
        ]
        # Make the others, and keep each at once: all may take hours.
        for shard, index in _made(missing, store, extra, published):
            cache.save(key(shard), [_VERSION, shard.stamp], index.arrays())
            indexes[shard.source] = index
    indexed = [(replace(s, sha256=indexes[s.source].sha256), indexes[s.source]) for s in shards]
    _warn_of_damage(indexed)
    if not any(len(index) for _, index in indexed):
        raise DataError(f"no sample in {len(indexed)} shards, for example {indexed[0][0].source}")
    return indexed


def file_stamp(path: str) -> list[int]:
    """Size and modification time of a local shard; DataError if it is missing."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"cannot read shard {path}: {error.strerror}") from None
    return [status.st_size, status.st_mtime_ns]


def _made(
    shards: list[ShardFile],
    store: RemoteShards,
    extra: ExtraTypes,
    published: "_PublishedIndices | None",
) -> Iterator[tuple[ShardFile, TarIndex]]:
    """Indices that the cache does not have: published ones, then those made from the shards."""
    unpublished = []
    for shard in shards:
        index = published.find(shard) if published and is_remote(shard.source) else None
        if index is None:
            unpublished.append(shard)
        else:
            yield shard, index
    work = functools.partial(_index_shard, store=store, extra=extra)
    made = in_processes(work, unpublished, "index shards", unit="shard")
    yield from zip(unpublished, made, strict=True)


def _index_shard(shard: ShardFile, store: RemoteShards, extra: ExtraTypes) -> TarIndex:
    if not is_remote(shard.source):
        return index_tar(shard.source, extra)
    return index_tar(shown_url(shard.source), extra, store.open(shard.source, shard.stamp))


def _warn_of_damage(indexed: list[tuple[ShardFile, TarIndex]]) -> None:
    damaged = [(shard, index) for shard, index in indexed if index.damage]
    for shard, index in damaged[:20]:
        more = f" and {len(index.damage) - 3} more" if len(index.damage) > 3 else ""
        faults = "; ".join(index.damage[:3]) + more
        _log.warning("damaged shard %s: %s; %d whole samples", shard.source, faults, len(index))
    empty = [shard.source for shard, index in indexed if not len(index) and not index.damage]
    if empty:
        _log.warning("%d shards without a sample, for example %s", len(empty), empty[0])
    if damaged:
        _log.warning(
            "%d of %d shards are damaged; samples known to be lost: %d",
            *(len(damaged), len(indexed), sum(index.lost for _, index in damaged)),
        )


class _PublishedIndices:
    """Indices that make_webdataset wrote beside remote shards."""

    def __init__(self, store: RemoteShards):
        self.store = store
        self._records: dict[str, dict] = {}

    def find(self, shard: ShardFile) -> TarIndex | None:
        """The index of a shard; None where there is none, or none that fits."""
        folder, record = shard.source.rpartition("/")[0], self._record(shard)
        if record is None:
            return None
        lengths = [fact for fact in shard.stamp if str(fact).isdecimal()]  # of a server that tells
        if lengths and str(record["bytes"]) not in lengths:
            _log.warning(
                "%s has %s bytes, not the %s of %s/%s: its index is left aside",
                *(shard.source, lengths[0], record["bytes"], folder, RECORD_NAME),
            )
            return None
        content = self.store.read(f"{folder}/{record['index']}")
        if content is None:
            return None
        if hashlib.sha256(content).hexdigest() != record["index_sha256"]:
            _log.warning("%s/%s is not the one of its record: left aside", folder, record["index"])
            return None
        with np.load(io.BytesIO(content)) as arrays:
            return replace(TarIndex.from_arrays(arrays), sha256=record["sha256"])

    def is_of(self, index: TarIndex, shard: ShardFile) -> bool:
        """Whether an index that was taken from a record is still what the record says."""
        record = self._record(shard)
        return record is not None and record["sha256"] == index.sha256

    def _record(self, shard: ShardFile) -> dict | None:
        folder, _, name = shard.source.rpartition("/")
        if shard.source.startswith("pipe:") or not name.endswith(".tar"):
            return None
        if folder not in self._records:
            place = f"{folder}/{RECORD_NAME}"
            self._records[folder] = _shard_records(self.store.read(place), place)
        return self._records[folder].get(name)


def _shard_records(content: bytes | None, place: str) -> dict[str, dict]:
    if content is None:
        return {}
    keys = ("name", "bytes", "sha256", "index", "index_sha256")
    try:
        shards = json.loads(content)["shards"]
        return {shard["name"]: {key: shard[key] for key in keys} for shard in shards}
    except (ValueError, KeyError, TypeError) as error:
        _log.warning("%s is no record of shards (%r): left aside", place, error)
        return {}


def write_index(file: BinaryIO, index: TarIndex, **facts: Any) -> None:
    more = {name: json_array(value) for name, value in facts.items()}
    np.savez_compressed(file, **index.arrays(), **more)
