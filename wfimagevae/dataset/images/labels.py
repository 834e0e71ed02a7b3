"""Classes of images: the first-level folder that holds them, or a manifest's ``label``."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wfimagevae.dataset.images.index import ImageIndex, in_index_order

LABEL_KINDS = ("none", "folder", "manifest")
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

    kind: str = "none"
    class_names: Sequence[str] | None = None

    def __post_init__(self):
        if self.kind not in LABEL_KINDS:
            raise ValueError(f"unknown labels {self.kind!r}; use {', '.join(LABEL_KINDS)}")


def read_labels(
    source: str | Path, images: ImageIndex, labels: Labels
) -> tuple[np.ndarray | None, list[str]]:
    """The class of every image, and the classes' names.

    Args:
        source: The folder or manifest that was indexed.
        images: Its images.
        labels: Where the classes come from.

    Returns:
        int64 (len(images),), or None without labels; the names in the order of their numbers.

    Raises:
        ValueError: a class without an image, an image outside the classes, other classes than
            asked for, or a manifest's line (named as file:line) without a usable label.
    """
    if labels.kind == "none":
        return None, []
    source = os.path.abspath(os.path.expanduser(source))
    is_folder = os.path.isdir(source)
    if is_folder != (labels.kind == "folder"):
        right = "folder" if is_folder else "manifest"
        raise ValueError(
            f"labels {labels.kind!r} cannot come from {source}: it is a {right}; use {right!r}"
        )
    read = _folder_labels if is_folder else _manifest_labels
    return read(source, images, labels.class_names)


def _folder_labels(
    root: str, images: ImageIndex, class_names: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    firsts = [images.entry(i).partition(b"/") for i in range(len(images))]
    outside = [first for first, slash, _ in firsts if not slash]
    if outside:
        raise ValueError(
            f"{root}: {len(outside)} images lie outside any class folder, for example "
            f"{os.fsdecode(outside[0])}; labels need one sub-folder a class"
        )
    names = [os.fsdecode(first) for first, _, _ in firsts]
    found = sorted(set(names))
    with os.scandir(root) as entries:
        folders = {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    if empty := sorted(folders - set(found)):
        raise ValueError(
            f"{root}: no image in class folder {_some(empty)}; fill or remove what is empty"
        )
    if class_names is not None and set(class_names) != set(found):
        missing, extra = set(class_names) - set(found), set(found) - set(class_names)
        told = [f"lacks {_some(sorted(missing))}"] if missing else []
        told += [f"has besides {_some(sorted(extra))}"] if extra else []
        raise ValueError(
            f"{root} must have the {len(class_names)} class folders of the training data: it "
            + " and ".join(told)
        )
    order = list(found if class_names is None else class_names)
    number = {name: i for i, name in enumerate(order)}
    return np.array([number[name] for name in names], np.int64), order


def _manifest_labels(
    manifest: str, images: ImageIndex, class_names: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    lines = in_index_order(manifest, lambda record, where: (where, record.get("label")))
    assert len(lines) == len(images)
    places, values = [where for where, _ in lines], [label for _, label in lines]
    return number_labels(values, places.__getitem__, manifest, class_names)


def number_labels(
    values: Sequence[Any],
    where: Callable[[int], str],
    source: str,
    class_names: Sequence[str] | None,
) -> tuple[np.ndarray, list[str]]:
    """Numbers for classes that are given as numbers or names, the same kind throughout.

    Args:
        values: The class of every image, as its source gives it.
        where: Tells the place that ``values[i]`` comes from.
        source: What a message calls them all.
        class_names: As for `Labels`.

    Returns:
        int64 (len(values),); the names in the order of their numbers.

    Raises:
        ValueError: a value that is no class, or none of ``class_names``.
    """
    for i, label in enumerate(values):
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise ValueError(
                f"{where(i)}: expected a label, a class's number or name, got {label!r:.80}"
            )
    by_name = isinstance(values[0], str)
    for i, label in enumerate(values):
        if isinstance(label, str) != by_name:
            raise ValueError(
                f"{where(i)}: label {label!r} is a {'number' if by_name else 'name'}, "
                f"that of {where(0)} is not; use one kind throughout"
            )
    if class_names is None:
        highest = 0 if by_name else min(max(values), _HIGHEST_LABEL)
        order = sorted(set(values)) if by_name else [str(i) for i in range(highest + 1)]
    else:
        order = list(class_names)
    number = {name: i for i, name in enumerate(order)} if by_name else range(len(order))
    for i, label in enumerate(values):
        if label not in number:
            raise ValueError(
                f"{where(i)}: label {label!r} is out of range: {_known(order, by_name)}"
            )
    numbers = np.array([number[label] for label in values], np.int64)
    if unused := sorted(set(range(len(order))) - set(numbers.tolist())):
        _log.warning("%s: no image of class %s", source, _some([order[i] for i in unused]))
    return numbers, order


def _known(names: Sequence[str], by_name: bool) -> str:
    return f"the classes are {_some(names)}" if by_name else f"use 0 to {max(len(names) - 1, 0)}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
