"""Batches for training, endless and resumable at the exact sample, and for validation."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from wfimagevae.dataset.images.held_out import ValidImageDataset, collate_images
from wfimagevae.dataset.options import LoaderOptions
from wfimagevae.dataset.protocol import DataError, TrainData

_log = logging.getLogger("wfimagevae")


class PositionSampler(Sampler[list[int]]):
    """Endless batches of data positions, shared out among ranks without gaps or repeats.

    From p on, rank r of W takes ``p + r B ... p + (r + 1) B``, then p grows by ``W B``. So at
    every step the ranks together read the next ``W B`` positions, whatever W is.
    """

    def __init__(self, batch_size: int, rank: int = 0, world_size: int = 1, start: int = 0):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.world_size * self.batch_size


class TrainLoader:
    """Endless iterator over this rank's batches, whose state is one integer.

    ``next(loader)`` gives a dict: what the dataset's ``to_inputs`` makes of a batch, such as
    ``image`` float32 (B, 3, R, R) in [-1, 1], channels last in memory, on ``device`` (a CUDA device
    gets it through pinned memory); ``position``, the B data positions; ``unreadable``, a list of
    (path, reason) of the files met for the first time, each of which is also logged once, by each
    rank that meets it. The dataset's `DataError` comes out of ``next``.

    ``batch_size`` counts samples per rank; ``num_workers`` 0 reads in this process; each worker
    prepares ``prefetch_factor`` batches ahead.
    """

    def __init__(
        self,
        dataset: TrainData,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 8,
        prefetch_factor: int = 2,
        device: torch.device | str = "cpu",
    ):
        PositionSampler(batch_size, rank, world_size)  # checks the three
        self.dataset, self.batch_size = dataset, batch_size
        self.rank, self.world_size = rank, world_size
        self.device = torch.device(device)
        self._options = _worker_options(num_workers) | {
            "prefetch_factor": prefetch_factor if num_workers else None,
            "pin_memory": self.device.type == "cuda",
        }
        self._position = 0
        self._batches = None
        self._unreadable: set[str] = set()

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> dict[str, Any]:
        if self._batches is None:
            place = (self.batch_size, self.rank, self.world_size, self._position)
            options = {"sampler": PositionSampler(*place), "batch_size": None} | self._options
            self._batches = iter(DataLoader(_BatchReader(self.dataset), **options))
        batch = next(self._batches)
        if "error" in batch:
            self.close()
            raise batch["error"]
        self._position += self.batch_size * self.world_size
        # Tell of each unreadable file once.
        position, unreadable = batch.pop("position"), []
        for path, reason in batch.pop("unreadable", []):
            if path not in self._unreadable:  # another worker may have met it before
                self._unreadable.add(path)
                unreadable.append((path, reason))
                _log.warning("unreadable image, the next one stands in: %s: %s", path, reason)
        inputs = self.dataset.to_inputs(batch, self.device)
        return inputs | {"position": position, "unreadable": unreadable}

    @property
    def num_unreadable(self) -> int:
        """Files that this rank found unreadable so far; later epochs show them to others, too."""
        return len(self._unreadable)

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands: the next position that no rank has drawn, and of which order."""
        facts = dict(getattr(self.dataset, "order_facts", {}))
        state = {"position": self._position, "seed": self.dataset.seed}
        return state | {"num_images": len(self.dataset)} | ({"order": facts} if facts else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on at the sample after the last one drawn when ``state`` was taken.

        The number of ranks and the workers may differ, and the batch size unless the order depends
        on it (buckets). With another number of images a warning says that the order is a new one;
        another seed, or an order of another kind, is a ValueError.
        """
        if state["seed"] != self.dataset.seed:
            raise ValueError(
                f"the run to resume shuffled its images with seed {state['seed']}, this one with "
                f"{self.dataset.seed}; pass --seed {state['seed']}"
            )
        old, new = state.get("order", {}), self.state_dict().get("order", {})
        changes = [
            f"{key} was {old.get(key)}, is {new.get(key)}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        if changes:
            raise ValueError(
                f"the run to resume dealt its samples in another order ({'; '.join(changes)}): "
                "give these options their old values, or start a new run from its weights "
                "(--pretrained_model_name_or_path)"
            )
        if state["num_images"] != len(self.dataset):
            _log.warning(
                "the run to resume had %d images, now there are %d: training goes on after %d "
                "samples in a new order, so some images come sooner again than others",
                *(state["num_images"], len(self.dataset), state["position"]),
            )
        self.close()
        self._position = state["position"]

    def close(self) -> None:
        """Stops the workers. A later ``next`` starts them again where the data stands."""
        self._batches = None


def train_loader(
    dataset: TrainData,
    batch_size: int,
    options: LoaderOptions,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
) -> TrainLoader:
    """A `TrainLoader` that reads as the flags of reading say."""
    workers, ahead = options.dataset_num_worker, options.dataloader_prefetch_factor
    return TrainLoader(dataset, batch_size, rank, world_size, workers, ahead, device=device)


class _BatchReader(Dataset):
    """Reads whole batches, so that a worker hands over few tensors."""

    def __init__(self, dataset: TrainData):
        self.dataset = dataset

    def __getitem__(self, positions: list[int]) -> dict[str, Any]:
        try:
            return self.dataset.read_batch(positions) | {"position": positions}
        except DataError as error:  # raised in a worker, it would come as a traceback
            return {"error": error}


def batch_loader(dataset: Any, batches: Iterable[list[int]], num_workers: int = 0) -> DataLoader:
    """``dataset.read_batch(batch)`` for each batch of indices, in order, by ``num_workers``."""
    options = _worker_options(num_workers)
    return DataLoader(_BatchReader(dataset), sampler=list(batches), batch_size=None, **options)


def valid_loader(
    dataset: ValidImageDataset,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Batches, by `collate_images`, of this rank's share: images rank, rank + world_size, ...

    Nothing is padded or repeated, so ranks may get shares of different length, or none. Images of
    native size, which cannot be stacked, come one by one.
    """
    PositionSampler(batch_size, rank, world_size)  # checks the three
    if dataset.crop_size is None and batch_size > 1:
        raise ValueError(
            f"images of native size differ, so they cannot share a batch of {batch_size}; "
            "give a resolution, or a batch size of 1"
        )
    share = Subset(dataset, range(rank, len(dataset), world_size))
    options = _worker_options(num_workers)
    return DataLoader(share, batch_size=batch_size, collate_fn=collate_images, **options)


def _worker_options(num_workers: int) -> dict[str, Any]:
    return {
        "num_workers": num_workers,
        "worker_init_fn": _start_worker,
        # Without its own generator a DataLoader draws its base seed from the global one.
        "generator": torch.Generator(),
    }


def _start_worker(worker_id: int) -> None:
    """Leaves Ctrl-C and signals to the whole job to the main process, which still needs data."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS; and it takes forked, not spawned, workers
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        main = multiprocessing.parent_process().pid
        threading.Thread(target=_obey_only, args=(main,), daemon=True).start()


def _obey_only(main: int) -> None:
    """Ends the worker on a SIGTERM from ``main``; Slurm and torchrun send theirs to everyone."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
