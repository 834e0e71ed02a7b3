"""Shards by their source: files as they are, others fetched whole, once a machine, to a folder."""

import contextlib
import functools
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from filelock import FileLock
from urllib3.util import Retry

from wfimagevae.dataset.protocol import DataError
from wfimagevae.dataset.shards.specs import is_remote
from wfimagevae.files import cache_folder, replacing

TOKEN_VARIABLE = "WDS_TOKEN"
_TIMEOUT = 60.0  # seconds without a byte
_STAMP_HEADERS = ("ETag", "Content-Length", "Last-Modified")
_HUB_HASH = "X-Linked-ETag"  # of the file that the Hub redirects to
_CHUNK = 2**20
_RETRIES = 6  # after a first attempt
_RETRY_DELAY = 1.0  # seconds before the first of them; each time twice as long
_HF_HOSTS = ("huggingface.co", "hf.co")
_WORTH_RETRYING = (408, 425, 429, 500, 502, 503, 504)
_Value = TypeVar("_Value")
_log = logging.getLogger("wfimagevae")


@dataclass(frozen=True)
class ShardFile:
    """A shard (absolute path, URL, or ``pipe:COMMAND``), of the version that was indexed.

    ``stamp`` is size and modification time of a file; of a remote one, what its server says.
    ``sha256`` is the hash that its content must have; empty where the index was made from the file.
    """

    source: str
    stamp: list[Any]
    sha256: str = ""


class ShardStore:
    """Opens shards, remote ones as local copies.

    http(s):// and hf:// are fetched in this process. The environment's WDS_TOKEN, and HF_TOKEN (or
    a stored login) for huggingface.co, go out as a header, to the host of the URL only: never after
    a redirect to another, and never in the arguments of a process, where others would see them
    (which is why the webdataset library's own hf:// and http:// commands are not used). Every other
    scheme and ``pipe:`` goes through the library's ``gopen``.

    Args:
        cache_dir: Where copies are kept; None as for `cache_folder`.
        max_bytes: The folder is kept under this size by removing the shards that were used longest
            ago; 0 keeps all. Leave room for those that are read at a time.
        read_at_a_time: Shards that a process keeps open where there is a limit: the space of a
            removed shard is free only when nobody has it open any more.
    """

    def __init__(
        self, cache_dir: str | Path | None = None, max_bytes: int = 0, read_at_a_time: int = 16
    ):
        self.folder = cache_folder(cache_dir, "shards")
        self.max_bytes, self.read_at_a_time = max_bytes, read_at_a_time

    def stamp(self, source: str) -> list[Any]:
        """What tells a shard's versions apart, see `ShardFile`; nothing of a pipe, which is mute.

        DataError if it is missing, or cannot be asked for.
        """

        def ask() -> requests.Response:
            # The Hub redirects to an address that is new each time, and names the file's hash.
            answer = _request("HEAD", source, allow_redirects=False)
            is_hash = _HUB_HASH in answer.headers
            return _request("HEAD", source) if answer.is_redirect and not is_hash else answer

        if _is_http(source):
            # A server that refuses may still answer a GET; a signed address is for that alone.
            answer = self._retried(ask, source, refusals=(403, 405, 501))
            headers = {} if answer is None else answer.headers
            names = (_HUB_HASH,) if _HUB_HASH in headers else _STAMP_HEADERS
            return [headers[name] for name in names if name in headers]
        if is_remote(source):
            return []
        try:
            status = os.stat(source)
        except OSError as error:
            raise DataError(f"cannot read shard {source}: {error.strerror}") from None
        return [status.st_size, status.st_mtime_ns]

    def open(self, shard: ShardFile) -> int:
        """A descriptor of a shard; a remote one is fetched if there is no copy of this version.

        The copy can be read even when another process removes it, to make room. A DataError is a
        file that is missing or was changed, or a remote shard that cannot be fetched whole, or
        kept, or is another file.
        """
        if not is_remote(shard.source):
            if self.stamp(shard.source) != shard.stamp:
                raise DataError(
                    f"shard {shard.source} changed since training started: start it again"
                )
            try:
                return os.open(shard.source, os.O_RDONLY)
            except OSError as error:
                raise DataError(f"cannot open shard {shard.source}: {error.strerror}") from None
        target = self.path(shard)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle = _open_copy(target)
            if handle is None:
                with FileLock(target.with_name(f".{target.name}.lock")):
                    handle = _open_copy(target)  # another process fetched it meanwhile
                    if handle is None:
                        fetch = functools.partial(self._fetch, shard, target)
                        handle = self._retried(fetch, shard.source)
                        self._make_room(target)
        except OSError as error:
            raise DataError(
                f"cannot keep shards in {target.parent}: {error.strerror or error}; see "
                "--wds_cache_dir"
            ) from None
        return handle

    def path(self, shard: ShardFile) -> Path:
        facts = repr((shard.source, shard.stamp))
        name = hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}.tar"

    def read(self, url: str) -> bytes | None:
        """Content of a small file beside the shards; None if the server has none."""

        if not _is_http(url):
            return None
        refusals = (403, 404, 410)  # 403: some storage's "not here"
        answer = self._retried(lambda: _request("GET", url), url, refusals)
        return None if answer is None else answer.content

    def _fetch(self, shard: ShardFile, target: Path) -> int:
        """Keeps a shard; its descriptor is taken first, as others may remove the copy at once."""
        with replacing(target, is_lasting=True) as file:
            if _is_http(shard.source):
                with _request("GET", shard.source, stream=True) as answer:
                    for chunk in answer.iter_content(_CHUNK):
                        file.write(chunk)
            else:
                from webdataset.gopen import gopen

                with gopen(shard.source, "rb") as stream:
                    shutil.copyfileobj(stream, file, _CHUNK)
                if not file.tell():
                    raise OSError("it gave no bytes")
            file.seek(0)
            if shard.sha256 and hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                raise DataError(
                    f"{shown_url(shard.source)} is not the file that the shards.json beside it "
                    f"tells of (sha256 {shard.sha256}): write that anew with the shard, or remove "
                    "it"
                )
            handle = os.dup(file.fileno())
        os.lseek(handle, 0, os.SEEK_SET)
        return handle

    def _retried(
        self, work: Callable[[], _Value], url: str, refusals: Sequence[int] = ()
    ) -> _Value | None:
        """What ``work()`` gives, at one of several attempts; None for an answer that refuses."""
        # Not by an adapter of requests: pipes and answers that break off are tried again, too.
        for attempt in range(_RETRIES + 1):
            try:
                return work()
            except OSError as error:  # those of requests are such
                reason, answer = _reason(error), getattr(error, "response", None)
            delay = _RETRY_DELAY * 2**attempt
            if answer is not None:
                if answer.status_code in refusals:
                    return None
                if answer.status_code not in _WORTH_RETRYING:
                    raise DataError(f"cannot fetch {shown_url(url)}: {reason}")
                delay = max(delay, Retry().get_retry_after(answer) or 0)
            if attempt < _RETRIES:
                _log.warning("%s: %s; again in %.0f s", shown_url(url), reason, delay)
                time.sleep(delay)
        raise DataError(f"cannot fetch {shown_url(url)}, tried {_RETRIES + 1} times: {reason}")

    def _make_room(self, newest: Path) -> None:
        if not self.max_bytes:
            return
        shards = []
        for path in newest.parent.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room, too
                status = path.stat()
                shards.append((status.st_mtime, status.st_size, path))
        # Remove those that were used longest ago: each opening sets a copy's time.
        excess = sum(size for _, size, _ in shards) - self.max_bytes
        for _, size, path in sorted(shards):
            if excess <= 0:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                excess -= size


