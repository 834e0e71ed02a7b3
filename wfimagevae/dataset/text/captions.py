"""Captions of images: text files beside them, a list of names and captions, or a manifest's."""

import itertools
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wfimagevae.dataset.arrays import PackedTexts
from wfimagevae.dataset.images.decode import open_now
from wfimagevae.dataset.images.index import ImageIndex, manifest_values
from wfimagevae.dataset.options import CAPTION_KINDS
from wfimagevae.dataset.order import stable_seed
from wfimagevae.files import plain_text, text_lines

MOST_TEXT_BYTES = 2**20  # a longer text is no caption
TOO_LONG = "longer than 1 MiB, which is no caption"
_NAMED = 10  # of captions that cannot be read
_READERS = 16  # sidecar files read at once: over a network each takes its time
_Item = TypeVar("_Item")
_log = logging.getLogger("wfimagevae")


@dataclass(frozen=True)
class Captions:
    """Where the captions of images come from.

    Attributes:
        kind: ``none``; ``sidecar``: the file of an image's name that ends in .txt, each non-empty
            line a caption; ``filename``: its own name, without the number that may begin it, ``_``
            for blanks; ``manifest``: the field ``caption`` of its line, a string or a list of
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


def text_captions(content: bytes) -> list[str]:
    """The `caption_lines` of a file, or of a member of a shard; ValueError if it is no text."""
    if len(content) > MOST_TEXT_BYTES:
        raise ValueError(TOO_LONG)
    return caption_lines(plain_text(content))


def readable(
    read: Callable[[_Item], list[str]], items: Iterable[_Item], where: Callable[[int], str]
) -> Iterator[list[str]]:
    """``read(item)`` of each; none of those where it fails, which one warning counts and names.

    ``where(i)`` tells the place of item ``i``.
    """
    count, faults = 0, []
    for count, item in enumerate(items, 1):
        try:
            lines = read(item)
        except (ValueError, OSError) as error:
            faults.append((count - 1, getattr(error, "strerror", None) or error))
            lines = []
        yield lines
    if faults:
        named = "; ".join(f"{where(i)}: {reason}" for i, reason in faults[:_NAMED])
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        _log.warning("%d of %d captions are left out: %s%s", len(faults), count, named, more)


def read_captions(source: str | Path, images: ImageIndex, captions: Captions) -> CaptionTable:
    """The captions of every image of a folder or manifest.

    Images without any, which are taken without text, are warned of.
    """
    source = os.path.abspath(os.path.expanduser(source))
    if captions.kind == "sidecar":
        lines, place = _sidecars(images), f"{source}: looked for a .txt file beside each image"
    elif captions.kind == "filename":
        lines, place = map(_name_captions, map(images.relative, range(len(images)))), "their names"
    elif captions.kind == "manifest":
        if os.path.isdir(source):
            raise ValueError(
                f"captions 'manifest' cannot come from {source}: it is a folder; use 'sidecar' "
                "or a file of name<TAB>caption"
            )
        caption, where = manifest_values(source, images, lambda line: line.get("caption"))
        lines = readable(field_captions, map(caption, range(len(images))), where)
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
    def path(i: int) -> str:
        return os.path.splitext(images.path(i))[0] + ".txt"

    def started() -> Iterator[Future[list[str]]]:
        numbers = iter(range(len(images)))
        with ThreadPoolExecutor(_READERS) as pool:
            while batch := list(itertools.islice(numbers, 4096)):
                yield from [pool.submit(_sidecar, path(i)) for i in batch]

    return readable(Future.result, started(), path)


def _sidecar(path: str) -> list[str]:
    try:
        with open(path, "rb", opener=open_now) as file:
            return text_captions(file.read(MOST_TEXT_BYTES + 1))
    except FileNotFoundError:
        return []


def _name_captions(path: str) -> list[str]:
    words = os.path.splitext(os.path.basename(path))[0].replace("_", " ").split()
    return caption_lines(" ".join(words[1:] if words and words[0].isdigit() else words))


def field_captions(value: Any, by_line: bool = False) -> list[str]:
    """The captions in a field of a JSON object: a text or a list of them; ValueError for others.

    ``by_line`` each line of a text that is in no list is one.
    """
    texts = value if isinstance(value, list) else [] if value is None else [value]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"a caption is text or a list of texts, got {value!r:.80}")
        plain_text(text.encode("utf-8", "surrogatepass"))
    if by_line and texts is not value:
        return caption_lines("".join(texts))
    return [" ".join(text.split()) for text in texts if text.strip()]


def _listed(images: ImageIndex, path: str) -> Iterator[list[str]]:
    """The captions that a file of lines ``name<TAB>caption`` has of each image."""
    lines = enumerate(text_lines(path), 1)
    rows = [(n, *line.rstrip(b"\r\n").partition(b"\t")) for n, line in lines if line.strip()]
    for number, name, tab, _ in rows:
        if not tab or b"\0" in name:
            text = os.fsdecode(name)
            raise ValueError(f"{path}:{number}: expected name<TAB>caption, got {text:.80}")
    by_name: dict[str, list[str]] = {}
    captions = (caption for *_, caption in rows)
    found = readable(text_captions, captions, lambda i: f"{path}:{rows[i][0]}")
    for (_, name, *_), texts in zip(rows, found, strict=True):
        name = os.fsdecode(name).strip().removeprefix("./")  # any bytes may be a name
        by_name.setdefault(name, []).extend(texts)
    for i in range(len(images)):
        name, bare_name = images.aliases(i)
        yield by_name.get(name, []) + by_name.get(bare_name, [])
