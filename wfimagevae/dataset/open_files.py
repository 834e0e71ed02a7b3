"""Files that a process keeps open, not too many, to read parts of."""

import collections
import contextlib
import os
from collections.abc import Callable


class OpenFiles:
    """Descriptors by name; the ``most`` that were used last stay open.

    Each process opens its own: they do not travel.
    """

    def __init__(self, most: int = 64):
        self._most = most
        self._open: collections.OrderedDict[str, int] = collections.OrderedDict()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": collections.OrderedDict()}

    def __del__(self):
        for handle in self._open.values():
            with contextlib.suppress(OSError):
                os.close(handle)

    def read(self, name: str, length: int, offset: int, open_file: Callable[[], int]) -> bytes:
        """Bytes of a file, which ``open_file`` opens where it is not; fewer where the file ends.

        Not by a memory map: that of a file that was cut ends the process (SIGBUS).
        """
        if name not in self._open:
            while len(self._open) >= self._most:
                os.close(self._open.popitem(last=False)[1])
            self._open[name] = open_file()
        self._open.move_to_end(name)
        return os.pread(self._open[name], length, offset)
