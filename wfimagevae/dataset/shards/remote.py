"""Shards from servers: fetched whole, once a machine, into a folder, and read from there."""

import contextlib
import email.message
import hashlib
import http.client
import logging
import os
import shutil
import string
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from wfimagevae.dataset.protocol import DataError
from wfimagevae.files import cache_folder, locked, replacing

TOKEN_VARIABLE = "WDS_TOKEN"
_TIMEOUT = 60.0
_STAMP_HEADERS = ("ETag", "Content-Length", "Last-Modified")
_HUB_HASH = "X-Linked-ETag"  # of the file that the Hub redirects to
_CHUNK = 2**20
_HF_HOSTS = ("huggingface.co", "hf.co")
_WORTH_RETRYING = (408, 425, 429, 500, 502, 503, 504)
_Value = TypeVar("_Value")
_log = logging.getLogger("wfimagevae")


@dataclass(frozen=True)
class RemoteOptions:
    """How shards are fetched.

    Attributes:
        cache_dir: Where they are kept; None is ``wfimagevae/shards`` under ``$XDG_CACHE_HOME`` or
            ``~/.cache``.
        max_bytes: The folder is kept under this size by removing the shards that were used
            longest ago; 0 keeps all. A removed shard is fetched again when it is needed, so leave
            room for those that are read at a time.
        read_at_a_time: Shards that a process keeps open where there is a limit: the space of a
            removed shard is free only when nobody has it open any more.
        retries: Further attempts after one that failed.
        retry_delay: Seconds before the first of them; each time twice as long.
    """

    cache_dir: str | Path | None = None
    max_bytes: int = 0
    read_at_a_time: int = 16
    retries: int = 6
    retry_delay: float = 1.0

    @property
    def folder(self) -> Path:
        """The folder of the shards."""
        return cache_folder(self.cache_dir, "shards")


class RemoteShards:
    """Local copies of remote shards.

    http(s):// and hf:// are fetched in this process. The environment's WDS_TOKEN, and HF_TOKEN (or
    a stored login) for huggingface.co, go out as a header, to the host of the URL only: never
    after a redirect to another, and never in the arguments of a process, where others would see
    them (which is why the webdataset library's own hf:// and http:// commands are not used). Every
    other scheme and ``pipe:`` goes through the library's ``gopen``.

    Args:
        options: Where to and how.
    """

    def __init__(self, options: RemoteOptions):
        self.options = options

    def stamp(self, url: str) -> list[Any]:
        """What the server says of a shard's version; nothing for a pipe, which cannot be asked.

        Raises:
            DataError: the server cannot be reached, or refuses.
        """
        if not _is_http(url):
            return []

        def ask() -> list[Any]:
            headers = _headers(url)
            linked = headers.get(_HUB_HASH)  # what else a redirect says is about itself
            if linked:
                return [linked]
            return [headers[name] for name in _STAMP_HEADERS if name in headers]

        return self._retried(ask, url)

    def open(self, url: str, stamp: list[Any], sha256: str = "") -> int:
        """A descriptor of a shard's copy, fetched first if there is none of this version.

        It can be read even when another process removes the copy, to make room.

        Args:
            url: Of the shard.
            stamp: Its version, as `stamp` gives it.
            sha256: What its content must have; empty is anything.

        Raises:
            DataError: it cannot be fetched, not whole, or cannot be kept, or is another file.
        """
        target = self.path(url, stamp)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle = _open_copy(target)
            if handle is None:
                with locked(target.with_name(f".{target.name}.lock")):
                    handle = _open_copy(target)  # another process fetched it meanwhile
                    if handle is None:
                        _remove_leftovers(target)
                        handle = self._retried(lambda: self._fetch(url, target, sha256), url)
                        self._make_room(target)
        except OSError as error:
            raise DataError(
                f"cannot keep shards in {target.parent}: {error.strerror or error}; see "
                "--wds_cache_dir"
            ) from None
        return handle

    def path(self, url: str, stamp: list[Any]) -> Path:
        """Where the copy of this version stands."""
        name = hashlib.blake2b(repr((url, stamp)).encode(), digest_size=16).hexdigest()
        return self.options.folder / f"{name}.tar"

    def read(self, url: str) -> bytes | None:
        """Content of a small file beside the shards; None if the server has none.

        Raises:
            DataError: the server cannot be reached.
        """
        if not _is_http(url):
            return None

        def read() -> bytes | None:
            try:
                with _request(url, "GET") as answer:
                    return _whole(answer.read(), answer.headers)
            except urllib.error.HTTPError as error:
                if error.code in (403, 404, 410):  # some storage refuses what does not exist
                    return None
                raise

        return self._retried(read, url)

    def _fetch(self, url: str, target: Path, sha256: str) -> int:
        """Writes the copy; its descriptor, had before another process can remove it."""
        with contextlib.ExitStack() as undo:
            with replacing(target, is_lasting=True) as file:
                self._copy(url, file)
                file.seek(0)
                if sha256 and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise DataError(
                        f"{shown_url(url)} is not the file that the shards.json beside it tells of "
                        f"(sha256 {sha256}): write that anew with the shard, or remove it"
                    )
                handle = os.dup(file.fileno())
                undo.callback(os.close, handle)
            undo.pop_all()
        os.lseek(handle, 0, os.SEEK_SET)  # both read at one place of the file
        return handle

    def _copy(self, url: str, file) -> None:
        if not _is_http(url):
            from webdataset.gopen import gopen

            with gopen(url, "rb") as stream:
                shutil.copyfileobj(stream, file, _CHUNK)
            if not file.tell():
                raise OSError("it gave no bytes")
            return
        with _request(url, "GET") as answer:
            shutil.copyfileobj(answer, file, _CHUNK)
            _check_length(file.tell(), answer.headers)

    def _retried(self, work: Callable[[], _Value], url: str) -> _Value:
        for attempt in range(self.options.retries + 1):
            try:
                return work()
            except (OSError, http.client.HTTPException) as error:
                reason = _reason(error)
                if isinstance(error, urllib.error.HTTPError) and error.code not in _WORTH_RETRYING:
                    raise DataError(f"cannot fetch {shown_url(url)}: {reason}") from None
            if attempt < self.options.retries:
                delay = self.options.retry_delay * 2**attempt
                _log.warning("%s: %s; again in %.0f s", shown_url(url), reason, delay)
                time.sleep(delay)
        tries = self.options.retries + 1
        raise DataError(f"cannot fetch {shown_url(url)}, tried {tries} times: {reason}")

    def _make_room(self, newest: Path) -> None:
        if not self.options.max_bytes:
            return
        shards = []
        for path in newest.parent.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room, too
                status = path.stat()
                shards.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in shards) - self.options.max_bytes
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


