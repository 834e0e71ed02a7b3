"""What `TrainLoader` asks of a training dataset, what flow training asks besides, and images."""

from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol

import torch
from PIL import Image

from wfimagevae.dataset.images.decode import open_rgb


class DataError(ValueError):
    """Training data that cannot be used; the message tells the user which, and why."""


class Images:
    """Images by number, wherever they are kept."""

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, i: int) -> str:
        """What a message calls image ``i``."""
        raise NotImplementedError

    def relative(self, i: int) -> str:
        """A relative path for image ``i``, with forward slashes, to write something under."""
        raise NotImplementedError

    def aliases(self, i: int) -> list[str]:
        """Names by which a list of captions may call image ``i``."""
        raise NotImplementedError

    def file(self, i: int) -> str | BinaryIO:
        """The path or the content of image ``i``; `UnreadableImage` if it cannot be read."""
        raise NotImplementedError

    def select(self, indices: Sequence[int]) -> "Images":
        """Some of these images, in increasing order of their numbers."""
        raise NotImplementedError

    def open(
        self,
        i: int,
        min_side: int | tuple[int, int] = 1,
        short_side: int | tuple[int, int] | None = None,
    ) -> Image.Image:
        """Image ``i``, as `open_rgb` gives it; `UnreadableImage` if it is damaged or too small."""
        return open_rgb(self.file(i), min_side, short_side)


class TrainData(Protocol):
    """A dataset whose samples are functions of (seed, position) and of what is on disk.

    It may have ``order_facts``, a dict of plain values that the order depends on besides: a run
    is resumed with the same ones only.

    Attributes:
        seed: Seed of the order and of all random numbers.
    """

    seed: int

    def __len__(self) -> int:
        """Samples in an epoch, in positions."""
        ...

    def read_batch(self, positions: list[int]) -> dict[str, Any]:
        """The samples at some positions, on the CPU, in a worker; compact, as they travel.

        Under ``unreadable``, if given: (path, reason) of files met for the first time.

        Raises:
            DataError: training cannot go on; it reaches the main process without a traceback.
        """
        ...

    def to_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """What the objective gets, on ``device``, from a batch of `read_batch`; main process."""
        ...


class FlowData(TrainData, Protocol):
    """Data for a generative model.

    `to_inputs` gives the samples under ``data_key``; where there are classes, ``label``, int64
    (B,); where there are captions, ``caption``, a list of B strings, "" of a sample without one.

    Attributes:
        sample_shape: Shape of one sample: (C, H, W), or (2,).
        num_classes: 0 without labels.
        class_names: One a class, or none.
        has_captions: Whether samples come with captions.
        data_key: ``image`` (in [-1, 1]), ``latent`` (normalised) or ``point``; all float32.
    """

    sample_shape: tuple[int, ...]
    num_classes: int
    class_names: list[str]
    has_captions: bool
    data_key: str
