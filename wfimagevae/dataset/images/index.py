"""Which images there are: a folder scanned recursively, or a JSON-lines manifest."""

import itertools
import json
import logging
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wfimagevae.dataset.arrays import IndexCache, PackedTexts, from_json_array, json_array
from wfimagevae.dataset.images.decode import HAS_HEIC, HEIC_INSTALL
from wfimagevae.dataset.protocol import Images
from wfimagevae.files import parse_json, plain_text, text_lines

_HEIC = (".heic", ".heif")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".jpe", ".jfif", ".gif", ".tif", ".tiff", ".avif"),
    *(_HEIC if HAS_HEIC else ()),
)
# What else is an image by its name, but not to us: other formats, raw files, IMG.jpg_large.
_IMAGE_LIKE = re.compile(
    r".*\.(hei[cf]s?|jxl|jxr|jp2|j2k|jpx|p[bgpnf]m|psd|psb|exr|hdr|dds|tga|ico|svgz?|qoi|apng|xcf|dng"
    r"|cr[23]|ne[fw]|arw|raf|orf|rw2|pef|srw|(jpe?g|jfif|png|webp|bmp|gif|tiff?|avif)[^.\s]+)"
)
MANIFEST_KEYS = ("image_path", "path", "target")

_CACHE_VERSION = [4, *EXTENSIONS]
_TOLD = 12  # extensions that the log lists
_SETTLED_NS = 2 * 10**9
_TELL_EVERY = 60.0  # seconds of listing
_log = logging.getLogger("wfimagevae")


@dataclass(eq=False)
class ImageIndex(Images):
    """Paths of images, which come sorted by their bytes, in two arrays.

    Millions of Python strings would end up once in every forked worker, because counting references
    writes to their memory pages. Arrays stay shared. The entries are encoded as the file system
    does, and relative to ``root``, an absolute folder; absolute ones stay so. ``lines`` are the
    numbers, from 0 on, of their lines in a manifest, blank ones left out.
    """

    root: str
    entries: PackedTexts
    lines: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def path(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.entries[i]))

    name = file = path

    def aliases(self, i: int) -> list[str]:
        name = self.relative(i)
        return [name, os.path.splitext(name)[0]]

    def select(self, indices: Sequence[int]) -> "ImageIndex":
        return ImageIndex(self.root, self.entries.select(indices))

    def relative(self, i: int) -> str:
        """Path of image ``i`` below the root, with forward slashes.

        For a manifest's image outside its folder: the absolute path without its first slash, so
        that what is written under this name stays inside the output folder.
        """
        full, prefix = os.path.normpath(self.path(i)), os.path.join(self.root, "")
        if full.startswith(prefix):
            name = full[len(prefix) :]
        else:
            name = os.path.splitdrive(full)[1].lstrip(os.sep)
        return name.replace(os.sep, "/")


def index_images(source: str | Path, cache_dir: str | Path | None = None) -> ImageIndex:
    """Lists the images of a folder or manifest.

    A folder is scanned recursively, links followed, for the file names in `EXTENSIONS`, in any
    case; names that start with a dot are skipped. How many there are, and what is left out though
    its name is that of an image, is logged. The listing is kept in the cache (see
    `IndexCache`), and only folders that changed since are read again. Nothing is written into
    ``source``.

    A manifest has JSON lines with a path under one of `MANIFEST_KEYS`, absolute or relative to the
    manifest's folder; a bad line is named as file:line.
    """
    root, lines, others = os.path.abspath(os.path.expanduser(source)), None, ""
    if os.path.isdir(root):
        folders = _scan(root, cache_dir)
        left_out = sum((Counter(kinds) for *_, kinds in folders.values()), Counter())
        counts = [
            f"{count} {kind}{f' ({HEIC_INSTALL})' if kind in _HEIC else ''}"
            for kind, count in left_out.most_common(_TOLD)
        ]
        others = f"; left out by their extension: {', '.join(counts)}" if counts else ""
        entries = PackedTexts.pack(_paths(folders))
        folder, hint = root, f"looked for {', '.join(EXTENSIONS)} in any case, also in sub-folders"
        if not len(entries) and (shard := next(Path(root).rglob("*.tar"), None)):
            hint += f"; training reads shards such as {shard} if you name the folder they are in"
    elif root.lower().endswith(".tar"):
        raise ValueError(
            f"{root} is a shard, which training reads as it is; here give a folder of images or a "
            "JSON-lines manifest (shards cannot be cached)"
        )
    elif os.path.isfile(root):
        entries = PackedTexts.pack(os.fsencode(path) for _, path, _ in manifest_records(root))
        lines = entries.argsort()
        entries = entries.select(lines)
        folder, hint = os.path.dirname(root), "expected a JSON-lines manifest, and it has no lines"
    else:
        raise ValueError(f"image path {root} is neither a folder nor a manifest file")
    if not len(entries):
        raise ValueError(f"no images in {root}: {hint}{others}")
    _log.info("%s: %d images%s", root, len(entries), others)
    return ImageIndex(folder, entries, lines)


def manifest_records(manifest: str) -> Iterator[tuple[str, str, dict]]:
    """Each line of a manifest: where it is (file:line), its image's path, and the whole object."""
    if manifest.lower().endswith(EXTENSIONS):
        raise ValueError(
            f"{manifest} is an image; give a folder of images or a JSON-lines manifest"
        )
    for where, record, text in json_lines(manifest):
        values = map(record.get, MANIFEST_KEYS) if isinstance(record, dict) else ()
        path = next(filter(_is_path, values), None)
        if path is None:
            raise ValueError(
                f"{where}: expected an object with a path under {', '.join(MANIFEST_KEYS)}, got "
                f"{text:.80}"
            )
        yield where, path, record