def _open_copy(target: Path) -> int | None:
    """A descriptor of a copy, which counts as used now; None if there is none."""
    try:
        handle = os.open(target, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):
        os.utime(target)
    return handle


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://", "hf://"))


def _request(method: str, url: str, allow_redirects: bool = True, **options) -> requests.Response:
    if url.startswith("hf://"):
        url = _hub_url(url)
    token = _token(url)

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    answer = requests.request(
        method,
        url,
        auth=authorize if token else None,  # not a plain header, which a .netrc would overrule
        headers={"Accept-Encoding": "identity"},  # lengths and bytes are the file's own
        timeout=_TIMEOUT,
        allow_redirects=allow_redirects,
        **options,
    )
    answer.raise_for_status()
    return answer


def _hub_url(url: str) -> str:
    from huggingface_hub import HfFileSystem, hf_hub_url

    place = HfFileSystem().resolve_path(url)
    return hf_hub_url(
        place.repo_id, place.path_in_repo, repo_type=place.repo_type, revision=place.revision
    )


def _token(url: str) -> str | None:
    host = urlsplit(url).hostname or ""
    if any(f".{host}".endswith(f".{hub}") for hub in _HF_HOSTS):
        from huggingface_hub import get_token

        return get_token()
    return os.environ.get(TOKEN_VARIABLE)


def _reason(error: OSError) -> str:
    """Why a request failed, in words that have no query, which may be a secret."""
    answer = getattr(error, "response", None)
    if answer is not None:
        is_token = answer.status_code in (401, 403)
        hint = f"; a token goes into {TOKEN_VARIABLE}, or HF_TOKEN for the Hugging Face Hub"
        return f"HTTP {answer.status_code} {answer.reason}{hint if is_token else ''}"
    if error.strerror:
        return error.strerror
    cause = error.args[0] if error.args else type(error).__name__
    cause = getattr(cause, "reason", cause)  # what urllib3 wraps, besides the address
    text = cause.args[0] if isinstance(cause, Exception) and cause.args else cause
    return re.sub(r"\?\S+", "", str(text))


def shown_url(url: str) -> str:
    """A URL or pipe for a message, without the password or query, which may be secrets."""
    if url.startswith("pipe:"):
        return url if len(url) < 200 else f"{url[:200]}..."
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
