"""The images of a folder as commands read them: each process its share, unreadable ones told."""

import sys
from collections.abc import Iterator

from torch.utils.data import Dataset
from tqdm import tqdm

from wfimagevae.command_line import printable
from wfimagevae.dataset import ValidImageDataset, valid_loader
from wfimagevae.engine.distributed import World, gather_objects
from wfimagevae.generate.options import ImageFolderOptions

Unreadable = list[tuple[str, str]]  # paths and reasons


def open_folder(options: ImageFolderOptions) -> ValidImageDataset:
    sizes = options.resolution, options.crop_size, options.subset_size
    return ValidImageDataset(options.real_image_dir, *sizes)


def read_batches(
    dataset: Dataset, options: ImageFolderOptions, world: World, title: str, unreadable: Unreadable
) -> Iterator[dict]:
    """Batches of this process's share, as `valid_loader` reads them, under a progress bar.

    Those without a readable image are left out; unreadable ones are added to the list given.
    """
    batch_size = options.batch_size if dataset.crop_size else 1  # native sizes differ
    loader = valid_loader(dataset, batch_size, options.num_workers, world.rank, world.size)
    total = len(range(world.rank, len(dataset), world.size))
    with tqdm(total=total, unit="img", desc=title, disable=not world.is_main) as bar:
        for batch in loader:
            unreadable += batch["unreadable"]
            bar.update(len(batch["path"]) + len(batch["unreadable"]))
            if batch["image"] is not None:
                yield batch


def list_unreadable(unreadable: Unreadable, world: World) -> Unreadable:
    """Prints the unreadable images of all processes to standard error, and gives them, sorted."""
    entries = sorted(entry for part in gather_objects(unreadable) for entry in part)
    for path, reason in entries if world.is_main else ():
        print(f"unreadable: {printable(path)}: {reason}", file=sys.stderr)
    return entries
