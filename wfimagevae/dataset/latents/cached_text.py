"""What a frozen text encoder made of captions, as shards of latents keep it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wfimagevae.dataset.latents.safetensors_map import Shard
from wfimagevae.dataset.protocol import DataError

# Parts of an embedding -> their tensors in a shard: (M, l, D), (M, l) and (M, P) for M captions,
# whose longest has l tokens. The captions of sample i are those before ENDS[i].
PARTS = {"tokens": "text_tokens", "mask": "text_mask", "pooled": "text_pooled"}
ENDS = "text_ends"


def compact(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is kept of a batch's embeddings: float16, on the CPU, without common padding.

    Args:
        part: ``tokens`` (n, L, D), ``mask`` bool (n, L) and ``pooled`` (n, P).

    Raises:
        ValueError: values that float16 cannot hold.
    """
    used = part["mask"].any(0).nonzero()
    length = int(used.max()) + 1 if len(used) else 0
    kept = {
        "tokens": part["tokens"][:, :length].half().cpu(),
        "mask": part["mask"][:, :length].cpu(),
        "pooled": part["pooled"].half().cpu(),
    }
    if not (kept["tokens"].isfinite().all() and kept["pooled"].isfinite().all()):
        raise ValueError("the text encoder's output is beyond the range of float16")
    return kept


def text_tensors(parts: Sequence[dict[str, Tensor]], counts: Sequence[int]) -> dict[str, Tensor]:
    """The tensors that a shard keeps of its captions' embeddings.

    Args:
        parts: What `compact` kept of the captions, in turn; at least one part.
        counts: How many of these captions each sample has.
    """
    length = max(part["mask"].shape[1] for part in parts)
    padded = [
        part
        | {
            "tokens": F.pad(part["tokens"], (0, 0, 0, length - part["tokens"].shape[1])),
            "mask": F.pad(part["mask"], (0, length - part["mask"].shape[1])),
        }
        for part in parts
    ]
    tensors = {PARTS[name]: torch.cat([part[name] for part in padded]) for name in PARTS}
    return tensors | {ENDS: torch.tensor(counts, dtype=torch.int64).cumsum(0)}


class CachedText:
    """Reads embeddings by memory map.

    Args:
        record: ``text`` of a cache's record.
        shards: Of the cache.
        open_map: Gives a tensor, by number of the shard and name.

    Raises:
        DataError: a shard without embeddings.
    """

    def __init__(
        self,
        record: dict[str, Any],
        shards: Sequence[Shard],
        open_map: Callable[[int, str], np.ndarray],
    ):
        keys = record["config_keys"]
        self._length, self._width = keys["text_length"], keys["text_width"]
        self._pooled_width, self._open_map = keys["pooled_width"], open_map
        for shard in shards:
            if missing := {*PARTS.values(), ENDS} - shard.tensors.keys():
                raise DataError(f"{shard.path} has no {', '.join(sorted(missing))}: encode anew")

    def read(self, places: Iterable[tuple[int, int, int | None]]) -> dict[str, Tensor]:
        """Embeddings of captions.

        Args:
            places: Of each sample: number of its shard, its row there, and which of its captions;
                None where it has none, which gives zeros and an empty mask.

        Returns:
            ``tokens`` float16 (B, L, D), ``mask`` bool (B, L) and ``pooled`` float16 (B, P).
        """
        places = list(places)
        tokens = np.zeros((len(places), self._length, self._width), np.float16)
        mask = np.zeros((len(places), self._length), bool)
        pooled = np.zeros((len(places), self._pooled_width), np.float16)
        for slot, (number, row, line) in enumerate(places):
            if line is None:
                continue
            ends = self._open_map(number, ENDS)
            caption = (int(ends[row - 1]) if row else 0) + line
            known = self._open_map(number, PARTS["mask"])[caption]
            mask[slot, : len(known)] = known
            tokens[slot, : len(known)] = self._open_map(number, PARTS["tokens"])[caption]
            pooled[slot] = self._open_map(number, PARTS["pooled"])[caption]
        arrays = {"tokens": tokens, "mask": mask, "pooled": pooled}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
