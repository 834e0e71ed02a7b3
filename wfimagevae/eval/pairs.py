"""Originals and reconstructions: matched by relative path, read and measured in pairs."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import torch
from torch.utils.data import Dataset

from wfimagevae.dataset import ValidImageDataset
from wfimagevae.engine.distributed import World, gather_objects
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.options import PairOptions
from wfimagevae.generate.image_folder import Unreadable, list_unreadable, read_batches
from wfimagevae.model.weight_files import listed

# Under a folder of reconstructions, the originals as the model saw them: no samples.
ORIGIN_FOLDER = "origin"
_MAX_READ = 1000
_OTHER_SIZE = "give --resolution and --crop_size as in the reconstruction"


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
    real: Sequence[str],
    generated: Sequence[str],
    is_subset: bool = False,
    is_damaged: Callable[[str], bool] = lambda path: False,
) -> list[tuple[str, str | None]]:
    """Finds each original's reconstruction, by relative POSIX paths, in the originals' order.

    The partner has the same relative path, or that path with an extension added, or with another
    extension (if one original alone has that stem). Generated files in the top-level folder
    ``origin`` are no samples. Reconstructions may be left over if the originals ``is_subset`` of
    all, and an original that ``is_damaged`` has no partner (None); otherwise partners that are
    missing on either side (listed), or ambiguous, are a ValueError.
    """
    # Index the reconstructions by path and by stem.
    samples = [path for path in generated if PurePosixPath(path).parts[0] != ORIGIN_FOLDER]
    by_stem: dict[str, list[str]] = {}
    for path in samples:
        by_stem.setdefault(_stem(path), []).append(path)
    names, stems = set(samples), Counter(map(_stem, real))
    # Prefer the same path, then the path with an extension added, then an unambiguous stem.
    pairs = []
    for path in real:
        candidates = [path] if path in names else by_stem.get(path, [])
        if not candidates and stems[_stem(path)] == 1:
            candidates = by_stem.get(_stem(path), [])
        if len(candidates) > 1:
            raise ValueError(
                f"{path} has several reconstructions: {', '.join(sorted(candidates))}; keep one"
            )
        pairs.append((path, candidates[0] if candidates else None))
    # List what is left over on both sides. Of many originals, not all are read for that.
    missing = [path for path, partner in pairs if partner is None]
    alone = [path for i, path in enumerate(missing) if i >= _MAX_READ or not is_damaged(path)]
    left_over = [] if is_subset else sorted(names - {partner for _, partner in pairs})
    sides = ("originals have no reconstruction", "generated images have no original")
    lists = [(what, paths) for what, paths in zip(sides, (alone, left_over), strict=True) if paths]
    if lists:
        raise ValueError("; ".join(f"{len(p)} {what}: {listed(p)}" for what, p in lists))
    return pairs


class PairDataset(Dataset):
    """Originals, resized and cropped, beside their reconstructions as they stand in files.

    A sample is like that of a `ValidImageDataset`, with six channels; arguments and errors are
    those of `match_pairs`. ``unreadable`` are the pairs that `evaluate_pairs` had to leave out.
    """

    unreadable: Unreadable = ()

    def __init__(self, real: ValidImageDataset, generated: ValidImageDataset, is_subset: bool):
        self.real, self.generated, self.crop_size = real, generated, real.crop_size
        place = {path: i for i, path in enumerate(real.paths)}
        position = {path: i for i, path in enumerate(generated.paths)} | {None: None}
        pairs = match_pairs(
            real.paths, generated.paths, is_subset, lambda path: bool(real[place[path]]["error"])
        )
        self._partners = [position[partner] for _, partner in pairs]

    def __len__(self) -> int:
        return len(self._partners)

    def __getitem__(self, i: int) -> dict:
        """``image``, original and reconstruction, (3 + 3, h, w) in [-1, 1]; ``path``; ``error``."""
        real, partner = self.real[i], self._partners[i]
        if real["error"]:
            return real
        if partner is None:  # readable by now
            return real | {"error": "it has no reconstruction"}
        generated = self.generated[partner]
        if generated["error"]:
            return real | {"error": f"generated image {generated['path']}: {generated['error']}"}
        (height, width), (h, w) = real["image"].shape[1:], generated["image"].shape[1:]
        if (height, width) != (h, w):
            sizes = f"has {w}x{h} pixels, its original {width}x{height}"
            return real | {"error": f"generated image {generated['path']} {sizes}: {_OTHER_SIZE}"}
        return real | {"image": torch.cat([real["image"], generated["image"]])}


def evaluate_pairs(
    pairs: PairDataset, evaluator: Evaluator, options: PairOptions, world: World
) -> dict[str, float]:
    """Measures all pairs, each process its share; all return what `Evaluator.compute` does.

    Unreadable images are left out and printed. A pair whose sizes differ is a ValueError.
    """
    found: Unreadable = []
    for batch in read_batches(pairs, options, world, "evaluate", found):
        evaluator.update(*batch["image"].chunk(2, dim=1))  # (B, 3, h, w) each
        if any(reason.endswith(_OTHER_SIZE) for _, reason in found):
            break
    pairs.unreadable = sorted(entry for part in gather_objects(found) for entry in part)
    for _, reason in pairs.unreadable:
        if reason.endswith(_OTHER_SIZE):
            raise ValueError(reason)
    list_unreadable(found, world)
    return evaluator.compute()
