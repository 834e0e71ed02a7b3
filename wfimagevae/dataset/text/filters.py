"""Which images training leaves out, and better captions for those that stay."""

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wfimagevae.dataset.images.image_sets import ImageSet
from wfimagevae.dataset.images.index import json_lines
from wfimagevae.dataset.text.captions import CaptionTable, with_prefix

SIMILARITY_FIELDS = ("similarity", "clip_similarity", "clip_score")
NSFW_FIELDS = ("nsfw", "punsafe")
LANGUAGE_FIELDS = ("language", "lang", "lc")
_NSFW_WORDS = ("nsfw", "likely", "true", "yes", "1")
_log = logging.getLogger("wfimagevae")


@dataclass(frozen=True)
class SampleFilters:
    """What makes an image one to leave out. Fields are those of a manifest's line or json member.

    Attributes:
        min_image_size: Fewer pixels along the short side; 0 is any.
        max_aspect_ratio: Long side by short side above this; 0 is any.
        min_similarity: A field of `SIMILARITY_FIELDS` below this, or missing; None is any.
        skip_nsfw: A field of `NSFW_FIELDS` says so (``NSFW``, ``LIKELY``, true, above 0.5).
        languages: A field of `LANGUAGE_FIELDS` is none of these, or missing; empty is any.
        skip_words: A caption has one of these words, or phrases, whole and in any case.
    """

    min_image_size: int = 0
    max_aspect_ratio: float = 0.0
    min_similarity: float | None = None
    skip_nsfw: bool = False
    languages: tuple[str, ...] = ()
    skip_words: tuple[str, ...] = ()

    def __post_init__(self):
        if self.max_aspect_ratio and not self.max_aspect_ratio >= 1:
            raise ValueError(
                f"max_aspect_ratio is long side by short side: at least 1, or 0 for any, got "
                f"{self.max_aspect_ratio}"
            )
        if self.min_image_size < 0:
            raise ValueError(f"min_image_size must be 0 (any) or more, got {self.min_image_size}")

    @property
    def need_sizes(self) -> bool:
        """Whether they look at sizes."""
        return self.min_image_size > 0 or self.max_aspect_ratio > 0

    @property
    def need_records(self) -> bool:
        """Whether they look at fields."""
        return self.min_similarity is not None or self.skip_nsfw or bool(self.languages)

    @property
    def need_captions(self) -> bool:
        """Whether they look at captions."""
        return bool(self.skip_words)


def read_words(words: str) -> tuple[str, ...]:
    """Words to skip: those of a file, one a line, or those of a comma-separated list."""
    if not words:
        return ()
    path = os.path.expanduser(words)
    parts = Path(path).read_text("utf-8").splitlines() if os.path.isfile(path) else words.split(",")
    found = tuple(dict.fromkeys(_plain(part) for part in parts if part.strip()))
    if not found:
        raise ValueError(f"no word to skip in {words!r}: give a file of lines, or words, by commas")
    return found


def filtered(found: ImageSet, filters: SampleFilters, source: str) -> ImageSet:
    """The images that stay; how many are left out, and why, is logged.

    Args:
        found: Images with what the filters look at.
        filters: What to leave out. An image counts under the first reason that applies.
        source: What a message calls the images.

    Raises:
        ValueError: nothing stays, or no image has a field that a filter looks at.
    """
    reasons: Counter[str] = Counter()
    kept = np.ones(len(found), bool)
    checks = [*_size_checks(found, filters), *_record_checks(found, filters, source)]
    if filters.skip_words:
        checks.append(("skip_words", _words_check(found, filters.skip_words)))
    for reason, keep in checks:
        reasons[reason] = int((kept & ~keep).sum())
        kept &= keep
    if kept.all():
        return found
    told = ", ".join(f"{count} by {reason}" for reason, count in reasons.items() if count)
    if not kept.any():
        raise ValueError(f"the filters leave none of {len(found)} images of {source}: {told}")
    _log.info("%s: left out %d of %d images: %s", source, (~kept).sum(), len(found), told)
    return found.select(np.flatnonzero(kept))


def _size_checks(found: ImageSet, filters: SampleFilters) -> Iterator[tuple[str, np.ndarray]]:
    if not filters.need_sizes:
        return
    short, long = found.sizes.min(axis=1), found.sizes.max(axis=1)
    yield "an unreadable header", short > 0
    if filters.min_image_size:
        yield "min_image_size", short >= filters.min_image_size
    if filters.max_aspect_ratio:
        yield "max_aspect_ratio", long <= filters.max_aspect_ratio * short


