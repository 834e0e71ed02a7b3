"""Files kept from run to run: where they stand, and how they are replaced."""

import contextlib
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

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
_log = logging.getLogger("wfimagevae")


def cache_folder(folder: str | Path | None, name: str) -> Path:
    """A folder for what is kept.

    Args:
        folder: As the user says; None is ``wfimagevae/NAME`` under ``$XDG_CACHE_HOME`` or
            ``~/.cache``.
        name: Of the default.
    """
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(home, "wfimagevae", name)
    return Path(folder).expanduser().absolute()


def may_keep(folder: Path, image_folders: Iterable[str], what: str) -> bool:
    """Whether files may be kept in a folder: nothing is written into the images' own.

    Args:
        folder: Where files would be kept.
        image_folders: The user's folders of images.
        what: What the warning calls the files, where they may not.
    """
    place = folder.resolve()
    if not any(place.is_relative_to(Path(images).resolve()) for images in image_folders):
        return True
    _log.warning("%s off: %s lies inside the image folder", what, place)
    return False


def file_version(path: str) -> tuple[int, int]:
    """Size and modification time of a file, in bytes and nanoseconds; -1 where it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def replacing(path: Path, is_lasting: bool = False) -> Iterator[BinaryIO]:
    """A temporary file, open for writing and reading, that takes the place of ``path`` at the end.

    Args:
        path: Stays as it was if anything fails.
        is_lasting: Synced to the disk first, for what cannot be made again from what is at hand.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
    try:
        with os.fdopen(handle, "wb+") as file:
            yield file
            file.flush()
            if is_lasting:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
