"""Originals and reconstructions: matched by relative path, read and measured in pairs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from wfimagevae.dataset import ValidImageDataset, valid_loader
from wfimagevae.engine.distributed import World
from wfimagevae.eval.evaluator import Evaluator

# Under a folder of reconstructions, the originals as the model saw them: no samples.
ORIGIN_FOLDER = "origin"
_MAX_LISTED = 10


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def output_names(paths: Sequence[str], extension: str) -> dict[str, str]:
    """Relative POSIX path -> that of its reconstruction: the same, with another extension.

    Images of one folder that differ in their extension only keep it, so that no reconstruction
    overwrites another: a.jpg and a.png become a.jpg.png and a.png.png. A path that starts with
    ``origin/`` is a ValueError.
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
    """Finds each original's reconstruction, by relative POSIX paths, in the originals' order.

    The partner has the same relative path, or that path with an extension added, or with another
    extension (if one original alone has that stem). Generated files in the top-level folder
    ``origin`` are no samples. Reconstructions may be left over if the originals ``is_subset`` of
    all; otherwise partners that are missing on either side (listed), or ambiguous, are a
    ValueError.
    """
    # Index the reconstructions by path and by stem.
    samples = [path for path in generated if PurePosixPath(path).parts[0] != ORIGIN_FOLDER]
    by_stem: dict[str, list[str]] = {}
    for path in samples:
        by_stem.setdefault(_stem(path), []).append(path)
    names, stems = set(samples), Counter(map(_stem, real))
    # Prefer the same path, then the path with an extension added, then an unambiguous stem.
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
    # List what is left over on both sides.
    left_over = [] if is_subset else sorted(names - {partner for _, partner in pairs})
    problems = []
    for what, paths in (
        ("originals have no reconstruction", alone),
        ("generated images have no original", left_over),
    ):
        more = f" and {len(paths) - _MAX_LISTED} more" if len(paths) > _MAX_LISTED else ""
        if paths:
            problems.append(f"{len(paths)} {what}: {', '.join(paths[:_MAX_LISTED])}{more}")
    if problems:
        raise ValueError("; ".join(problems))
    return pairs


class PairDataset(Dataset):
    """Originals, resized and cropped, beside their reconstructions as they stand in files.

    `valid_loader` takes it: a sample is like that of a `ValidImageDataset`, with six channels.
    `match_pairs` tells what ``is_subset`` means, and what is an error.
    """

    def __init__(self, real: ValidImageDataset, generated: ValidImageDataset, is_subset: bool):
        self.real, self.generated, self.crop_size = real, generated, real.crop_size
        position = {path: i for i, path in enumerate(generated.paths)}
        pairs = match_pairs(real.paths, generated.paths, is_subset)
        self._partners = [position[partner] for _, partner in pairs]

    def __len__(self) -> int:
        return len(self._partners)

    def __getitem__(self, i: int) -> dict:
        """``image``, original and reconstruction, (3 + 3, h, w) in [-1, 1]; ``path``; ``error``."""
        real, generated = self.real[i], self.generated[self._partners[i]]
        problem = _problem(real, generated)
        both = None if problem else torch.cat([real["image"], generated["image"]])
        return {"image": both, "path": real["path"], "error": problem}


def _problem(real: dict, generated: dict) -> str | None:
    for what, sample in (("original", real), ("generated image", generated)):
        if sample["error"]:
            return f"{what} {sample['path']}: {sample['error']}"
    (height, width), (gen_height, gen_width) = real["image"].shape[1:], generated["image"].shape[1:]
    if (height, width) != (gen_height, gen_width):
        return (
            f"generated image {generated['path']} has {gen_width}x{gen_height} pixels, its "
            f"original {width}x{height}: give --resolution and --crop_size as in the reconstruction"
        )
    return None


def evaluate_pairs(
    pairs: PairDataset, evaluator: Evaluator, batch_size: int, num_workers: int, world: World
) -> dict[str, float]:
    """Measures all pairs, each process its share; all return what `Evaluator.compute` does.

    An image that is unreadable, or a pair whose sizes differ, is a ValueError.
    """
    batch_size = batch_size if pairs.crop_size else 1  # native sizes differ
    loader = valid_loader(pairs, batch_size, num_workers, world.rank, world.size)
    total = len(loader.dataset)
    with tqdm(total=total, unit="img", desc="evaluate", disable=not world.is_main) as bar:
        for batch in loader:
            if batch["unreadable"]:
                _, problem = batch["unreadable"][0]
                raise ValueError(problem)
            real, generated = batch["image"].chunk(2, dim=1)  # (B, 3, h, w) each
            evaluator.update(real, generated)
            bar.update(len(real))
    return evaluator.compute()
