"""What is lost, or not told, when a run is killed, damaged, changed or started twice."""

import os
import signal
import subprocess
import sys

import pytest

from wfimagevae.files import remove_leftovers, sole_writer

WRITER = """
import os, sys, time
from pathlib import Path
from wfimagevae.files import replacing, sole_writer

with sole_writer(Path(sys.argv[1])), replacing(Path(sys.argv[1]) / "a.png") as file:
    file.write(b"half")
    file.flush()
    if os.fork() == 0:  # as workers do, which may outlive a killed process
        time.sleep(30)
        os._exit(0)
    print("writes", flush=True)
    time.sleep(30)
"""


def test_a_folder_has_one_writer_until_that_is_killed(tmp_path):
    """meta-pytorch/torchtune #481: two trainings in one folder; leftovers of a killed one."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", WRITER, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout.readline() == "writes\n"
        remove_leftovers(folder)
        assert len(list(folder.glob(".a.png.*.tmp"))) == 1  # which is no leftover
        who = f"process {process.pid} on {os.uname().nodename}"
        with pytest.raises(ValueError, match=who), sole_writer(folder):
            pass
        process.kill()
        process.wait()
        with sole_writer(folder):
            assert os.listdir(folder) == [".lock"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert folder.exists() and not os.listdir(folder)


def test_a_start_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(OSError, match="no data"), sole_writer(tmp_path / "new"):
        raise OSError("no data")
    assert not (tmp_path / "new").exists()
