"""Files that a process keeps open, not too many."""

import collections
import contextlib
import os
from collections.abc import Callable


class OpenFiles:
    """Descriptors by number; the ``most`` that were used last stay open.

    Each process opens its own: they do not travel.
    """

    def __init__(self, most: int = 64):
        self._most = most
        self._open: collections.OrderedDict[int, int] = collections.OrderedDict()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": collections.OrderedDict()}

    def __del__(self):
        for handle in self._open.values():
            with contextlib.suppress(OSError):
                os.close(handle)

    def get(self, number: int, open_file: Callable[[], int]) -> int:
        """The descriptor of a file, which ``open_file`` opens where it is not."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= self._most:
            os.close(self._open.popitem(last=False)[1])
        self._open[number] = handle = open_file()
        return handle
