"""Folders of images: reconstructing one, and comparing two."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from wfimagevae.dataset import ValidImageDataset, valid_loader
from wfimagevae.engine.distributed import World
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.pairs import ORIGIN_FOLDER, match_pairs
from wfimagevae.generate.autoencoders import Autoencoder
from wfimagevae.pictures.pixels import to_uint8
from wfimagevae.pictures.writer import ImageWriter


class PairDataset(Dataset):
    """Originals, resized and cropped, beside their reconstructions as they stand in files.

    `valid_loader` takes it: a sample is like that of a `ValidImageDataset`, with six channels.

    Args:
        real: The originals.
        generated: The reconstructions, at their native size.
        is_subset: ``real`` is a part of what was reconstructed.

    Raises:
        ValueError: partners are missing; see `match_pairs`.
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
    pairs: PairDataset, evaluator: Evaluator, batch_size: int, num_workers: int, here: World
) -> dict[str, float]:
    """Measures all pairs, each process its share; all processes return the same.

    Args:
        pairs: The pairs.
        evaluator: The metrics.
        batch_size: Pairs at once; 1 where sizes differ.
        num_workers: Reading processes.
        here: This process and the others.

    Returns:
        As `Evaluator.compute`.

    Raises:
        ValueError: an image is unreadable, or the sizes of a pair differ.
    """
    loader = valid_loader(pairs, batch_size, num_workers, here.rank, here.size)
    total = len(loader.dataset)
    with tqdm(total=total, unit="img", desc="evaluate", disable=not here.is_main) as bar:
        for batch in loader:
            if batch["unreadable"]:
                _, problem = batch["unreadable"][0]
                raise ValueError(problem)
            real, generated = batch["image"].chunk(2, dim=1)  # (B, 3, h, w) each
            evaluator.update(real, generated)
            bar.update(len(real))
    return evaluator.compute()


def check_output_folder(images: ValidImageDataset, source: str, folder: str) -> None:
    """Refuses a folder where reconstructions would mix with originals, or overwrite them.

    Args:
        images: The originals.
        source: Folder or manifest that they come from.
        folder: Where reconstructions are to go.

    Raises:
        ValueError: it is a file, lies inside a folder of originals, or holds an original.
    """
    root, target = Path(source).resolve(), Path(folder).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"--generated_image_dir {folder} is a file; name a folder")
    if root.is_dir() and root in (target, *target.parents):
        raise ValueError(
            f"--generated_image_dir {folder} lies inside --real_image_dir {source}; "
            "choose a folder outside"
        )
    index = images.images
    homes = {Path(index.path(i)).parent for i in range(len(index))}
    for home in sorted(homes):
        place = home.resolve()
        if target in (place, *place.parents):
            raise ValueError(
                f"--generated_image_dir {folder} holds originals, in {home}: they could be "
                "overwritten; choose another folder"
            )


def reconstruct_folder(
    autoencoder: Autoencoder,
    loader: DataLoader,
    names: Mapping[str, str],
    writer: ImageWriter,
    precision: str = "fp32",
    with_origin: bool = False,
    show_progress: bool = True,
) -> list[tuple[str, str]]:
    """Writes the reconstruction of every readable image.

    Args:
        autoencoder: The model.
        loader: Of `valid_loader`: this process's share of the images.
        names: Relative path -> relative path to write; see `output_names`.
        writer: Writes them.
        precision: fp32, bf16 or fp16.
        with_origin: Also write each original, as the model saw it, under ``origin/``.
        show_progress: Show a progress bar.

    Returns:
        (path, reason) of the images that could not be read.
    """
    unreadable: list[tuple[str, str]] = []
    total = len(loader.dataset)
    with tqdm(total=total, unit="img", desc="reconstruct", disable=not show_progress) as bar:
        for batch in loader:
            unreadable += batch["unreadable"]
            bar.update(len(batch["unreadable"]))
            if batch["image"] is None:
                continue
            decoded = to_uint8(autoencoder.reconstruct(batch["image"], precision)).cpu()
            for path, pixels in zip(batch["path"], decoded, strict=True):
                writer.write(names[path], pixels)
            if with_origin:
                for path, pixels in zip(batch["path"], to_uint8(batch["image"]), strict=True):
                    writer.write(f"{ORIGIN_FOLDER}/{names[path]}", pixels)
            bar.update(len(batch["path"]))
    return unreadable
