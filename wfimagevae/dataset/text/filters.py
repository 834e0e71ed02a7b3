"""Which images training leaves out, and better captions for those that stay."""

import logging
import math
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wfimagevae.dataset.images.image_sets import ImageSet
from wfimagevae.dataset.images.index import json_lines
from wfimagevae.dataset.options import StreamOptions
from wfimagevae.dataset.text.captions import CaptionTable, with_prefix
from wfimagevae.files import read_text

SIMILARITY_FIELDS = ("similarity", "clip_similarity", "clip_score")
NSFW_FIELDS = ("nsfw", "punsafe")
LANGUAGE_FIELDS = ("language", "lang", "lc")
# In lines of better captions: a caption and its score.
_SCORES = {
    "caption": "generated_caption_clip_score",
    "original_caption": "original_caption_clip_score",
}
_NSFW_WORDS = ("nsfw", "likely", "true", "yes", "1")
_log = logging.getLogger("wfimagevae")


def read_words(words: str) -> tuple[str, ...]:
    """Words to skip: those of a file, one a line, or those of a comma-separated list."""
    path = os.path.expanduser(words)
    parts = read_text(path).splitlines() if os.path.isfile(path) else words.split(",")
    plain = tuple(dict.fromkeys(_plain(part) for part in parts if part.strip()))
    if not plain:
        raise ValueError(f"no word to skip in {words!r}: give a file of lines, or words, by commas")
    return plain


def filtered(samples: ImageSet, options: StreamOptions, source: str) -> ImageSet:
    """The images that stay; how many are left out, and why, is logged.

    An image is left out for the first of: too few pixels along the short side; a long side of too
    many short ones (both by the fields of sizes, if they are asked for and there); a field of
    `SIMILARITY_FIELDS` that is too low, or missing; a field of `NSFW_FIELDS` that says so
    (``NSFW``, ``LIKELY``, true, above 0.5); a field of `LANGUAGE_FIELDS` that is another one, or
    missing; a word or phrase in a caption, whole and in any case; no caption.
    """
    # Fields of a record, of which the first there counts, and what of them stays.
    filters: dict[str, tuple[tuple[str, ...], Callable[[Any], bool]]] = {}
    if (least := options.min_similarity) is not None:
        filters["min_similarity"] = SIMILARITY_FIELDS, lambda value: _number(value) >= least
    if options.skip_nsfw:
        is_safe = lambda v: _word(v) not in _NSFW_WORDS and not _number(v) > 0.5  # noqa: E731
        filters["skip_nsfw"] = NSFW_FIELDS, is_safe
    if languages := [_word(language) for language in options.languages]:
        filters["languages"] = LANGUAGE_FIELDS, lambda value: _word(value) in languages
    wanted = {name: fields for name, (fields, _) in filters.items()}
    wanted |= {name: (name.lower(),) for name in options.size_fields or ()}
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    # One pass over the records, which are parsed anew each time they are asked for.
    for i in range(len(samples) if wanted else 0):
        record = samples.record(i) if samples.record else {}
        record = {str(key).lower(): value for key, value in record.items()}
        for name, fields in wanted.items():
            values = (record.get(field) for field in fields)
            columns[name].append(next((v for v in values if v is not None), None))
    # What each filter would keep, in the order of the reasons.
    checks: dict[str, np.ndarray] = {}
    if options.min_image_size or options.max_aspect_ratio:
        checks["an unreadable header"] = samples.sizes.min(axis=1) > 0
        sizes = samples.sizes.astype(np.float64)
        if options.size_fields:
            told = np.array([list(map(_number, columns[n])) for n in options.size_fields]).T
            sizes = np.where((told > 0).all(axis=1, keepdims=True), told, sizes)
        short, long = sizes.min(axis=1), sizes.max(axis=1)
        if options.min_image_size:
            checks["min_image_size"] = short >= options.min_image_size
        if options.max_aspect_ratio:
            checks["max_aspect_ratio"] = long <= options.max_aspect_ratio * short
    for name, (fields, keeps) in filters.items():
        if all(value is None for value in columns[name]):
            raise ValueError(
                f"--{name}: no image of {source} has a field {' or '.join(fields)} (in the json of "
                "its sample, or its line of the manifest); drop the filter"
                f"{' (--no_skip_nsfw)' * (name == 'skip_nsfw')}"
            )
        checks[name] = np.array(list(map(keeps, columns[name])), bool)
    if options.skip_words:
        checks["skip_words"] = _has_none_of(samples, read_words(options.skip_words))
    if options.require_caption != "no":
        checks["require_caption"] = np.ones(len(samples), bool)
        checks["require_caption"][samples.captions.without()] = False

    # An image counts under the first reason that applies.
    kept, reasons = np.ones(len(samples), bool), []
    for reason, keep in checks.items():
        if count := int((kept & ~keep).sum()):
            reasons.append(f"{count} by {reason}")
        kept &= keep
    if kept.all():
        return samples
    counts = ", ".join(reasons)
    if not kept.any():
        raise ValueError(f"the filters leave none of {len(samples)} images of {source}: {counts}")
    _log.info("%s: left out %d of %d images: %s", source, (~kept).sum(), len(samples), counts)
    return samples.select(np.flatnonzero(kept))


