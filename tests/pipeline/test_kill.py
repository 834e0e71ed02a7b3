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


def run_until(path: Path, events: int) -> int:
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(path), str(events)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True).returncode


def assert_same_result(one: Path, other: Path) -> None:
    for step in STEPS:
        found = differences(last_checkpoint(one, step), last_checkpoint(other, step))
        assert not [path for path in found if path != "/generator/vae/source"]  # its folder
    for pattern in ("samples/*/*.webp", "steps/*/autoencoder/*.safetensors"):
        files = {path.relative_to(one) for path in one.glob(pattern)}
        assert files == {path.relative_to(other) for path in other.glob(pattern)}
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kills", "lives"), [(2, (30, 40)), pytest.param(10, (1, 24), marks=pytest.mark.slow)]
)
def test_kills_after_random_numbers_of_events_change_no_bit(tmp_path, kills, lives):
    # An uninterrupted run has about a hundred and sixty events.
    place = PipelinePlace(tmp_path)
    content, draw = place.content("killed"), random.Random(f"{kills} kills")
    path = place.write(content)
    for _ in range(kills):
        assert run_until(path, draw.randint(*lives)) == -signal.SIGKILL
    assert run_until(path, 0) == 0
    whole = place.run(place.content("whole"))
    assert_same_result(whole, Path(content["output"]["output_path"]))
