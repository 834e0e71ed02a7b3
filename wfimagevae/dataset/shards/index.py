"""Indices of many shards: made in parallel, kept between runs."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wfimagevae.dataset.protocol import DataError
from wfimagevae.dataset.shards.parallel import in_processes
from wfimagevae.dataset.shards.remote import RemoteOptions, RemoteShards, shown_url
from wfimagevae.dataset.shards.specs import is_remote
from wfimagevae.dataset.shards.tar import ExtraTypes, TarIndex, index_tar
from wfimagevae.files import DAMAGED_ARRAYS, cache_folder, locked, may_keep, replacing

RECORD_NAME = "shards.json"
INDEX_SUFFIX = ".index.npz"
_VERSION = 1
_ASKING = 16  # servers are asked about so many shards at once
_log = logging.getLogger("wfimagevae")


@dataclass(frozen=True)
class ShardFile:
    """A shard, of the version that was indexed.

    Attributes:
        source: Absolute path, URL, or ``pipe:COMMAND``.
        stamp: Size and modification time of a file; of a remote one, what its server says.
        sha256: Of the content that was indexed; empty where the index was made from the file.
    """

    source: str
    stamp: list[Any]
    sha256: str = ""

    @property
    def stem(self) -> str:
        """Name without folder and extension."""
        return Path(self.source.partition("?")[0]).name.removesuffix(".tar")


def index_shards(
    sources: Sequence[str],
    cache_dir: str | Path | None = None,
    remote: RemoteOptions | None = None,
    extra: ExtraTypes | None = None,
    with_texts: bool = True,
) -> list[tuple[ShardFile, TarIndex]]:
    """The samples of every shard, from the cache where the shard has not changed.

    Shards that are new or changed are read once, headers and texts only, by as many processes as
    there are cores. A remote shard is fetched whole for that, unless the ``shards.json`` beside it
    (which scripts/make_webdataset.py writes) has a finished index. Damaged shards are warned of.

    Args:
        sources: Absolute paths, URLs and pipes, as `expand_shards` gives them.
        cache_dir: Where indices are kept; None is ``wfimagevae/index`` under ``$XDG_CACHE_HOME``
            or ``~/.cache``.
        remote: How remote shards are fetched.
        extra: Types of members that are images or texts besides the usual ones.
        with_texts: Also give the texts, which take the most memory.

    Raises:
        DataError: a shard that cannot be read or fetched at all, or no sample in any.
    """
    store, extra = RemoteShards(remote or RemoteOptions()), extra or ExtraTypes()
    local = {os.path.dirname(source) for source in sources if not is_remote(source)}
    cache = _IndexCache(cache_dir, extra, local)
    shards = _stamped(sources, store)
    with cache.locked():  # the processes of a machine do the work once
        found = {shard.source: cache.load(shard, with_texts) for shard in shards}
        beside = _Beside(store) if extra == ExtraTypes() else None
        missing = [
            shard
            for shard in shards
            if (index := found[shard.source]) is None
            or (index.sha256 and beside and not beside.is_of(index, shard))
        ]
        for shard, index in _made(missing, store, extra, beside):
            cache.save(shard, index)
            found[shard.source] = index
    indexes = [found[shard.source] for shard in shards]
    indexed = [(replace(s, sha256=i.sha256), i) for s, i in zip(shards, indexes, strict=True)]
    _tell_damage(indexed)
    if not any(len(index) for _, index in indexed):
        raise DataError(f"no sample in {len(indexed)} shards, for example {indexed[0][0].source}")
    return indexed


def file_stamp(path: str) -> list[int]:
    """Size and modification time of a local shard.

    Raises:
        DataError: it is missing.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"cannot read shard {path}: {error.strerror}") from None
    return [status.st_size, status.st_mtime_ns]


def _stamped(sources: Sequence[str], store: RemoteShards) -> list[ShardFile]:
    def stamped(source: str) -> ShardFile:
        stamp = store.stamp(source) if is_remote(source) else file_stamp(source)
        return ShardFile(source, stamp)

    with ThreadPoolExecutor(_ASKING) as pool:
        return list(pool.map(stamped, sources))


def _made(
    shards: list[ShardFile], store: RemoteShards, extra: ExtraTypes, beside: "_Beside | None"
) -> Iterator[tuple[ShardFile, TarIndex]]:
    """Indices made anew."""
    left = []
    for shard in shards:
        index = beside.find(shard) if beside and is_remote(shard.source) else None
        if index is None:
            left.append(shard)
        else:
            yield shard, index
    work = functools.partial(_index_shard, store=store, extra=extra)
    yield from zip(left, in_processes(work, left, "index shards", unit="shard"), strict=True)


def _index_shard(shard: ShardFile, store: RemoteShards, extra: ExtraTypes) -> TarIndex:
    if not is_remote(shard.source):
        return index_tar(shard.source, extra)
    return index_tar(shown_url(shard.source), extra, store.open(shard.source, shard.stamp))


