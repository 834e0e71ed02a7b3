"""Which folder a command writes to, and what it continues from."""

import pytest

from wfimagevae.engine.train import find_run
from wfimagevae.task.flow_options import FlowOptions

SIZES = {"batch_size": 4, "grad_accum_steps": 8, "resolution": 64}


@pytest.fixture
def find(tmp_path):
    """Where a command of some options writes to, below the test's folder, and goes on from."""

    def run(resume=None, name="exp", lr=1e-5):
        places = {"ckpt_dir": str(tmp_path), "resume_from_checkpoint": resume and str(resume)}
        return find_run(FlowOptions(exp_name=name, lr=lr, **places, **SIZES))

    return run


def make_run(parent, name, steps):
    folder = parent / name
    folder.mkdir(parents=True)
    for step in steps:
        (folder / f"checkpoint-{step}.ckpt").write_bytes(b"")
    return folder


def test_name_is_that_of_the_reference(find, tmp_path):
    assert find() == (tmp_path / "exp-lr1.00e-05-bs4-ga8-rs64", None)


def test_auto_continues_the_highest_step_even_with_other_options(find, tmp_path):
    fresh = find("auto")
    assert fresh == find()
    old = make_run(tmp_path, "exp-lr1.00e-04-bs2-ga1-rs64", [500, 10000])
    make_run(tmp_path, "exp-two-lr1.00e-04-bs2-ga1-rs64", [700])
    make_run(tmp_path, "exp-lr1.00e-03-bs2-ga1-rs64", [])  # nothing saved yet
    assert find("auto") == (old, old / "checkpoint-10000.ckpt")
    make_run(tmp_path, "exp-lr1.00e-05-bs2-ga1-rs64", [1])
    with pytest.raises(ValueError, match=r"(?s)several runs.*lr1.00e-04.*lr1.00e-05"):
        find("auto")


def test_a_run_is_overwritten_neither_afresh_nor_from_elsewhere(find, tmp_path):
    make_run(tmp_path, find()[0].name, [7])
    path = make_run(tmp_path, "elsewhere", [3]) / "checkpoint-3.ckpt"
    for source in (None, path):
        with pytest.raises(ValueError, match="already holds checkpoints"):
            find(source)


@pytest.mark.parametrize("name", ["team/vae", "vae/"])
def test_a_name_is_no_path(find, name):
    with pytest.raises(ValueError, match="--ckpt_dir"):
        find("auto", name)


def test_a_folder_or_file_may_be_named(find, tmp_path):
    folder = make_run(tmp_path, "exp-lr1.00e-04-bs2-ga1-rs64", [9, 10])
    assert find(folder) == (folder, folder / "checkpoint-10.ckpt")
    path = folder / "checkpoint-9.ckpt"
    assert find(path) == (folder, path)
    assert find(path, "another") == (find(None, "another")[0], path)
    with pytest.raises(ValueError, match="does not exist"):
        find(folder / "checkpoint-8.ckpt")
    with pytest.raises(ValueError, match="no checkpoint"):
        find(tmp_path)