def _word(value: Any) -> str | None:
    return value.strip().lower() if isinstance(value, str) else None


def _number(value: Any) -> float:
    """A number, also where it is written as text; not a number otherwise."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _has_none_of(samples: ImageSet, words: tuple[str, ...]) -> np.ndarray:
    patterns = {word: _whole(word) for word in words}

    def has_any(text: str) -> bool:
        text = _plain(text)
        # To look for the letters alone first is many times faster.
        return any(word in text and pattern.search(text) for word, pattern in patterns.items())

    captions = map(samples.captions.all, range(len(samples)))
    return np.array([not any(map(has_any, lines)) for lines in captions], bool)


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


class BetterCaptions:
    """Captions by name, from JSON lines ``{"key": ..., "caption": ...}`` (or ``"name"``).

    A name is an image's path below its folder, with or without extension, or a sample's key in
    shards, or its field ``name`` (the path that `ShardWriter` found it at). Where these fit several
    images, of all sets that use the list, it is the absolute path, or SHARD::KEY with the absolute
    path or URL of the shard. Several lines of one name are several captions. A bad line is named
    as file:line. With a ``min_score`` a line gives its ``caption`` or ``original_caption``, the one
    of the higher score, if that is at least so much; one without both scores gives none. Other
    captions of images do not count where the list stands ``alone``.
    """

    def __init__(self, file: str | Path, min_score: float | None = None, alone: bool = False):
        self._file, self._captions = os.path.expanduser(file), {}
        self._is_alone = alone
        self._owners: dict[str, str] = {}  # the image that has a name
        try:
            for where, record, text in json_lines(self._file):
                fields = record if isinstance(record, dict) else {}
                name, best = fields.get("key", fields.get("name")), "caption"
                if min_score is not None:
                    scores = {kind: _number(fields.get(score)) for kind, score in _SCORES.items()}
                    best = max(scores, key=scores.get)
                    if math.isnan(sum(scores.values())) or scores[best] < min_score:
                        continue
                caption = fields.get(best)
                is_text = isinstance(name, str) and isinstance(caption, str)
                if not (is_text and caption.strip()):
                    raise ValueError(
                        f'{where}: expected {{"key": ..., "caption": ...}}, got {text:.80}'
                    )
                self._captions.setdefault(name, []).append(" ".join(caption.split()))
        except FileNotFoundError:
            raise ValueError(f"better captions {self._file}: no such file") from None

    def use(self, samples: ImageSet, prefix: str, source: str) -> int:
        """Sets the list's captions in place of images' own; returns how many images it names.

        ``prefix`` is set before each, as for `Captions`; ``source`` names the images in messages.
        """
        used = 0
        captions: list[list[str]] = []
        for i in range(len(samples)):
            name = next((name for name in _aliases(samples, i) if name in self._captions), None)
            if name is None:
                own = samples.captions and not self._is_alone
                captions.append(samples.captions.all(i) if own else [])
                continue
            image = samples.images.name(i)
            if self._owners.setdefault(name, image) != image:
                raise ValueError(
                    f"better captions: {name!r} fits several images, {self._owners[name]} and "
                    f"{image}; name each in full, as here"
                )
            captions.append([with_prefix(prefix, text) for text in self._captions[name]])
            used += 1
        if used or self._is_alone:
            samples.captions = CaptionTable(captions)
        _log.info("%s: better captions for %d of %d images", source, used, len(samples))
        return used

    def check_used(self) -> None:
        if not self._owners:
            names = ", ".join(list(self._captions)[:2])
            raise ValueError(
                f"--better_captions {self._file} has no caption for any image; its names are "
                f"{names} ..."
            )


def _aliases(samples: ImageSet, i: int) -> list[str]:
    """Names of an image, one that no other has first; in shards also its record's path."""
    aliases = [samples.images.name(i), *samples.images.aliases(i)]
    is_in_shard = samples.record and samples.shard is not None
    name = samples.record(i).get("name") if is_in_shard else None
    return [*aliases, name, os.path.splitext(name)[0]] if isinstance(name, str) else aliases
