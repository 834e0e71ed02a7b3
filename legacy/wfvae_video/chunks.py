"""Clips in chunks of time: what layers keep of earlier chunks, so that nothing is computed twice.

Every layer takes ``(x, past)``, x being (B, C, T, H, W). A whole clip is one chunk, first and last.
"""

import torch
from torch import Tensor, nn


class Past:
    """What layers need of earlier chunks of a clip, on its way through one half of a model.

    ``is_first`` and ``is_last`` tell which chunk is on its way; both are true of a whole clip.
    """

    def __init__(self):
        self.is_first = self.is_last = True
        self._kept: dict[nn.Module, Tensor] = {}

    def keep(self, layer: nn.Module, frames: Tensor) -> None:
        """Keeps a copy of frames, if any, until the layer's next chunk, unless this is the last."""
        if frames.shape[2] and not self.is_last:
            self._kept[layer] = frames.clone()

    def recall(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, bool]:
        """A layer's chunk behind the frames that it kept, and whether there were any."""
        kept = self._kept.pop(layer, None)
        return (x, False) if kept is None else (torch.cat([kept, x], dim=2), True)

    def add_low(self, layer: nn.Module, coeffs: Tensor, low: Tensor) -> None:
        """Adds the picture of a coarser level to the lowest band, in place.

        If time is doubled in between, that picture is a frame ahead, which waits.
        """
        low, _ = self.recall(layer, low)
        num_frames = coeffs.shape[2]
        coeffs[:, :3] += low[:, :, :num_frames]
        self.keep(layer, low[:, :, num_frames:])
