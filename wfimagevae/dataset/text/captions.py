"""Captions of images: text files beside them, a list of names and captions, or a manifest's."""

import itertools
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wfimagevae.dataset.images.index import ImageIndex, in_index_order
from wfimagevae.dataset.order import stable_seed
from wfimagevae.dataset.text.packed_texts import PackedTexts

CAPTION_KINDS = ("none", "sidecar", "manifest")
_READERS = 16  # sidecar files read at once: over a network each takes its time
_log = logging.getLogger("wfimagevae")


@dataclass(frozen=True)
class Captions:
    """Where the captions of images come from.

    Attributes:
        kind: ``none``; ``sidecar``: the file of an image's name that ends in .txt, each non-empty
            line a caption; ``manifest``: the field ``caption`` of its line, a string or a list of
            them; or the path of a file of lines ``name<TAB>caption``, whose names are relative to
            the image folder, with or without extension, and may come again.
        prefix: Set before every caption, ". " between them.
    """

    kind: str = "none"
    prefix: str = ""

    @property
    def file(self) -> str:
        """The path of the file of names and captions; ValueError if there is none."""
        path = os.path.abspath(os.path.expanduser(self.kind))
        if not os.path.isfile(path):
            raise ValueError(
                f"captions {self.kind!r}: there is no such file; give one, or "
                f"{', '.join(CAPTION_KINDS)}"
            )
        return path


class CaptionTable:
    """The captions, none or several, of many images in three arrays (see `ImageIndex`)."""

    def __init__(self, captions: Iterable[Sequence[str]], prefix: str = ""):
        counts = array("q")

        def encoded() -> Iterator[bytes]:
            for lines in captions:
                counts.append(len(lines))
                yield from (with_prefix(prefix, line).encode("utf-8", "replace") for line in lines)

        self._lines = PackedTexts.pack(encoded())
        self._firsts = np.concatenate([[0], np.cumsum(np.array(counts, np.int64))])

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def all(self, index: int) -> list[str]:
        lines = range(*self._firsts[index : index + 2])
        return [self._lines[line].decode("utf-8") for line in lines]

    def choose(self, index: int, position: int, seed: int) -> int | None:
        """Which of its captions an image has, by (seed, position) alone; None if it has none."""
        first, last = self._firsts[index : index + 2]
        if first == last:
            return None
        return stable_seed(seed, "caption", position) % int(last - first)

    def pick(self, index: int, position: int, seed: int) -> str:
        chosen = self.choose(index, position, seed)
        return "" if chosen is None else self.all(index)[chosen]

    def without(self) -> np.ndarray:
        return np.flatnonzero(np.diff(self._firsts) == 0)


def with_prefix(prefix: str, caption: str) -> str:
    """``prefix. caption``; either alone where the other is empty."""
    return f"{prefix}. {caption}" if prefix and caption else prefix or caption


def caption_lines(text: str) -> list[str]:
    """The captions in a text: its lines that are not blank, without the blanks at their ends."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_captions(source: str | Path, images: ImageIndex, captions: Captions) -> CaptionTable:
    """The captions of every image of a folder or manifest.

    Images without any, which are taken without text, are warned of.
    """
    source = os.path.abspath(os.path.expanduser(source))
    if captions.kind == "sidecar":
        lines, place = _sidecars(images), f"{source}: looked for a .txt file beside each image"
    elif captions.kind == "manifest":
        if os.path.isdir(source):
            raise ValueError(
                f"captions 'manifest' cannot come from {source}: it is a folder; use 'sidecar' "
                "or a file of name<TAB>caption"
            )
        lines = in_index_order(source, lambda record, where: _texts(record.get("caption"), where))
        place = f"{source}: looked for a field 'caption'"
    else:
        lines = _listed(images, captions.file)
        place = f"{captions.file}: looked for names relative to {images.root}"
    table = CaptionTable(lines, captions.prefix)
    assert len(table) == len(images)
    check_captions(table, images.relative, place)
    return table


def check_captions(table: CaptionTable, name: Callable[[int], str], place: str) -> None:
    """Warns of images without a caption; ValueError, naming ``place``, if no image has any."""
    without = table.without()
    if not len(without):
        return
    example = f"for example {name(int(without[0]))} ({place})"
    if len(without) == len(table):
        raise ValueError(f"none of {len(table)} images has a caption, {example}")
    _log.warning(
        "%d of %d images have no caption and are taken without text, %s",
        *(len(without), len(table), example),
    )


def _sidecars(images: ImageIndex) -> Iterator[list[str]]:
    paths = (os.path.splitext(images.path(i))[0] + ".txt" for i in range(len(images)))
    with ThreadPoolExecutor(_READERS) as pool:
        while batch := list(itertools.islice(paths, 4096)):
            yield from pool.map(_sidecar, batch)


def _sidecar(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            return caption_lines(_decoded(file.read(), path))
    except FileNotFoundError:
        return []


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: captions are UTF-8 text ({error})") from None


def _texts(value: Any, where: str) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for text in values:
        if not isinstance(text, str):
            raise ValueError(f"{where}: a caption is text or a list of texts, got {value!r:.80}")
    return [" ".join(text.split()) for text in values if text.strip()]


def _listed(images: ImageIndex, path: str) -> Iterator[list[str]]:
    """The captions that a file of lines ``name<TAB>caption`` has of each image."""
    by_name: dict[str, list[str]] = {}
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            text = _decoded(line, f"{path}:{number}").rstrip("\r\n")
            name, tab, caption = text.partition("\t")
            if not tab:
                raise ValueError(f"{path}:{number}: expected name<TAB>caption, got {text:.80}")
            name = name.strip().removeprefix("./")
            by_name.setdefault(name, []).extend(caption_lines(caption))
    for i in range(len(images)):
        name, bare_name = images.aliases(i)
        yield by_name.get(name, []) + by_name.get(bare_name, [])
