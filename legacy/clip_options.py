"""Options of the scripts here: which model, which frames of which clips. No torch here."""

from typing import Literal

from wfimagevae.generate.options import ComputeOptions
from wfimagevae.options import Count, Natural, Options, Positive, option


class VideoModelOptions(ComputeOptions):
    """model"""

    from_pretrained: str = option(
        ..., "Hugging Face folder, .ckpt file with config.json beside it, or folder of both", "PATH"
    )
    model_name: Literal["WFVAE", "WFVAE2"] | None = option(
        None, "class of the model; not given: the one that config.json names"
    )
    enable_tiling: bool = option(
        False, "take clips apart in time, so that memory does not grow with their length"
    )


class FrameOptions(Options):
    """frames"""

    num_frames: Count = option(17, "frames of a clip, at most; short clips have fewer", "N")
    sample_rate: Count = option(1, "take one frame of so many", "N")


class OutputOptions(Options):
    """output"""

    lossless: bool = option(
        False, "write 8-bit RGB as it is, larger, and not for every player; else H.264, crf 18"
    )


class ClipFolderOptions(FrameOptions):
    """clips"""

    real_video_dir: str = option(..., "originals: a folder, searched recursively", "DIR")
    generated_video_dir: str = option(..., "reconstructions, by the same relative paths", "DIR")
    resolution: Count = option(336, "resize the shorter side to this", "PX")
    crop_size_height: Count | None = option(
        None, "height of the centre crop after resizing; not given: the resolution", "PX"
    )
    crop_size_width: Count | None = option(None, "its width, likewise", "PX")
    subset_size: Natural = option(0, "only the first N clips of the sorted list; 0: all", "N")
    num_workers: Natural = option(2, "reading processes", "N")


class RateOptions(Options):
    """rate"""

    fps: Positive | None = option(
        None, "frames a second of the output; not given: the source's, by --sample_rate", "F"
    )