def _remove_leftovers(target: Path) -> None:
    """Removes what a process that was killed left half fetched; the lock must be held."""
    for path in target.parent.glob(f".{target.name}.*"):
        if path.suffix != ".lock":
            path.unlink(missing_ok=True)


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://", "hf://"))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def _headers(url: str) -> email.message.Message:
    """What a server says of a file; nothing if it answers only those who take it."""
    try:
        with _request(url, "HEAD", urllib.request.build_opener(_NoRedirect).open) as answer:
            return answer.headers
    except urllib.error.HTTPError as error:
        if error.code < 400 and _HUB_HASH in error.headers:
            return error.headers
        if error.code >= 400:
            return _refused(error)
    try:
        with _request(url, "HEAD") as answer:
            return answer.headers
    except urllib.error.HTTPError as error:
        return _refused(error)


def _refused(error: urllib.error.HTTPError) -> email.message.Message:
    """Nothing, where a server may still answer a GET; a signed address is for that alone."""
    if error.code in (403, 405, 501):
        return email.message.Message()
    raise error


def _request(url: str, method: str, open_url=urllib.request.urlopen):
    if url.startswith("hf://"):
        url = _hub_url(url)
    request = urllib.request.Request(_quoted(url), method=method)
    if token := _token(url):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return open_url(request, timeout=_TIMEOUT)


def _quoted(url: str) -> str:
    """A URL whose path and query are ASCII; what is quoted already stays."""
    parts = urlsplit(url)
    path, query = (quote(part, string.punctuation) for part in (parts.path, parts.query))
    return parts._replace(path=path, query=query).geturl()


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


def _whole(content: bytes, headers: email.message.Message) -> bytes:
    _check_length(len(content), headers)
    return content


def _check_length(count: int, headers: email.message.Message) -> None:
    expected = headers.get("Content-Length")
    if expected is not None and int(expected) != count:
        raise OSError(f"the connection broke after {count} of {expected} bytes")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        told = f"HTTP {error.code} {error.reason}"
        if error.code in (401, 403):
            told += f"; a token goes into {TOKEN_VARIABLE}, or HF_TOKEN for the Hugging Face Hub"
        return told
    reason = getattr(error, "reason", None)
    return str(reason or error or type(error).__name__)


def shown_url(url: str) -> str:
    """A URL or pipe for a message, without the password or query, which may be secrets."""
    if url.startswith("pipe:"):
        return url if len(url) < 200 else f"{url[:200]}..."
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
