"""What `TrainLoader` asks of a training dataset, and what flow training asks besides."""

from typing import Any, Protocol

import torch


class DataError(ValueError):
    """Training data that cannot be used; the message tells the user which, and why."""


class TrainData(Protocol):
    """A dataset whose samples are functions of (seed, position) and of what is on disk.

    Attributes:
        seed: Of the order and of all random numbers.
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

    `to_inputs` gives the samples under ``data_key`` and, where there are classes, ``label``,
    int64 (B,).

    Attributes:
        sample_shape: Of one sample: (C, H, W), or (2,).
        num_classes: 0 without labels.
        class_names: One a class, or none.
        data_key: ``image`` (in [-1, 1]), ``latent`` (normalised) or ``point``; all float32.
    """

    sample_shape: tuple[int, ...]
    num_classes: int
    class_names: list[str]
    data_key: str
