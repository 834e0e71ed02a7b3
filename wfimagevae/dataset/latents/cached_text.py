"""What a frozen text encoder made of captions, as shards of latents keep it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Parts of an embedding -> their tensors in a shard: (M, l, D), (M, l) and (M, P) for M captions,
# whose longest has l tokens. The captions of sample i are those before ENDS[i].
PARTS = {"tokens": "text_tokens", "mask": "text_mask", "pooled": "text_pooled"}
ENDS = "text_ends"


def compact(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is kept of embeddings: float16, on the CPU, without common padding.

    ``part`` has ``tokens`` (n, L, D), ``mask`` bool (n, L) and ``pooled`` (n, P).
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

    ``parts`` are what `compact` gave of the captions in turn, at least one; each sample has
    ``counts`` of them.
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


def read_embeddings(
    record: dict[str, Any],
    stored: Callable[[int, str, int], Tensor],
    places: Sequence[tuple[int, int, int | None]],
) -> dict[str, Tensor]:
    """Embeddings of captions; zeros and an empty mask for a sample without one.

    ``record`` is what the cache's says of the text encoder, ``stored(shard number, name, row)``
    gives a row of a tensor, and ``places`` are the shard's number, the row there, and which
    caption, of each sample.
    Gives ``tokens`` float16 (B, L, D), ``mask`` bool (B, L) and ``pooled`` float16 (B, P).
    """
    keys, count = record["config_keys"], len(places)
    tokens = torch.zeros(count, keys["text_length"], keys["text_width"], dtype=torch.float16)
    mask = torch.zeros(count, keys["text_length"], dtype=torch.bool)
    pooled = torch.zeros(count, keys["pooled_width"], dtype=torch.float16)
    for slot, (number, row, line) in enumerate(places):
        if line is None:
            continue
        caption = (int(stored(number, ENDS, row - 1)) if row else 0) + line
        used = stored(number, PARTS["mask"], caption)
        mask[slot, : len(used)] = used
        tokens[slot, : len(used)] = stored(number, PARTS["tokens"], caption)
        pooled[slot] = stored(number, PARTS["pooled"], caption)
    return {"tokens": tokens, "mask": mask, "pooled": pooled}
