"""kill -9 anywhere, the same command again: the result is that of the uninterrupted run."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.files import PipelinePlace, last_checkpoint
from tests.task.training import ROOT, differences

STEPS = ("warmup", "gan", "flow")
# An uninterrupted run has about a hundred and sixty events.
LIVES = (1, 24)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return PipelinePlace(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def whole(place):
    return place.run(place.content("whole"))


def run_until(path: Path, events: int) -> int:
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(path), str(events)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True).returncode


def kill_and_resume(place: PipelinePlace, name: str, kills: int, lives: tuple[int, int]) -> Path:
    """Kills a pipeline so many times, each time after a random number of events; finishes it."""
    content = place.content(name)
    path, draw = place.write(content), random.Random(name)
    for _ in range(kills):
        assert run_until(path, draw.randint(*lives)) == -signal.SIGKILL
    assert run_until(path, 0) == 0
    return Path(content["output"]["output_path"])


def assert_same_result(one: Path, other: Path) -> None:
    for step in STEPS:
        found = differences(last_checkpoint(one, step), last_checkpoint(other, step))
        assert not [path for path in found if path != "/generator/vae/source"]  # its folder
    for pattern in ("samples/*/*.webp", "steps/*/autoencoder/*.safetensors"):
        files = {path.relative_to(one) for path in one.glob(pattern)}
        assert files == {path.relative_to(other) for path in other.glob(pattern)}
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


@pytest.mark.timeout(900)
def test_two_kills_change_no_bit(place, whole):
    assert_same_result(whole, kill_and_resume(place, "twice", 2, (30, 40)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills_at_random_change_no_bit(place, whole):
    assert_same_result(whole, kill_and_resume(place, "ten times", 10, LIVES))
