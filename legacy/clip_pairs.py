"""Originals and reconstructions of clips, matched by relative path."""

from pathlib import Path

from clip_folder import ClipFolder
from torch.utils.data import Dataset

from clip_options import ClipFolderOptions
from clips import Clip, list_clips, read_clip
from wfimagevae.eval.pairs import match_pairs


class ClipPairs(Dataset):
    """Name, original and reconstruction of each pair, and what is wrong with it, if it is."""

    def __init__(self, options: ClipFolderOptions):
        self.folder, self.options = ClipFolder(options), options
        generated = list_clips(options.generated_video_dir)
        self.pairs = match_pairs(
            self.folder.names,
            generated,
            is_subset=bool(options.subset_size),
            is_damaged=lambda name: bool(self.folder[self.folder.names.index(name)][2]),
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[str, Clip | None, Clip | None, str]:
        name, real, error = self.folder[i]
        if error:
            return name, None, None, error
        partner = Path(self.options.generated_video_dir, self.pairs[i][1])
        try:
            generated = read_clip(partner, range(self.options.num_frames))
        except (ValueError, OSError) as error:
            return name, None, None, str(error)
        (_, *real_sizes), (_, *sizes) = real.frames.shape, generated.frames.shape
        if sizes != real_sizes:
            sides = f"{sizes} frames, height and width, its original {real_sizes}"
            return name, None, None, f"{partner} has {sides}: give the flags of the reconstruction"
        return name, real, generated, ""


def describe(options: ClipFolderOptions, num_clips: int, num_frames: int) -> dict:
    """What defines a measurement, ready for JSON."""
    height, width = options.crop_size_height, options.crop_size_width
    resolution = options.resolution
    return {
        "videos": num_clips,
        "frames": num_frames,
        "size": f"{width or resolution}x{height or resolution}",
        "resize": f"shorter side to {resolution}, bilinear, corners aligned, antialiased",
        "frames_of_a_video": options.num_frames,
        "sample_rate": options.sample_rate,
        "data_range": "[0, 1], RGB, from 8 bits per channel",
        "average": "mean of per-frame values",
        "lpips_net": options.lpips_net if "lpips" in options.metric else None,
    }
