"""A lock that processes of one machine share, so that one of them does the work for all."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, waiting for whoever has it; a process that dies gives it up.

    Args:
        path: Made if there is none; its content does not matter.

    Raises:
        OSError: it cannot be written.
    """
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
