"""Checkpoint files: whole or not there, read without running code, refused when wrong."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from wfimagevae.engine import checkpoint as module
from wfimagevae.engine.checkpoint import (
    collect,
    link_or_copy,
    read_checkpoint,
    restore,
    write_checkpoint,
)
from wfimagevae.files import write_atomically


def linear(value: float) -> nn.Linear:
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, value)
    return network


def save(path: Path, name: str, network: nn.Module, **facts) -> None:
    write_checkpoint(path, collect({f"state_dict.{name}": network}, **facts))


def test_parts_come_back_under_their_paths_or_are_named(tmp_path):
    path = tmp_path / "checkpoint-3.ckpt"
    save(path, "gen_model", linear(3.0), current_step=3, config={"a": [1]})
    content = read_checkpoint(path)
    assert content["current_step"] == 3
    assert set(content["state_dict"]["gen_model"]) == {"weight", "bias"}
    other = linear(0.0)
    restore({"state_dict.gen_model": other}, content)
    assert (other.weight == 3).all()
    with pytest.raises(ValueError, match=r"has no 'state_dict.disc_model'"):
        restore({"state_dict.disc_model": linear(1.0)}, content)
    with pytest.raises(ValueError, match=r"'state_dict.gen_model' of the checkpoint does not fit"):
        restore({"state_dict.gen_model": nn.Linear(3, 2)}, content)


class Evil:
    def __reduce__(self):
        return (os.system, ("echo ran-code > /dev/null",))


def test_files_that_hold_code_or_are_cut_short_are_refused(tmp_path):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    save(tmp_path / "whole.ckpt", "x", linear(1.0))
    data = (tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[: len(data) // 2])
    torch.save({"weights": {}}, tmp_path / "other.ckpt")
    unreadable = "not a readable checkpoint"
    for name, message in (("evil", unreadable), ("cut", unreadable), ("other", "no 'state_dict'")):
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path / f"{name}.ckpt")


def test_a_full_disk_leaves_the_earlier_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint-1.ckpt"
    save(path, "x", linear(1.0))
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write .*checkpoint-1.ckpt: .*No space left"):
        save(path, "x", linear(2.0))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_torch_save_failing_on_a_full_device_is_an_os_error(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def write(file):
        with open("/dev/full", "wb") as full:
            torch.save(torch.zeros(1 << 20), full)

    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "x.ckpt", write)
    assert not os.listdir(tmp_path)


def test_the_best_checkpoint_becomes_a_folder_and_a_file_again(tmp_path):
    file, folder, best = (tmp_path / f"{name}.ckpt" for name in ("file", "folder", "best"))
    folder.mkdir()
    for path in (file, folder / "shard", best):
        path.write_text(path.name)
    link_or_copy(folder, best)
    link_or_copy(folder, best)
    assert (best / "shard").samefile(folder / "shard")
    link_or_copy(file, best)
    assert best.samefile(file)
    assert sorted(os.listdir(tmp_path)) == ["best.ckpt", "file.ckpt", "folder.ckpt"]


SAVER = """
import os, signal, sys, torch
from pathlib import Path
from torch import nn
from wfimagevae.engine import checkpoint
network = nn.Linear(300, 300)
parts, path = {"state_dict.x": network}, Path(sys.argv[1])
nn.init.constant_(network.weight, 1.0)
checkpoint.write_checkpoint(path, checkpoint.collect(parts, value=1.0))
save = torch.save

def killed_halfway(content, file):
    save(content, file)
    file.flush()
    file.truncate(file.tell() // 2)
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = killed_halfway
nn.init.constant_(network.weight, 2.0)
checkpoint.write_checkpoint(path, checkpoint.collect(parts, value=2.0))
"""


def test_kill_9_during_a_save_leaves_the_checkpoint_before(tmp_path):
    path = tmp_path / "checkpoint-1.ckpt"
    root = Path(__file__).parents[2]
    process = subprocess.run([sys.executable, "-c", SAVER, str(path)], cwd=root)
    assert process.returncode == -signal.SIGKILL
    content = read_checkpoint(path)
    assert content["value"] == 1 and (content["state_dict"]["x"]["weight"] == 1).all()
    (leftover,) = tmp_path.glob(".*.ckpt.*.tmp")  # which the next training here removes
    assert len(os.listdir(tmp_path)) == 2 and leftover.stat().st_size
