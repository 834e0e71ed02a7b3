"""Batches for training, endless and resumable at the exact sample, and for validation."""

import contextlib
import functools
import itertools
import logging
import multiprocessing.util
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from wfimagevae.dataset.images.held_out import ValidImageDataset, collate_images
from wfimagevae.dataset.options import LoaderOptions
from wfimagevae.dataset.protocol import DataError, TrainData

_log = logging.getLogger("wfimagevae")

DATA_TIMEOUT = 600.0  # seconds
_GLANCE = 0.2  # seconds for which a thread waits for workers without a look at them
_PATIENCE = 3  # workers in a row that are replaced, before what they read is given up


class Batches(Iterator):
    """What is read of lists of numbers by a thread: who waits for it can look about meanwhile.

    ``read`` makes a dict of a list, in one of ``num_workers`` processes (0: in this one);
    ``order(n)`` gives the lists from batch ``n`` on. Where a worker dies, or the one whose turn it
    is gives nothing in ``timeout`` seconds of waiting (0: for ever), all are replaced and read on
    behind the last batch that came, with a warning; a DataError where that does not help.
    ``options`` are those of a `DataLoader`.
    """

    def __init__(
        self,
        read: Callable[[list[int]], dict[str, Any]],
        order: Callable[[int], Iterable[list[int]]],
        num_workers: int = 0,
        timeout: float = DATA_TIMEOUT,
        **options,
    ):
        self._read, self._order = _Reader(read), order
        self._num_workers, self._timeout, self._options = num_workers, timeout, options
        self._here: deque[dict[str, Any]] = deque()
        self._taken = self._failures = 0
        self._loader, self._workers, self._waits_since = None, (), None

    def ready(self, count: int = 1, seconds: float = 0.0) -> bool:
        """Whether the next ``count`` batches are there, or all there are; waits for ``seconds``.

        Without workers this process reads, if there is time. Raises what reading one of them did.
        """
        if not (seconds or self._num_workers):
            return False
        # Workers begin, and a thread hands over what they read, an order each.
        if self._loader is None:
            self._first = self._taken + len(self._here)
            multiprocessing.util.get_temp_dir()  # which workers share, as killed ones leave theirs
            loader = DataLoader(
                self._read,
                batch_size=None,
                sampler=self._order(self._first),
                collate_fn=dict,
                num_workers=self._num_workers,
                worker_init_fn=_start_worker,
                # Without its own generator a DataLoader draws its base seed from the global one.
                generator=torch.Generator(),
                timeout=_GLANCE if self._num_workers else 0,
                **self._options,
            )
            # PyTorch's own handler would raise, in whatever runs, when a worker dies.
            handler = signal.getsignal(signal.SIGCHLD)
            self._loader = iter(loader)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler)
            self._workers = getattr(self._loader, "_workers", ())
            self._asked = len(self._here)
            self._orders, self._results = queue.SimpleQueue(), queue.SimpleQueue()
            # Storage that answers no more, and a worker stopped while it hands over, are waited for
            # without end, whatever the time.
            place = self._loader, self._orders, self._results
            thread = threading.Thread(target=_fetch, args=place, daemon=True)
            thread.start()
            # With this object and with this process, whose SIGTERM workers do not hear.
            place = self._workers, self._orders, thread
            self._end = multiprocessing.util.Finalize(self, _end, place, exitpriority=1)
        for _ in range(count - self._asked):
            self._orders.put(True)
        self._asked = max(self._asked, count)
        end = time.monotonic() + seconds
        while len(self._here) < count:
            try:
                batch = self._results.get(timeout=max(end - time.monotonic(), 0))
            except queue.Empty:
                self._look_after_workers()
                return False
            error = batch.get("error")
            if isinstance(error, StopIteration):
                self._results.put(batch)  # for whoever asks again
                return True
            if error:
                if not isinstance(error, DataError):
                    time.sleep(0.5)  # it may follow from a death that is not known yet
                if self._look_after_workers():
                    return False
                self.close()
                raise error
            self._here.append(batch)
            self._failures, self._waits_since = 0, None
        return True

    def __next__(self) -> dict[str, Any]:
        while not self.ready(seconds=1.0):
            pass
        if not self._here:
            raise StopIteration
        self._taken += 1
        if self._workers:  # they read ahead anyway
            self._orders.put(True)
        else:
            self._asked -= 1
        return self._here.popleft()

    def _look_after_workers(self) -> bool:
        """Ends them, to be replaced, where one is dead or late, and returns whether one was."""
        now, number = time.monotonic(), self._taken + len(self._here)
        self._waits_since = self._waits_since or now
        dead = [worker for worker in self._workers if worker.exitcode]
        is_late = self._workers and 0 < self._timeout < now - self._waits_since
        if not dead and not is_late:
            return False
        late = self._workers[(number - self._first) % len(self._workers)].pid
        why = f"process {late} gave nothing for {self._timeout:g} s (--data_timeout)"
        if dead:
            why = f"worker process {dead[0].pid} died (exit code {dead[0].exitcode})"
        self._failures, self._waits_since = self._failures + 1, None
        if self._failures > _PATIENCE:
            self.close()
            raise DataError(
                f"reading data: {why}, after {_PATIENCE} others at the same batch: look whether "
                "the storage answers and memory suffices; --dataset_num_worker 0 shows what fails, "
                "a longer --data_timeout waits for slow storage"
            )
        _log.warning("reading data: %s; its like are replaced, and read on from there", why)
        self.close()
        return True

    def close(self) -> None:
        """Ends workers, stopped ones too, and the thread; ``next`` starts them again."""
        if self._loader is not None:
            self._end()
        self._loader = None


