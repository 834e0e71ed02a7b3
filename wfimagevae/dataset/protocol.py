"""What training asks of its data, and of images wherever they are kept."""

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Protocol

import torch

from wfimagevae.dataset.order import Order


class DataError(ValueError):
    """Training data that cannot be used; the message tells the user which, and why."""


class Images(Protocol):
    """Images by number, wherever they are kept."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What a message calls image ``i``."""

    def relative(self, i: int) -> str:
        """A relative path for image ``i``, with forward slashes, to write something under."""

    def aliases(self, i: int) -> list[str]:
        """Names by which a list of captions may call image ``i``."""

    def file(self, i: int) -> str | BinaryIO:
        """The path or the content of image ``i``; `UnreadableImage` if it cannot be read."""

    def select(self, indices: Sequence[int]) -> "Images":
        """Some of these images, in increasing order of their numbers."""


class TrainData:
    """A dataset whose samples are functions of (seed, position) and of what is on disk.

    `to_inputs` gives the samples under ``data_key``: ``image`` (in [-1, 1]), ``latent``
    (normalised) or ``point``, float32. Where there are classes, also ``label``, int64 (B,); where
    there are captions, ``caption``, a list of B strings, "" of a sample without one.
    ``sample_shape`` is (C, H, W) or (2,). ``order_facts`` are plain values that the order depends
    on besides the seed: a run is resumed with the same ones only.
    """

    _order: Order = Order()  # without facts, where samples are drawn afresh
    seed: int
    sample_shape: tuple[int, ...]
    class_names: list[str]
    has_captions: bool = False
    data_key: str = "image"

    @property
    def order_facts(self) -> Mapping[str, Any]:
        return self._order.facts

    def resume_order(self, facts: Mapping[str, Any]) -> None:
        """Takes up the order of a run with these facts; see `Order.resume`."""
        self._order.resume(facts)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        """Samples in an epoch, in positions."""
        return self._order.num_items

    def read_batch(self, positions: list[int]) -> dict[str, Any]:
        """The samples at some positions, on the CPU, in a worker; compact, as they travel.

        Under ``unreadable``, if given: (path, reason) of files met for the first time. A DataError,
        which ends training, reaches the main process without a traceback.
        """
        raise NotImplementedError

    def to_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """What the objective gets, on ``device``, from a batch of `read_batch`; main process.

        ``pixels``, uint8 (B, h, w, 3), become ``image``, float32 (B, 3, h, w) in [-1, 1]; what
        travels as float16 becomes float32.
        """
        inputs = dict(batch)
        for name, values in batch.items():
            if torch.is_tensor(values):
                # Copies from pinned memory to a GPU need not be waited for.
                values = values.to(device, non_blocking=device.type == "cuda")
                inputs[name] = values.float() if values.dtype == torch.float16 else values
        if "pixels" in inputs:
            inputs["image"] = to_signed_unit(inputs.pop("pixels"))
        return inputs


def to_signed_unit(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels, uint8 (..., h, w, 3), as float32 (..., 3, h, w) in [-1, 1], channels last."""
    return pixels.movedim(-1, -3).to(torch.float32).div_(127.5).sub_(1.0)
