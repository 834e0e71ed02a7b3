"""Clips in files: frames are read by PyAV, cropped, never stretched, and written again."""

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wfimagevae.files import write_atomically

try:
    import av
    from av.video.reformatter import Colorspace
except ModuleNotFoundError:
    raise ValueError('reading videos needs PyAV: pip install -e ".[legacy]"') from None

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}  # that we write H.264 into
CODECS = {
    False: ("libx264", "yuv420p", {"crf": "18"}),
    True: ("libx264rgb", "rgb24", {"qp": "0", "preset": "fast"}),  # lossless
}


class Clip(NamedTuple):
    """Frames in [-1, 1], float32 (3, T, H, W), and how many of them a second shows."""

    frames: Tensor
    rate: Fraction | None


def frame_numbers(num_frames: int, sample_rate: int) -> list[int]:
    """The frames of a source that the reference takes: evenly spaced, its last one included."""
    return np.linspace(0, num_frames * sample_rate - 1, num_frames).astype(int).tolist()


def crop_and_resize(frames: Tensor, size: tuple[int, int], resolution: int | None = None) -> Tensor:
    """The centre of 8-bit frames (T, 3, H, W) at a size, as float32 in [-1, 1].

    The largest part of that shape is taken, or, with a ``resolution``, what is left of frames whose
    shorter side is resized to it; ValueError if that is less than the size.
    """
    sides = frames.shape[2:]
    if resolution is None:
        scale = min(side / wanted for side, wanted in zip(sides, size, strict=True))
    else:
        scale = min(sides) / resolution
    part = [round(wanted * scale) for wanted in size]
    if any(wanted > side for wanted, side in zip(part, sides, strict=True)):
        raise ValueError(
            f"frames of {sides[1]}x{sides[0]} px, their shorter side resized to {resolution}, are "
            f"smaller than the crop of {size[1]}x{size[0]}"
        )
    top, left = (round((side - wanted) / 2) for side, wanted in zip(sides, part, strict=True))
    frames = frames[:, :, top : top + part[0], left : left + part[1]].float() / 255
    frames = F.interpolate(frames, size, mode="bilinear", align_corners=True, antialias=True)
    return frames.clamp(0, 1) * 2 - 1


def read_clip(
    path: str | os.PathLike,
    numbers: Sequence[int],
    size: tuple[int, int] | None = None,
    resolution: int | None = None,
) -> Clip:
    """The frames of a video that have these ascending numbers, as far as it has them.

    They are cropped and resized; without a size they are taken as they are.

    Raises:
        ValueError: The file is no video, holds no frames, or is damaged before the last of them.
    """
    frames, rate = [], None
    for pixels, stream_rate in _decode(Path(path), numbers):
        rate = stream_rate
        frame = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
        frames.append(crop_and_resize(frame, size or frame.shape[2:], resolution))
        if frames[-1].shape != frames[0].shape:
            raise ValueError(f"{path}: frames differ in size; give a size to crop them to")
    if not frames:
        raise ValueError(f"{path} holds no frames")
    return Clip(torch.cat(frames).transpose(0, 1), rate)


def _decode(path: Path, numbers: Sequence[int]) -> Iterator[tuple[np.ndarray, Fraction | None]]:
    """Upright 8-bit RGB frames, (H, W, 3), of these numbers, and the rate of the video."""
    wanted, count = set(numbers), 0
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video or container.format.name == "tty":  # plain text
                raise ValueError(f"{path} is no video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = stream.average_rate or stream.guessed_rate
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise ValueError(f"{path} is damaged after {count} frames")
                if count in wanted:
                    turns = round(frame.rotation / 90)
                    yield np.rot90(frame.to_ndarray(format="rgb24"), turns), rate
                count += 1
                if count > numbers[-1]:
                    return
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        after = f" after {count} frames" if count else ""
        raise ValueError(f"{path} is no readable video{after}: {error.strerror}") from None


def check_output(path: str | os.PathLike, source: str | os.PathLike) -> None:
    """Raises ValueError for a file that is the source, or of a kind that is not written."""
    if Path(path).resolve() == Path(source).resolve():
        raise ValueError(f"--rec_path {path} is the original; choose another file")
    if Path(path).suffix.lower() not in CONTAINERS:
        raise ValueError(f"{path}: unknown extension; write one of {', '.join(CONTAINERS)}")


def write_clip(
    path: str | os.PathLike, pixels: Tensor, rate: Fraction | float, lossless: bool = False
) -> None:
    """Writes 8-bit RGB frames, (T, H, W, 3) with even sides, in one step, as H.264."""
    codec, pixel_format, options = CODECS[lossless]
    rate = Fraction(rate).limit_denominator(100_000)

    def write(file) -> None:
        with av.open(file, "w", format=CONTAINERS[Path(path).suffix.lower()]) as container:
            stream = container.add_stream(codec, rate=rate, options=options)
            stream.height, stream.width = pixels.shape[1:3]
            stream.pix_fmt = pixel_format
            if not lossless:  # what the conversion to YUV means, or players guess by the size
                stream.codec_context.colorspace = Colorspace.SMPTE170M
            for frame in pixels.cpu().numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())

    write_atomically(Path(path), write, is_lasting=False)


def list_clips(folder: str) -> list[str]:
    """The videos below a folder, by relative POSIX path, sorted; ValueError if there are none."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder")
    files = (path for path in Path(folder).rglob("*") if path.suffix.lower() in VIDEOS)
    names = sorted(path.relative_to(folder).as_posix() for path in files if path.is_file())
    if not names:
        raise ValueError(f"{folder} holds no videos ({', '.join(VIDEOS)})")
    return names
