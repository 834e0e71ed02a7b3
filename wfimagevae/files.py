"""Files that are whole or not there: writing, JSON, checkpoints, cache folders. No torch here."""

import codecs
import contextlib
import fcntl
import functools
import glob
import io
import json
import logging
import os
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

# What reading an .npz that is no longer whole raises; zipfile says so by a RuntimeError where one
# flipped bit asks for a password, and by NotImplementedError, which is one, for another method.
DAMAGED_ARRAYS = (
    ValueError,
    KeyError,
    OSError,
    EOFError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
)
# Byte order marks, those that begin like another first.
_MARKS = {codecs.BOM_UTF8: "utf-8-sig"}
_MARKS |= dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32")
_MARKS |= dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16")
_UMASK = os.umask(0)  # it cannot be read but by setting it, which threads must not do
os.umask(_UMASK)
_log = logging.getLogger("wfimagevae")
# As `replacing` names its files, and others what they write in several calls.
_TEMPORARY = re.compile(r"\..+\.\w{1,8}\.tmp", re.DOTALL)
_living: set[str] = set()  # this process's own temporary files
# Of URLs that shards are read from: in this process, and by the webdataset library.
_SCHEMES = ("http", "https", "hf", "file", "ais", "sftp", "ftps", "scp", "gs", "htgs")
DIFFUSERS = "diffusers:"  # before the path or hub name of one of its autoencoders
FACTS = "facts.pt"  # in a checkpoint that is a folder of shards
_WEIGHTS = (".ckpt", ".safetensors", ".json", ".pt", ".pth", ".tar")