def _end(
    workers: Sequence[multiprocessing.Process], orders: queue.SimpleQueue, thread: threading.Thread
) -> None:
    for worker in workers:
        worker.kill()
        with contextlib.suppress(OSError):  # what it runs, such as the command of a stuck pipe
            os.killpg(worker.pid, signal.SIGKILL)
    with contextlib.suppress(queue.Empty):
        while True:
            orders.get_nowait()
    orders.put(False)
    # A thread inside of PyTorch would end a process that exits by SIGABRT.
    if thread is not threading.current_thread():
        thread.join(timeout=2)


def _fetch(loader: Iterator, orders: queue.SimpleQueue, results: queue.SimpleQueue) -> None:
    """Puts a batch, or in its place the error that ends them, for each order."""
    while orders.get():
        result = None
        while result is None:
            try:
                result = next(loader)
            except Exception as error:
                # Each time it has looked whether workers live: killed ones are another error.
                if not str(error).startswith("DataLoader timed out"):
                    result = {"error": error}
        results.put(result)


class _Reader(Dataset):
    """Reads whole batches, so that a worker hands over few tensors."""

    def __init__(self, read: Callable[[list[int]], dict[str, Any]]):
        self._read = read

    def __getitem__(self, numbers: list[int]) -> dict[str, Any]:
        try:
            return self._read(numbers) | {"position": numbers}
        except DataError as error:  # raised in a worker, it would come as a traceback
            return {"error": error}


