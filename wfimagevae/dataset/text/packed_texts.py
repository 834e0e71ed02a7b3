"""Many short byte strings in two arrays, which forked workers share without copying."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np


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
        return cls(np.frombuffer(bytes(packed), np.uint8), np.array(ends, np.int64))

    @classmethod
    def concatenate(cls, parts: Sequence["PackedTexts"]) -> "PackedTexts":
        starts = np.cumsum([0, *(len(part.text) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.text for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> bytes:
        start = self.ends[i - 1] if i else 0
        return self.text[start : self.ends[i]].tobytes()

    def select(self, indices: Sequence[int]) -> "PackedTexts":
        """Some of them, in any order; the same pack if it is all."""
        rows = np.asarray(indices, np.int64)
        if np.array_equal(rows, np.arange(len(self))):
            return self
        starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)[rows]
        lengths = self.ends[rows] - starts
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)
        return PackedTexts(self.text[places], ends)