def _tell_damage(indexed: list[tuple[ShardFile, TarIndex]]) -> None:
    damaged = [(shard, index) for shard, index in indexed if index.damage]
    for shard, index in damaged[:20]:
        more = f" and {len(index.damage) - 3} more" if len(index.damage) > 3 else ""
        told = "; ".join(index.damage[:3]) + more
        _log.warning("damaged shard %s: %s; %d whole samples", shard.source, told, len(index))
    empty = [shard.source for shard, index in indexed if not len(index) and not index.damage]
    if empty:
        _log.warning("%d shards without a sample, for example %s", len(empty), empty[0])
    if damaged:
        lost = sum(index.lost for _, index in damaged)
        _log.warning(
            "%d of %d shards are damaged; samples known to be lost: %d",
            len(damaged),
            len(indexed),
            lost,
        )


class _Beside:
    """Indices that make_webdataset wrote beside remote shards."""

    def __init__(self, store: RemoteShards):
        self.store = store
        self._records: dict[str, dict] = {}

    def find(self, shard: ShardFile) -> TarIndex | None:
        """The index of a shard; None where there is none, or none that fits."""
        folder = shard.source.rpartition("/")[0]
        known = self._known(shard)
        if known is None:
            return None
        lengths = [fact for fact in shard.stamp if str(fact).isdecimal()]  # of a server that tells
        if lengths and str(known["bytes"]) not in lengths:
            _log.warning(
                "%s has %s bytes, not the %s of %s/%s: its index is left aside",
                shard.source,
                lengths[0],
                known["bytes"],
                folder,
                RECORD_NAME,
            )
            return None
        content = self.store.read(f"{folder}/{known['index']}")
        if content is None:
            return None
        if hashlib.sha256(content).hexdigest() != known["index_sha256"]:
            _log.warning("%s/%s is not the one of its record: left aside", folder, known["index"])
            return None
        with tempfile.TemporaryFile() as file:
            file.write(content)
            return replace(read_index(file), sha256=known["sha256"])

    def is_of(self, index: TarIndex, shard: ShardFile) -> bool:
        """Whether an index that was taken from a record is still what the record says."""
        known = self._known(shard)
        return known is not None and known["sha256"] == index.sha256

    def _known(self, shard: ShardFile) -> dict | None:
        folder, _, name = shard.source.rpartition("/")
        if shard.source.startswith("pipe:") or not name.endswith(".tar"):
            return None
        if folder not in self._records:
            content = self.store.read(f"{folder}/{RECORD_NAME}")
            self._records[folder] = _shard_records(content, f"{folder}/{RECORD_NAME}")
        return self._records[folder].get(name)


def _shard_records(content: bytes | None, where: str) -> dict[str, dict]:
    if content is None:
        return {}
    keys = ("name", "bytes", "sha256", "index", "index_sha256")
    try:
        shards = json.loads(content)["shards"]
        return {shard["name"]: {key: shard[key] for key in keys} for shard in shards}
    except (ValueError, KeyError, TypeError) as error:
        _log.warning("%s is no record of shards (%r): left aside", where, error)
        return {}


def read_index(file) -> TarIndex:
    """An index from an open file that `write_index` wrote."""
    file.seek(0)
    with np.load(file) as arrays:
        return TarIndex.from_arrays(arrays)


def write_index(file, index: TarIndex, **more: Any) -> None:
    """Writes an index, and plain facts besides, to an open file."""
    facts = {
        name: np.frombuffer(json.dumps(value).encode(), np.uint8) for name, value in more.items()
    }
    np.savez_compressed(file, **index.arrays(), **facts)


class _IndexCache:
    """Indices on this machine, a file a shard."""

    def __init__(self, cache_dir: str | Path | None, extra: ExtraTypes, shard_folders: set[str]):
        self.folder = cache_folder(cache_dir, "index") / "shards"
        self._extra = extra
        # Where the user did not say where, it is no matter that shards stand in the home folder.
        named = shard_folders if cache_dir is not None else ()
        self._is_writable = may_keep(self.folder, named, "shard index cache")
        try:
            if self._is_writable:
                self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._give_up(error)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the cache while it is filled."""
        with contextlib.ExitStack() as stack:
            try:
                if self._is_writable:
                    stack.enter_context(locked(self.folder / ".lock"))
            except OSError as error:
                self._give_up(error)
            yield

    def load(self, shard: ShardFile, with_texts: bool) -> TarIndex | None:
        """The index of this version of a shard, if it is known."""
        path = self._path(shard)
        try:
            with open(path, "rb") as file, np.load(file) as arrays:
                if json.loads(arrays["version"].tobytes()) != self._version(shard):
                    return None
                return TarIndex.from_arrays(arrays, with_texts)
        except FileNotFoundError:
            return None
        except DAMAGED_ARRAYS as error:
            _log.warning("shard index %s is unusable (%s): made anew", path, error)
            return None

    def save(self, shard: ShardFile, index: TarIndex) -> None:
        """Keeps an index."""
        if not self._is_writable:
            return
        try:
            with replacing(self._path(shard)) as file:
                write_index(file, index, version=self._version(shard))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        _log.warning("shard index cache off: cannot write %s: %s", self.folder, error.strerror)
        self._is_writable = False

    def _path(self, shard: ShardFile) -> Path:
        key = repr((shard.source, self._extra))
        return self.folder / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.npz"

    def _version(self, shard: ShardFile) -> list:
        return [_VERSION, shard.source, shard.stamp]