class TrainLoader(Batches):
    """Endless iterator over this rank's batches, whose state is one integer.

    ``next(loader)`` gives a dict: what the dataset's ``to_inputs`` makes of a batch, such as
    ``image`` float32 (B, 3, R, R) in [-1, 1], channels last in memory, on ``device`` (a CUDA device
    gets it through pinned memory); ``position``, the B data positions; ``unreadable``, a list of
    (path, reason) of the files met for the first time, each of which is also logged once, by each
    rank that meets it; ``text``, what ``tokenise``, where it is given, makes in a worker of the
    batch's captions. The dataset's `DataError` comes out of ``next``.

    From position p on, rank r of W takes ``p + r B ... p + (r + 1) B``, then p grows by ``W B``: at
    every step the ranks together read the next ``W B`` positions, whatever W is. ``batch_size`` B
    counts samples per rank; ``options`` are the flags of reading.
    """

    def __init__(
        self,
        dataset: TrainData,
        batch_size: int,
        options: LoaderOptions,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        tokenise: Callable[[Sequence[str]], dict[str, Any]] | None = None,
    ):
        assert batch_size > 0 and 0 <= rank < world_size
        self.dataset, self.device = dataset, torch.device(device)
        self._step, self._begin = world_size * batch_size, 0

        def order(number: int) -> Iterator[list[int]]:
            start = self._begin + rank * batch_size
            for first in itertools.count(start + number * self._step, self._step):
                yield list(range(first, first + batch_size))

        num_workers = options.dataset_num_worker
        ahead = {"prefetch_factor": options.dataloader_prefetch_factor if num_workers else None}
        # Without workers pinning would be a thread's, which has another current device.
        ahead |= {"pin_memory": self.device.type == "cuda" and num_workers > 0}
        read = functools.partial(_read_told, dataset, tokenise) if tokenise else dataset.read_batch
        super().__init__(read, order, num_workers, options.data_timeout, **ahead)
        self._unreadable: set[str] = set()

    def __next__(self) -> dict[str, Any]:
        batch = super().__next__()
        # Tell of each unreadable file once.
        position, unreadable = batch.pop("position"), []
        for path, reason in batch.pop("unreadable", []):
            if path not in self._unreadable:  # another worker may have met it before
                self._unreadable.add(path)
                unreadable.append((path, reason))
                _log.warning("unreadable image, the next one stands in: %s: %s", path, reason)
        text = self.dataset.to_inputs(batch.pop("text", {}), self.device)
        inputs = self.dataset.to_inputs(batch, self.device) | ({"text": text} if text else {})
        return inputs | {"position": position, "unreadable": unreadable}

    @property
    def num_unreadable(self) -> int:
        """Files that this rank found unreadable so far; later epochs show them to others, too."""
        return len(self._unreadable)

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands: the next position that no rank has drawn, and of which order."""
        facts = dict(self.dataset.order_facts)
        position = self._begin + self._taken * self._step
        state = {"position": position, "seed": self.dataset.seed}
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
        old = state.get("order", {})
        self.dataset.resume_order(old)
        new = self.dataset.order_facts
        changes = [
            f"{key} was {old.get(key)}, is {new.get(key)}"
            # How many are permuted one by one follows from the number of images.
            for key in sorted((old.keys() | new.keys()) - {"permutation"})
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
        self._here.clear()
        self._begin, self._taken = state["position"], 0


def _read_told(
    dataset: TrainData, tokenise: Callable[[Sequence[str]], dict[str, Any]], numbers: list[int]
) -> dict[str, Any]:
    batch = dataset.read_batch(numbers)
    if "caption" in batch and "tokens" not in batch:  # which are embedded already
        batch["text"] = tokenise(batch["caption"])
    return batch


def batch_loader(dataset: Any, batches: Iterable[list[int]], num_workers: int = 0) -> Batches:
    """``dataset.read_batch(batch)`` for each batch of indices, in order, by ``num_workers``."""
    batches = list(batches)
    return Batches(dataset.read_batch, lambda number: batches[number:], num_workers)


def valid_loader(
    dataset: ValidImageDataset,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    timeout: float = DATA_TIMEOUT,
) -> Batches:
    """Batches, by `collate_images`, of this rank's share: images rank, rank + world_size, ...

    Nothing is padded or repeated, so ranks may get shares of different length, or none. Images of
    native size, which cannot be stacked, need a batch size of 1.
    """
    mine = range(rank, len(dataset), world_size)
    batches = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
    read = functools.partial(_held_out, dataset)
    return Batches(read, lambda number: batches[number:], num_workers, timeout)


def _held_out(dataset: ValidImageDataset, numbers: Sequence[int]) -> dict[str, Any]:
    return collate_images([dataset[i] for i in numbers])


def _start_worker(worker_id: int) -> None:
    """Leaves signals to the whole job to the main process, which still needs data.

    It leads a group of its own, with the commands that it runs.
    """
    os.setpgrp()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