@contextlib.contextmanager
def replacing(path: Path, is_lasting: bool = False) -> Iterator[BinaryIO]:
    """A temporary file, open for writing and reading, that takes the place of ``path`` at the end.

    If anything fails, ``path`` stays as it was, even if the process is killed. What cannot be made
    again from what is at hand (``is_lasting``) is synced to the disk first.
    """
    # The whole name could be too long with more around it.
    start = f".{path.name[:50]}."
    if is_lasting:
        remove_leftovers(path.parent, f"{glob.escape(start)}*.tmp")
    temporary = path.with_name(f"{start}{secrets.token_hex(4)}.tmp")
    _living.add(os.path.abspath(temporary))
    try:
        with temporary.open("x+b") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            if is_lasting:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        _living.discard(os.path.abspath(temporary))
    if is_lasting:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_leftovers(folder: Path, pattern: str = "**/.*.tmp") -> None:
    """Removes what writers left half written that were killed; not what one still writes."""
    for path in folder.glob(pattern):
        if not _TEMPORARY.fullmatch(path.name):  # somebody else's
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.abspath(path) not in _living:
            # A writer holds a lock on its file for as long as it lives.
            with contextlib.suppress(OSError), path.open("rb+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                _log.warning("removed %s, left by a process that was killed", path)


@contextlib.contextmanager
def sole_writer(folder: Path, is_main: bool = True) -> Iterator[None]:
    """Makes a folder that no other process writes to meanwhile, and removes leftovers there.

    Only the main one of several processes that write together takes it. The lock ends with its
    process, however that ends; folders made here that stay empty are removed.

    Raises:
        ValueError: another process, which is named, has it.
    """
    if not is_main:
        yield
        return
    path, made = folder / ".lock", [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # A lock of POSIX: no worker that outlives a killed process keeps it, as it would keep flock's.
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("a+", encoding="utf-8"))
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise ValueError(
                    f"{folder} is being written to by {file.read() or 'another process'}: wait for "
                    "its end, or choose another folder or name"
                ) from None
            except OSError as error:
                _log.warning("%s has no locks (%s): start nothing else there", folder, error)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                    break  # else its last owner removed it meanwhile
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        try:
            remove_leftovers(folder)
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                for place in made:
                    place.rmdir()


def share(path: str | os.PathLike) -> None:
    """Lets others read a file as the umask says, which a library made private."""
    os.chmod(path, 0o666 & ~_UMASK)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], is_lasting: bool = True) -> None:
    """Calls ``write(file)`` on a temporary file and renames it to ``path``, whose folder is made.

    Where that fails, what stood at ``path`` is untouched, and the error, of torch.save too, is an
    OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path, is_lasting) as file:
            write(file)
    except (RuntimeError, OSError) as error:  # torch.save follows a full disk by the first
        why = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(f"could not write {path}: {why}") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in one step; errors as `write_atomically`."""
    write_atomically(Path(path), lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def write_json(path: str | os.PathLike, content: Mapping) -> None:
    """Writes `json_text` in one step: readers see the old file or the whole new one."""
    write_text(path, json_text(content))


def json_text(content: Mapping) -> str:
    """An object as indented JSON; ValueError for infinity and NaN, which JSON has no words for."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def codec_of(content: bytes) -> str:
    """How a text is encoded, by its byte order mark; UTF-8 without one."""
    return next((codec for mark, codec in _MARKS.items() if content.startswith(mark)), "utf-8")


def plain_text(content: bytes) -> str:
    """Bytes as text: UTF-8, or UTF-16 that begins with its mark.

    ValueError for others, and for a NUL, which UTF-16 without its mark is full of.
    """
    try:
        text = content.decode(codec_of(content))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error})") from None
    if "\0" in text:
        raise ValueError("not text, or UTF-16 without its mark: it holds a NUL")
    return text


def read_text(path: str | os.PathLike) -> str:
    """What `plain_text` reads in a file, which the ValueError names."""
    try:
        return plain_text(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from None


def text_lines(path: str | os.PathLike) -> Iterator[bytes]:
    """The lines of a text file of any length in UTF-8, without its mark; see `plain_text`."""
    with open(path, "rb") as file:
        codec = codec_of(file.read(4))
        if not codec.startswith("utf-8"):
            yield from read_text(path).encode("utf-8", "surrogatepass").splitlines(True)
            return
        file.seek(3 if codec == "utf-8-sig" else 0)
        yield from file


def parse_json(text: str, may_repeat: bool = False) -> Any:
    """A JSON value; ValueError for text that is none, or nests without end.

    So is a key that is given twice, unless it ``may_repeat``: the last one counts.
    """
    try:
        return json.loads(text, object_pairs_hook=None if may_repeat else _distinct)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def read_json(path: str | os.PathLike) -> dict:
    """The object in a JSON file; ValueError, naming the file, if it holds none."""
    try:
        content = parse_json(plain_text(Path(path).read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def read_config(config: str | os.PathLike | dict | None) -> dict:
    """The keys of a network's configuration, given as they are or as a JSON file; {} for None."""
    return dict(config or {}) if isinstance(config, dict | None) else read_json(config)


def read_json_lines(path: str | os.PathLike) -> list[dict]:
    """The objects in a file of one a line, but a line cut short by a kill; none without a file."""
    rows, path = [], Path(path)
    for line in text_lines(path) if path.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(parse_json(line.decode()))
    return [row for row in rows if isinstance(row, dict)]


def read_torch_file(path: Path) -> dict[str, Any]:
    """The dict in a file of `torch.save`, on the CPU, its bytes verified; no code in it is run.

    Tensors are mapped: read when they are used, from a file that stays as it is until then. A
    checkpoint in shards is a folder.
    """
    import torch

    if (path / FACTS).is_file():
        from wfimagevae.sharded_files import read_sharded

        return read_sharded(path)

    is_zip = zipfile.is_zipfile(path)
    mmap = is_zip and os.fspath(path).isprintable()  # torch maps no name that is no text
    # One process of a machine verifies for all.
    if is_zip and os.environ.get("LOCAL_RANK", "0") == "0":
        damage = zip_damage(os.path.abspath(path), file_version(path))
        if damage:
            raise ValueError(f"{path} is damaged: {damage}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # unpickling a damaged file raises almost anything
        if isinstance(error, OSError) and error.filename:
            raise
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = (
                f"it holds a {foreign[1]} beside its weights, and Python objects are not "
                "unpickled; if you trust it, save its state dict alone to another file"
            )
        else:
            told = "" if "weights_only" in str(error) else f" {error}".splitlines()[0].rstrip()
            reason = f"torch.save did not write it, or it is cut ({type(error).__name__}{told:.99})"
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no weights, but a {type(content).__name__}")
    return content


@functools.cache
def zip_damage(path: str, version: tuple[int, int], offset: int = 0, length: int = 0) -> str:
    """What of a zip file, or of one inside a file, in one version, its checksums say is damaged."""
    try:
        with open(path, "rb") as outer:
            outer.seek(offset)
            with zipfile.ZipFile(io.BytesIO(outer.read(length)) if length else outer) as file:
                # Torch can be told to write no checksums.
                file.filelist = [entry for entry in file.filelist if entry.CRC]
                entry = file.testzip()
    except DAMAGED_ARRAYS as error:
        return str(error)
    return f"{entry} in it does not have its checksum" if entry else ""


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a path is a folder, but no checkpoint in shards, which is read as a file is."""
    return os.path.isdir(path) and not os.path.isfile(os.path.join(path, FACTS))


def check_scheme(path: str) -> None:
    """Raises ValueError for a URL whose scheme nothing here reads, with what to write instead."""
    scheme = re.match(r"([a-zA-Z][\w+.-]*)://", path)
    if scheme and scheme[1] not in _SCHEMES:
        command = f"aws s3 cp {path} -" if scheme[1] == "s3" else "COMMAND that prints it"
        raise ValueError(
            f"{path}: {scheme[1]}:// is not read here: write pipe:{command} for a shard (in a file "
            "with --allow_pipe), or copy it to this machine and write its path"
        )


def is_hub_name(path: str | os.PathLike, subfolders: bool = False) -> bool:
    """Whether a path means a model on the Hugging Face hub, ``user/model``, not a local file.

    A folder called like the user means a mistyped local path. With ``subfolders``,
    ``user/model/folder/in/it`` is a name too.
    """
    pattern = r"\w[\w.-]*/\w[\w.-]*" + (r"(/[\w.-]+)*" if subfolders else "")
    if not re.fullmatch(pattern, str(path)) or str(path).endswith(_WEIGHTS):
        return False
    return not Path(path).parents[-2].exists()


def cache_folder(folder: str | Path | None, name: str) -> Path:
    """A folder for what is kept from run to run.

    None is the default, ``wfimagevae/NAME`` under ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(home, "wfimagevae", name)
    return Path(folder).expanduser().absolute()


def file_version(path: str | os.PathLike) -> tuple[int, int]:
    """Size and modification time of a file, in bytes and nanoseconds; -1 where it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
