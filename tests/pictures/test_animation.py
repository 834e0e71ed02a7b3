import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from tests.refusals import refused
from wfimagevae.pictures import animation
from wfimagevae.pictures.animation import find_ffmpeg, save_animation


def frames(count=4, size=(33, 21)):
    return [Image.new("RGB", size, (60 * i, 255 - 60 * i, 7 * i)) for i in range(count)]


def test_gif_holds_every_frame_in_its_own_colours(tmp_path):
    path = tmp_path / "new" / "movie.gif"
    save_animation(path, frames(), fps=10, hold_seconds=1)
    assert os.listdir(path.parent) == ["movie.gif"]
    with Image.open(path) as movie:
        assert movie.n_frames == 4 and movie.size == (33, 21) and movie.info["loop"] == 0
        durations = []
        for i, frame in enumerate(frames()):
            movie.seek(i)
            durations.append(movie.info["duration"])
            difference = np.asarray(movie.convert("RGB")).astype(int) - np.asarray(frame)
            assert abs(difference).max() <= 2
    assert durations == [100, 100, 100, 1100]


def test_mp4_without_ffmpeg_or_with_a_failing_one_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    refused(r"pip install imageio-ffmpeg.*\.gif", find_ffmpeg)
    monkeypatch.setattr(animation, "find_ffmpeg", lambda: "false")
    refused("ffmpeg failed", save_animation, tmp_path / "movie.mp4", frames(), error=OSError)
    assert os.listdir(tmp_path) == []


def test_mp4_is_given_every_frame_at_even_size(tmp_path, monkeypatch):
    """A stand-in for ffmpeg writes what it reads."""
    fake = tmp_path / "ffmpeg"
    fake.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last"\ncat >> "$last"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(animation, "find_ffmpeg", lambda: str(fake))
    save_animation(tmp_path / "movie.mp4", frames(), fps=10, hold_seconds=0.2)
    command, pixels = (tmp_path / "movie.mp4").read_bytes().split(b"\n", 1)
    assert b"-s 34x22" in command and b"-r 10" in command
    movie = np.frombuffer(pixels, np.uint8).reshape(-1, 22, 34, 3)
    assert len(movie) == 4 + 2  # the last frame stays
    assert movie[:, 0, 0, 0].tolist() == [0, 60, 120, 180, 180, 180]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_mp4_is_a_movie(tmp_path):
    save_animation(tmp_path / "movie.mp4", frames())
    assert b"ftyp" in (tmp_path / "movie.mp4").read_bytes()[:16]