def _is_path(value: Any) -> bool:
    try:
        return bool(value) and b"\0" not in os.fsencode(value) and not value.startswith("pipe:")
    except (TypeError, UnicodeEncodeError):  # half a pair of surrogates, which JSON can hold
        return False


def manifest_values(
    manifest: str, images: ImageIndex, pick: Callable[[dict], Any]
) -> tuple[Callable[[int], Any], Callable[[int], str]]:
    """What ``pick(record)`` takes of the line of each image of a manifest, by the image's number.

    Also gives the function that tells where the line of an image is (file:line).
    """
    values = (json.dumps(pick(record)).encode() for *_, record in manifest_records(manifest))
    texts = PackedTexts.pack(values).select(images.lines)

    def where(i: int) -> str:
        numbers = (n for n, line in enumerate(text_lines(manifest), 1) if line.strip())
        return f"{manifest}:{next(itertools.islice(numbers, int(images.lines[i]), None))}"

    return lambda i: json.loads(texts[i]), where


def json_lines(path: str) -> Iterator[tuple[str, Any, str]]:
    """The lines of a file that are not blank: where (file:line), its value, and its text."""
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            text = plain_text(line).strip()
            value = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{where}: not a line of JSON ({error})") from None
        yield where, value, text


def _scan(root: str, cache_dir: str | Path | None) -> dict[str, list]:
    """The folders below one, itself too, by relative path ("" or "a/b/").

    Of each: a stamp, which is None where it changed too recently for the stamp to tell; the names
    of its images, each ended by a zero byte; its folders; and what it has of other extensions. What
    changed since the last time is listed anew.
    """
    cache = IndexCache(cache_dir, "image lists", [root])
    folders: dict[str, list] = {}
    pending: list[tuple[str, frozenset]] = [("", frozenset())]
    told = time.monotonic()
    with cache.locked(root):  # the processes of a machine do the work once
        before = cache.load(root, _CACHE_VERSION, _listed_before) or {}
        while pending:
            place, above = pending.pop()
            path = os.path.join(root, place)
            try:
                status = os.stat(path)
                if not stat.S_ISDIR(status.st_mode) or (status.st_dev, status.st_ino) in above:
                    continue  # a link to a file, or back to a folder that contains it
                stamp = [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
                is_same = place in before and before[place][0] == stamp
                folders[place] = before[place] if is_same else _list(path, stamp)
            except OSError as error:
                if not place:
                    raise
                _log.warning("left out folder %s: %s", path, error.strerror)
                continue
            inside = above | {(status.st_dev, status.st_ino)}
            pending += [(f"{place}{name}/", inside) for name in folders[place][2]]
            if time.monotonic() > told + _TELL_EVERY:  # whichever process it is that lists
                told = time.monotonic()
                count = sum(names.count(b"\0") for _, names, *_ in folders.values())
                _log.warning("%s: listed %d images in %d folders", root, count, len(folders))
        if folders != before:
            facts = {p: [stamp, len(names), *rest] for p, (stamp, names, *rest) in folders.items()}
            names = b"".join(names for _, names, *_ in folders.values())
            arrays = {"folders": json_array(facts), "names": np.frombuffer(names, np.uint8)}
            cache.save(root, _CACHE_VERSION, arrays)
    return folders


def _listed_before(arrays: Mapping[str, np.ndarray]) -> dict[str, list]:
    folders, names, end = from_json_array(arrays["folders"]), arrays["names"], 0
    for folder in folders.values():
        stamp, size, inside, kinds = folder
        folder[1] = names[end : end + size].tobytes()
        end += size
        "".join([*inside, *kinds])  # all is text
        sum(kinds.values(), *([] if stamp is None else [sum(stamp)]))
        if len(folder[1]) != size or not folder[1].endswith(b"\0" * (size > 0)):
            raise ValueError("not as many names as there were")
    return folders


def _paths(folders: dict[str, list]) -> Iterator[bytes]:
    """The paths of the images in some folders, sorted by their bytes; the folders are used up."""
    pending = [b""]  # images, and folders, which end with a slash; the next one last
    while pending:
        path = pending.pop()
        if path and not path.endswith(b"/"):
            yield path
        elif folder := folders.pop(os.fsdecode(path), None):  # one that could be read
            _, names, inside, _ = folder
            children = names.split(b"\0")[:-1] + [os.fsencode(f"{name}/") for name in inside]
            pending += [path + child for child in sorted(children, reverse=True)]


def _list(path: str, stamp: list[int]) -> list:
    is_settled = time.time_ns() - max(stamp[1:]) > _SETTLED_NS
    images, folders = bytearray(), []
    left_out: Counter[str] = Counter()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name, is_link = entry.name.lower(), entry.is_symlink()
            is_image = name.endswith(EXTENSIONS)
            is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
            # Where a link leads can change without a trace here: `_scan` looks each time.
            if is_folder or (is_link and not is_image):
                folders.append(entry.name)
            elif is_image:
                images += os.fsencode(entry.name) + b"\0"
            if not (is_folder or is_image) and _IMAGE_LIKE.fullmatch(name):
                left_out[os.path.splitext(name)[1]] += 1
    return [stamp if is_settled else None, bytes(images), folders, left_out]
