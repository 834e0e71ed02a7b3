"""Animations from pictures: GIF by Pillow, MP4 by ffmpeg."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from wfimagevae.files import write_atomically


def save_animation(
    path: str | Path, frames: Sequence[Image.Image], fps: float = 12, hold_seconds: float = 1.5
) -> None:
    """Writes RGB frames of one size, in one step; the last one stays, a GIF repeats for ever.

    The path ends in .gif, or in .mp4, for which no ffmpeg is a ValueError.
    """
    write = _write_gif if Path(path).suffix.lower() == ".gif" else _write_mp4
    write_atomically(Path(path), lambda file: write(file, frames, fps, hold_seconds))


def _write_gif(file, frames: Sequence[Image.Image], fps: float, hold_seconds: float) -> None:
    durations = [round(1000 / fps)] * len(frames)  # in milliseconds
    durations[-1] += round(1000 * hold_seconds)
    # Every frame its own palette: one for all would lose colours that come late.
    palettes = [frame.convert("RGB").quantize(256) for frame in frames]
    palettes[0].save(
        file,
        format="gif",
        save_all=True,
        append_images=palettes[1:],
        duration=durations,
        loop=0,
        disposal=1,
    )


def _write_mp4(file, frames: Sequence[Image.Image], fps: float, hold_seconds: float) -> None:
    width, height = (side + side % 2 for side in frames[0].size)  # yuv420p needs even sides
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "movie.mp4"
        command = [find_ffmpeg(), "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{width}x{height}", "-r", f"{fps}", "-i", "-"]
        command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18", str(target)]
        still = [frames[-1]] * round(fps * hold_seconds)
        pixels = bytearray()
        for frame in [*frames, *still]:
            canvas = Image.new("RGB", (width, height), (255, 255, 255))
            canvas.paste(frame)
            pixels += canvas.tobytes()
        done = subprocess.run(command, input=pixels, capture_output=True)
        if done.returncode:
            raise OSError(f"ffmpeg failed: {done.stderr.decode(errors='replace').strip()}")
        file.write(target.read_bytes())


def find_ffmpeg() -> str:
    """The program, or a ValueError that says how to get it: call this before drawing."""
    if program := shutil.which("ffmpeg"):
        return program
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        raise ValueError(
            "an .mp4 needs ffmpeg: install it, or pip install imageio-ffmpeg; or end the name in "
            ".gif"
        ) from None
    return imageio_ffmpeg.get_ffmpeg_exe()
