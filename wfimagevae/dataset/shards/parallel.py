"""The same work on many things at once, by processes, with a progress bar."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tqdm import tqdm

_SHOWN_FROM = 8  # fewer things need no progress bar
_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


def in_processes(
    work: Callable[[_Item], _Result], items: Sequence[_Item], description: str, **bar
) -> Iterator[_Result]:
    """``work(item)`` of each item, in order, by as many processes as there are cores.

    Args:
        work: A function that can be pickled.
        items: What it is called with, one by one.
        description: In front of the progress bar, which only a terminal gets.
        **bar: Options of the bar, such as ``unit``.
    """
    processes = min(len(items), _num_cores())
    with contextlib.ExitStack() as stack:
        if processes > 1:  # the pool comes first: it forks, and a progress bar starts a thread
            results = stack.enter_context(ProcessPoolExecutor(processes)).map(work, items)
        else:
            results = map(work, items)
        is_quiet = True if len(items) < _SHOWN_FROM else None
        yield from tqdm(results, description, len(items), disable=is_quiet, **bar)


def _num_cores() -> int:
    """Cores that this process may use; all where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
