"""The clips of a folder, read by a few processes; what cannot be read is left out and told."""

import sys
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from clip_options import ClipFolderOptions
from clips import Clip, frame_numbers, list_clips, read_clip
from wfimagevae.command_line import printable
from wfimagevae.engine.distributed import World, gather_objects


class ClipFolder(Dataset):
    """Originals as models see them: name, clip, and what is wrong with it, if it is."""

    def __init__(self, options: ClipFolderOptions):
        self.options, self.names = options, list_clips(options.real_video_dir)
        self.names = self.names[: options.subset_size or None]
        self.numbers = frame_numbers(options.num_frames, options.sample_rate)
        resolution = options.resolution
        self.size = options.crop_size_height or resolution, options.crop_size_width or resolution

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[str, Clip | None, str]:
        path = Path(self.options.real_video_dir, self.names[i])
        try:
            clip = read_clip(path, self.numbers, self.size, self.options.resolution)
        except (ValueError, OSError) as error:
            return self.names[i], None, str(error)
        return self.names[i], clip, ""


def read_share(
    dataset: Dataset, num_workers: int, world: World, left_out: list[tuple[str, str]]
) -> Iterator[tuple]:
    """This process's share of a folder, under a progress bar; what is damaged goes to a list."""
    share = Subset(dataset, range(world.rank, len(dataset), world.size))
    loader = DataLoader(share, batch_size=None, num_workers=num_workers)
    for name, *content, error in tqdm(loader, unit="clip", disable=not world.is_main):
        if error:
            left_out.append((name, error))
        else:
            yield name, *content


def tell_left_out(left_out: list[tuple[str, str]], world: World) -> list[tuple[str, str]]:
    """All processes' clips that were left out, which are printed to standard error."""
    entries = sorted(entry for part in gather_objects(left_out) for entry in part)
    for name, reason in entries if world.is_main else ():
        print(f"left out: {printable(name)}: {printable(reason)}", file=sys.stderr)
    return entries
