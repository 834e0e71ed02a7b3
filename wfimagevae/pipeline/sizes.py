"""Sizes of samples, as a file gives them. No torch here."""

from collections.abc import Sequence


def parse_sizes(sizes: Sequence[int | str | Sequence[int]]) -> list[tuple[int, int]]:
    """Sizes of a file, ``512``, ``768x512`` or ``[768, 512]``, as (width, height)."""
    return [parse_size(size) for size in sizes]


def parse_size(size: int | str | Sequence[int]) -> tuple[int, int]:
    """One of them; ValueError if it is none."""
    if isinstance(size, int):
        return size, size
    parts = size.lower().split("x") if isinstance(size, str) else list(size)
    if len(parts) != 2 or not all(str(part).strip().isdigit() and int(part) for part in parts):
        raise ValueError(f"sample size {size!r}: write 512, 768x512 or [768, 512]")
    return int(parts[0]), int(parts[1])
