"""Indices of many shards: made in parallel, kept between runs."""

import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from wfimagevae.dataset.arrays import IndexCache, in_processes
from wfimagevae.dataset.protocol import DataError
from wfimagevae.dataset.shards.specs import is_remote
from wfimagevae.dataset.shards.store import ShardFile, ShardStore, shown_url
from wfimagevae.dataset.shards.tar import ExtraTypes, TarIndex, index_tar

RECORD_NAME = "shards.json"
_VERSION = 2
_ASKING = 16  # servers are asked about so many shards at once
_log = logging.getLogger("wfimagevae")


def index_shards(
    sources: Sequence[str],
    cache_dir: str | Path | None = None,
    store: ShardStore | None = None,
    extra: ExtraTypes = ExtraTypes(),  # noqa: B008 - it does not change
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
    store = store or ShardStore()
    # Where the user named no cache, it is no matter that shards stand in the home folder.
    named = {os.path.dirname(s) for s in sources if not is_remote(s)} if cache_dir else ()
    cache = IndexCache(cache_dir, "shard indices", named)
    indexes: dict[str, TarIndex | None] = {}

    records: dict[str, dict[str, dict]] = {}  # by folder

    def keep(shard: ShardFile, index: TarIndex) -> None:
        cache.save(repr((shard.source, extra)), [_VERSION, shard.stamp], index.arrays())
        indexes[shard.source] = read(index.arrays())

    # Ask for the version of every shard, and look for its index in the cache.
    with ThreadPoolExecutor(_ASKING) as pool:
        shards = list(map(ShardFile, sources, pool.map(store.stamp, sources)))
    read = functools.partial(TarIndex.from_arrays, with_texts=with_texts)
    with cache.locked():  # the processes of a machine do the work once
        for shard in shards:
            index = cache.load(repr((shard.source, extra)), [_VERSION, shard.stamp], read)
            indexes[shard.source] = index
            if index is not None and not index.sha256:  # made from the shard itself
                continue
            # What is published about a remote shard; there are no members of other types in it. An
            # index that was taken from a record must still be what the record says.
            folder, _, name = shard.source.rpartition("/")
            if folder not in records and name.endswith(".tar"):
                records[folder] = _shard_records(store.read(f"{folder}/{RECORD_NAME}"), folder)
            published = records.get(folder, {}).get(name, {})
            if index is None or index.sha256 != published.get("sha256"):
                indexes[shard.source] = None
                index = _published_index(shard, published, store) if published else None
                if index is not None:
                    keep(shard, index)
        unpublished = [shard for shard in shards if indexes[shard.source] is None]
        # Make the others, and keep each at once: all may take hours.
        work = functools.partial(_index_shard, store=store, extra=extra)
        made = in_processes(work, unpublished, "index shards", unit="shard")
        for shard, index in zip(unpublished, made, strict=True):
            keep(shard, index)
    indexed = [(replace(s, sha256=indexes[s.source].sha256), indexes[s.source]) for s in shards]
    _warn_of_damage(indexed)
    if not any(len(index) for _, index in indexed):
        raise DataError(f"no sample in {len(indexed)} shards, for example {indexed[0][0].source}")
    return indexed


def _index_shard(shard: ShardFile, store: ShardStore, extra: ExtraTypes) -> TarIndex:
    return index_tar(shown_url(shard.source), extra, store.open(shard))


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


def _shard_records(content: bytes | None, folder: str) -> dict[str, dict]:
    """What a ``shards.json`` says of each shard in its folder, by name."""
    keys = ("name", "bytes", "sha256", "index", "index_sha256")
    try:
        shards = [] if content is None else json.loads(content)["shards"]
        return {shard["name"]: {key: shard[key] for key in keys} for shard in shards}
    except (ValueError, KeyError, TypeError) as error:
        place = f"{folder}/{RECORD_NAME}"
        _log.warning("%s is no record of shards (%r): left aside", place, error)
        return {}


def _published_index(shard: ShardFile, record: dict, store: ShardStore) -> TarIndex | None:
    """The index that make_webdataset wrote beside a shard; None where it is missing or wrong."""
    folder = shard.source.rpartition("/")[0]
    lengths = [fact for fact in shard.stamp if str(fact).isdecimal()]  # of a server that tells
    if lengths and str(record["bytes"]) not in lengths:
        _log.warning(
            "%s has %s bytes, not the %s of %s/%s: its index is left aside",
            *(shard.source, lengths[0], record["bytes"], folder, RECORD_NAME),
        )
        return None
    content = store.read(f"{folder}/{record['index']}")
    if content is None:
        return None
    if hashlib.sha256(content).hexdigest() != record["index_sha256"]:
        _log.warning("%s/%s is not the one of its record: left aside", folder, record["index"])
        return None
    with np.load(io.BytesIO(content)) as arrays:
        return replace(TarIndex.from_arrays(arrays), sha256=record["sha256"])
