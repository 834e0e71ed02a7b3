"""Files that are whole or not there: writing, JSON, checkpoints, cache folders. No torch here."""

import codecs
import contextlib
import json
import os
import re
import tempfile
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
_WEIGHTS = (".ckpt", ".safetensors", ".json", ".pt", ".pth", ".tar")


@contextlib.contextmanager
def replacing(path: Path, is_lasting: bool = False) -> Iterator[BinaryIO]:
    """A temporary file, open for writing and reading, that takes the place of ``path`` at the end.

    If anything fails, ``path`` stays as it was, even if the process is killed. What cannot be made
    again from what is at hand (``is_lasting``) is synced to the disk first.
    """
    # The whole name could be too long with more around it.
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name[:50]}.", suffix=".tmp"
    )
    try:
        with os.fdopen(handle, "wb+") as file:
            yield file
            file.flush()
            if is_lasting:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if is_lasting:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], is_lasting: bool = True) -> None:
    """Calls ``write(file)`` on a temporary file and renames it to ``path``, whose folder is made.

    Where that fails, what stood at ``path`` is untouched, and the error, of torch.save too, is an
    OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path, is_lasting) as file:
            write(file)
    except (RuntimeError, OSError) as error:  # torch.save reports a full disk by the first
        raise OSError(f"could not write {path}: {error}") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in one step; errors as `write_atomically`."""
    write_atomically(Path(path), lambda file: file.write(text.encode()))


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
    text = read_text(path)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def read_json_lines(path: str | os.PathLike) -> list[dict]:
    """The objects in a file of one a line, but a line cut short by a kill; none without a file."""
    rows, path = [], Path(path)
    for line in text_lines(path) if path.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(parse_json(line.decode()))
    return [row for row in rows if isinstance(row, dict)]


def read_torch_file(path: Path, mmap: bool = True) -> dict[str, Any]:
    """The dict in a file of `torch.save`, on the CPU; no code in the file is run.

    With ``mmap`` tensors are read when they are used, from a file that stays as it is until then.
    """
    import torch

    mmap = mmap and zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # unpickling a damaged file raises almost anything
        hint = ""
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            hint = (
                f"it holds a {foreign[1]} beside its weights, and Python objects are not "
                "unpickled; if you trust it, save its state dict alone to another file: "
            )
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not a readable checkpoint: {hint}{what}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no weights, but a {type(content).__name__}")
    return content


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
