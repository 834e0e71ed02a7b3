"""What captions are like where a text encoder reads them, for the log."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wfimagevae.engine.device import to_device
from wfimagevae.model.text import TextEncoder


def caption_statistics(
    captions: Sequence[str], encoder: TextEncoder, device: torch.device
) -> dict[str, Tensor]:
    """Figures of a batch's captions as pooled (sum, weight), float32 (2,), on a device.

    ``train/caption_length`` is the mean length of those that are not empty, in the unit of the
    encoder's; ``train/captions_cut`` and ``train/captions_empty`` are shares of all: of captions
    longer than the encoder reads, and of those without text.
    """
    written = [caption for caption in captions if caption.strip()]
    lengths = encoder.lengths(written) if written else []
    pairs = {
        "caption_length": (sum(lengths), len(written)),
        "captions_cut": (sum(n > encoder.length for n in lengths), len(captions)),
        "captions_empty": (len(captions) - len(written), len(captions)),
    }
    return {f"train/{n}": to_device(torch.tensor(p).float(), device) for n, p in pairs.items()}