def _record_checks(
    found: ImageSet, filters: SampleFilters, source: str
) -> list[tuple[str, np.ndarray]]:
    wanted = {
        "min_similarity": (SIMILARITY_FIELDS, filters.min_similarity is not None),
        "skip_nsfw": (NSFW_FIELDS, filters.skip_nsfw),
        "languages": (LANGUAGE_FIELDS, bool(filters.languages)),
    }
    wanted = {name: fields for name, (fields, is_on) in wanted.items() if is_on}
    if not wanted:
        return []
    count = len(found)
    keep = {name: np.ones(count, bool) for name in wanted}
    present = dict.fromkeys(wanted, 0)
    for i in range(count):
        record = found.record(i) if found.record else {}
        record = {str(key).lower(): value for key, value in record.items()}
        for name, fields in wanted.items():
            value = next((record[f] for f in fields if record.get(f) is not None), None)
            present[name] += value is not None
            keep[name][i] = _keeps(name, value, filters)
    for name, fields in wanted.items():
        if not present[name]:
            raise ValueError(
                f"--{name}: no image of {source} has a field {' or '.join(fields)} (in the json of "
                "its sample, or its line of the manifest); drop the filter"
            )
    return list(keep.items())


def _keeps(name: str, value: Any, filters: SampleFilters) -> bool:
    if name == "min_similarity":
        return _number(value) >= filters.min_similarity
    if name == "skip_nsfw":
        if isinstance(value, str) and value.strip().lower() in _NSFW_WORDS:
            return False
        return not _number(value) > 0.5
    return isinstance(value, str) and value.strip().lower() in filters.languages


def _number(value: Any) -> float:
    """A number, also where it is written as text; not a number otherwise."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _words_check(found: ImageSet, words: tuple[str, ...]) -> np.ndarray:
    patterns = {_plain(word): _whole(_plain(word)) for word in words}

    def has_any(text: str) -> bool:
        text = _plain(text)
        # To look for the letters alone first is many times faster.
        return any(word in text and pattern.search(text) for word, pattern in patterns.items())

    return np.array([not any(map(has_any, found.captions.all(i))) for i in range(len(found))], bool)


def _plain(text: str) -> str:
    """Text without what differs between spellings of a word: case, spaces, composed letters."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _whole(word: str) -> re.Pattern[str]:
    """Finds a word that is no part of a longer one."""
    # Chinese, Japanese and Korean write words, or their endings, without spaces between.
    before, after = (
        "" if unicodedata.east_asian_width(letter) == "W" else edge
        for letter, edge in ((word[0], r"(?<!\w)"), (word[-1], r"(?!\w)"))
    )
    return re.compile(before + re.escape(word) + after)


def read_better_captions(file: str | Path) -> dict[str, list[str]]:
    """Captions by name, from JSON lines ``{"key": ..., "caption": ...}`` (or ``"name"``).

    A name is an image's path below its folder, with or without extension, or a sample's key in
    shards, or its field ``name`` (the path that `ShardWriter` found it at). Where these fit several
    images, it is the absolute path, or SHARD::KEY with the absolute path or URL of the shard.
    Several lines of one name are several captions.

    Raises:
        ValueError: there is no such file, or a bad line, named as file:line.
    """
    better: dict[str, list[str]] = {}
    path = os.path.expanduser(file)
    try:
        for where, record, text in json_lines(path):
            name, caption = _better_caption(record, where, text)
            better.setdefault(name, []).append(caption)
    except FileNotFoundError:
        raise ValueError(f"better captions {path}: no such file") from None
    return better


def use_better_captions(
    found: ImageSet,
    better: Mapping[str, list[str]],
    prefix: str,
    source: str,
    owners: dict[str, str] | None = None,
) -> int:
    """Sets captions from a list in place of an image's own, where it has any.

    Args:
        found: Images, with captions or without.
        better: As `read_better_captions` gives them.
        prefix: Set before every caption, as for `Captions`.
        source: What a message calls the images.
        owners: Which image has which name of the list already, in other sources; added to.

    Returns:
        How many images have captions from the list.

    Raises:
        ValueError: a name of the list fits several images.
    """
    used = 0
    captions: list[list[str]] = []
    owners = {} if owners is None else owners
    for i in range(len(found)):
        name = next((alias for alias in _aliases(found, i) if alias in better), None)
        if name is not None:
            image = found.images.name(i)
            if owners.setdefault(name, image) != image:
                raise ValueError(
                    f"better captions: {name!r} fits several images, {owners[name]} and {image}; "
                    "name each in full, as here"
                )
        texts = better.get(name)
        used += texts is not None
        own = found.captions.all(i) if found.captions else []
        captions.append(own if texts is None else [with_prefix(prefix, text) for text in texts])
    if used:
        found.captions = CaptionTable(captions)
    _log.info("%s: better captions for %d of %d images", source, used, len(found))
    return used


def _aliases(found: ImageSet, i: int) -> list[str]:
    """Names of an image, one that no other has first; in shards also its record's path."""
    aliases = [found.images.name(i), *found.images.aliases(i)]
    name = found.record(i).get("name") if found.record and found.shard is not None else None
    return [*aliases, name, os.path.splitext(name)[0]] if isinstance(name, str) else aliases


def _better_caption(record: Any, where: str, text: str) -> tuple[str, str]:
    if isinstance(record, dict):
        name, caption = record.get("key", record.get("name")), record.get("caption")
        if isinstance(name, str) and isinstance(caption, str) and caption.strip():
            return name, " ".join(caption.split())
    raise ValueError(f'{where}: expected {{"key": ..., "caption": ...}}, got {text:.80}')
