"""Many short byte strings in two arrays, which forked workers share without copying."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

_PART = 2**10  # texts that are copied at a time


class PackedTexts:
    """Byte strings by number: all of them one after another, uint8, and where each ends, int64."""

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        self.text, self.ends = text, ends

    @classmethod
    def pack(cls, texts: Iterable[bytes]) -> "PackedTexts":
        packed, ends = bytearray(), array("q")
        for text in texts:
            packed += text
            ends.append(len(packed))
        return cls(np.frombuffer(packed, np.uint8), np.frombuffer(ends, np.int64))

    @classmethod
    def concatenate(cls, parts: Sequence["PackedTexts"]) -> "PackedTexts":
        ends, first, start = np.empty(sum(map(len, parts)), np.int64), 0, 0
        for part in parts:
            ends[first : first + len(part)] = part.ends
            ends[first : first + len(part)] += start
            first, start = first + len(part), start + len(part.text)
        return cls(np.concatenate([part.text for part in parts]), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> bytes:
        start = self.ends[i - 1] if i else 0
        return self.text[start : self.ends[i]].tobytes()

    def _starts(self, rows: np.ndarray) -> np.ndarray:
        return np.where(rows > 0, self.ends[rows - 1], 0)

    def select(self, indices: Sequence[int]) -> "PackedTexts":
        """Some of them, in any order; the same pack if it is all."""
        rows = np.asarray(indices, np.int64)
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        ends = self.ends[rows] - self._starts(rows)
        np.cumsum(ends, out=ends)
        text = np.empty(ends[-1] if len(rows) else 0, np.uint8)
        # By parts: where every byte comes from takes 16 times the room of the texts.
        for part in range(0, len(rows), _PART):
            starts, done = self._starts(rows[part : part + _PART]), ends[part - 1] if part else 0
            stops = ends[part : part + _PART] - done
            shifts = np.repeat(starts - np.append(0, stops[:-1]), np.diff(stops, prepend=0))
            text[done : done + stops[-1]] = self.text[np.arange(stops[-1]) + shifts]
        return PackedTexts(text, ends)

    def argsort(self) -> np.ndarray:
        """The numbers in the order of the texts' bytes, those of equal ones increasing, int64 (N,).

        No text may hold a zero byte.
        """
        rows = np.arange(len(self))
        lengths = self.ends - self._starts(rows)
        padded = np.append(self.text, np.zeros(8, np.uint8))
        words = np.ndarray(len(self.text) + 1, ">u8", padded, strides=(1,))
        # A radix sort: by the last 8 bytes first. Texts that end before them stay in front.
        for first in range((int(lengths.max(initial=1)) - 1) // 8 * 8, -1, -8):
            is_longer = lengths[rows] > first
            longer = rows[is_longer]
            beyond = 8 * (first + 8 - lengths[longer]).clip(min=0).astype(np.uint64)
            keys = words[self._starts(longer) + first] >> beyond << beyond
            rows = np.concatenate([rows[~is_longer], longer[np.argsort(keys, kind="stable")]])
        return rows
