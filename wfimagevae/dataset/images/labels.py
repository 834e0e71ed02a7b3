"""Classes of images: the first-level folder that holds them, or a manifest's ``label``."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from wfimagevae.dataset.images.index import ImageIndex, manifest_values

_HIGHEST_LABEL = 10**6 - 1  # of numbers without names: what is above is a mistake
_log = logging.getLogger("wfimagevae")


@dataclass(frozen=True)
class Labels:
    """Where the classes of images come from.

    Attributes:
        kind: ``none``; ``folder``: an image's class is the first-level sub-folder that holds it
            (the layout of ImageNet); ``manifest``: the field ``label`` of its line, which is a
            number from 0 on, or a name, the same kind in all lines.
        class_names: The classes that labels are numbered by: those of the training data, for
            data held out. None: the sorted names found; of numbers, 0 to the highest.
    """

    kind: Literal["none", "folder", "manifest"] = "none"
    class_names: Sequence[str] | None = None


def read_labels(
    source: str | Path, images: ImageIndex, labels: Labels
) -> tuple[np.ndarray, list[str]]:
    """Class of every image of a folder or manifest, int64 (N,), and the names of the classes."""
    source = os.path.abspath(os.path.expanduser(source))
    is_folder = os.path.isdir(source)
    if is_folder != (labels.kind == "folder"):
        right = "folder" if is_folder else "manifest"
        raise ValueError(
            f"labels {labels.kind!r} cannot come from {source}: it is a {right}; use {right!r}"
        )
    if is_folder:
        # Every image lies in a class folder, every class folder has one, and the classes are those
        # of the training data.
        firsts = (entry.partition(b"/")[0] for entry in images.entries)
        values, where = [sys.intern(os.fsdecode(first)) for first in firsts], images.path
        if outside := [entry for entry in images.entries if b"/" not in entry]:
            raise ValueError(
                f"{source}: {len(outside)} images lie outside any class folder, for example "
                f"{os.fsdecode(outside[0])}; labels need one sub-folder a class"
            )
        with os.scandir(source) as entries:
            folders = {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
        order = set(values if labels.class_names is None else labels.class_names)
        if empty := sorted((folders | order) - set(values)):
            raise ValueError(
                f"{source}: no image in class folder {_some(empty)}; fill it, or remove it if "
                "training has no such class"
            )
        if extra := sorted(set(values) - order):
            raise ValueError(f"{source} has classes that training has not: {_some(extra)}")
    else:
        label, where = manifest_values(source, images, lambda line: line.get("label"))
        found = map(label, range(len(images)))
        values = [sys.intern(v) if isinstance(v, str) else v for v in found]  # one object a class
    return number_labels(values, where, source, labels.class_names)


def number_labels(
    values: Sequence[Any],
    where: Callable[[int], str],
    source: str,
    class_names: Sequence[str] | None,
) -> tuple[np.ndarray, list[str]]:
    """Numbers, int64 (N,), and names of classes given as numbers or names, one kind throughout.

    ``where(i)`` tells the place that ``values[i]`` comes from, ``source`` names them all in
    messages. Classes are numbered by ``class_names``, as for `Labels`; another one is a ValueError.
    """
    # All are numbers, or all are names.
    by_name = isinstance(values[0], str)
    for i, label in enumerate(values):
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise ValueError(
                f"{where(i)}: expected a label, a class's number or name, got {label!r:.80}"
            )
        if isinstance(label, str) != by_name:
            raise ValueError(
                f"{where(i)}: label {label!r} is a {'number' if by_name else 'name'}, "
                f"that of {where(0)} is not; use one kind throughout"
            )
    # Number them in the order of the training classes, or in their own.
    if class_names is not None:
        order = list(class_names)
    elif by_name:
        order = sorted(set(values))
    else:
        order = [str(i) for i in range(max(0, min(max(values), _HIGHEST_LABEL)) + 1)]
    number = {name: i for i, name in enumerate(order)} if by_name else range(len(order))
    for i, label in enumerate(values):
        if label not in number:
            classes = f"the classes are {_some(order)}" if by_name else f"use 0 to {len(order) - 1}"
            raise ValueError(f"{where(i)}: label {label!r} is out of range: {classes}")
    numbers = np.array([number[label] for label in values], np.int64)
    if unused := sorted(set(range(len(order))) - set(numbers.tolist())):
        _log.warning("%s: no image of class %s", source, _some([order[i] for i in unused]))
    return numbers, order


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
