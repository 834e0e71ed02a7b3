"""Originals and reconstructions, matched by relative path."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

# Under a folder of reconstructions, the originals as the model saw them: no samples.
ORIGIN_FOLDER = "origin"
_MAX_LISTED = 10


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def output_names(paths: Sequence[str], extension: str) -> dict[str, str]:
    """Where each image's reconstruction goes: its own relative path, with another extension.

    Images of one folder that differ in their extension only keep it, so that no reconstruction
    overwrites another: a.jpg and a.png become a.jpg.png and a.png.png.

    Args:
        paths: Relative POSIX paths of the images.
        extension: Of the files to write, without the dot.

    Returns:
        Path -> relative path to write.

    Raises:
        ValueError: a path starts with ``origin/``, which is kept for originals.
    """
    reserved = [path for path in paths if PurePosixPath(path).parts[0] == ORIGIN_FOLDER]
    if reserved:
        raise ValueError(
            f"{reserved[0]}: a top-level folder '{ORIGIN_FOLDER}' is where reconstructions keep "
            "their originals and is never evaluated; rename it"
        )
    stems = Counter(map(_stem, paths))
    return {
        path: f"{_stem(path) if stems[_stem(path)] == 1 else path}.{extension}" for path in paths
    }


def match_pairs(
    real: Sequence[str], generated: Sequence[str], is_subset: bool = False
) -> list[tuple[str, str]]:
    """Finds each original's reconstruction.

    The partner has the same relative path, or that path with an extension added, or with
    another extension (if one original alone has that stem). Generated files in the top-level
    folder ``origin`` are no samples.

    Args:
        real: Relative POSIX paths of the originals.
        generated: Relative POSIX paths of the reconstructions.
        is_subset: The originals are a part of all: reconstructions may be left over.

    Returns:
        (original, reconstruction) in the order of ``real``.

    Raises:
        ValueError: partners are missing on either side (listed), or ambiguous.
    """
    samples = [path for path in generated if PurePosixPath(path).parts[0] != ORIGIN_FOLDER]
    by_stem: dict[str, list[str]] = {}
    for path in samples:
        by_stem.setdefault(_stem(path), []).append(path)
    names, stems = set(samples), Counter(map(_stem, real))
    pairs, alone = [], []
    for path in real:
        candidates = [path] if path in names else by_stem.get(path, [])
        if not candidates and stems[_stem(path)] == 1:
            candidates = by_stem.get(_stem(path), [])
        if len(candidates) > 1:
            raise ValueError(
                f"{path} has several reconstructions: {', '.join(sorted(candidates))}; keep one"
            )
        if candidates:
            pairs.append((path, candidates[0]))
        else:
            alone.append(path)
    left_over = [] if is_subset else sorted(names - {partner for _, partner in pairs})
    problems = [
        _listing("originals have no reconstruction", alone),
        _listing("generated images have no original", left_over),
    ]
    if any(problems):
        raise ValueError("; ".join(filter(None, problems)))
    return pairs


def _listing(what: str, paths: list[str]) -> str:
    if not paths:
        return ""
    more = f" and {len(paths) - _MAX_LISTED} more" if len(paths) > _MAX_LISTED else ""
    return f"{len(paths)} {what}: {', '.join(paths[:_MAX_LISTED])}{more}"
