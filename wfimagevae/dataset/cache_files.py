"""Files kept from run to run: where they stand, and how they are replaced."""

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# What reading an .npz that is no longer whole raises.
DAMAGED_ARRAYS = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile)


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


@contextlib.contextmanager
def replacing(path: Path, is_lasting: bool = False) -> Iterator[BinaryIO]:
    """A temporary file, open for writing and reading, that takes the place of ``path`` at the end.

    Args:
        path: Stays as it was if anything fails.
        is_lasting: Synced to the disk first, for what cannot be made again from what is at hand.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
