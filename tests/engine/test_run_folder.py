"""Which folder a command writes to, and what it continues from."""

import pytest

from wfimagevae.engine.resume import find_resume, run_name


def make_run(parent, name, steps):
    folder = parent / name
    folder.mkdir(parents=True)
    for step in steps:
        (folder / f"checkpoint-{step}.ckpt").write_bytes(b"")
    return folder


def test_name_is_that_of_the_reference():
    assert run_name("wfvae2-image", 1e-5, 4, 8, 1024) == "wfvae2-image-lr1.00e-05-bs4-ga8-rs1024"


def test_auto_continues_the_highest_step_even_with_other_options(tmp_path):
    old = make_run(tmp_path, run_name("exp", 1e-4, 2, 1, 64), [500, 10000])
    make_run(tmp_path, run_name("exp-two", 1e-4, 2, 1, 64), [700])
    make_run(tmp_path, run_name("exp", 1e-3, 2, 1, 64), [])  # nothing saved yet
    want = tmp_path / run_name("exp", 1e-4, 4, 1, 64)
    assert find_resume("auto", want, "exp") == (old, old / "checkpoint-10000.ckpt")
    want = tmp_path / "none" / run_name("exp", 1e-4, 4, 1, 64)
    assert find_resume("auto", want, "exp") == (want, None)


def test_auto_lists_several_candidates(tmp_path):
    make_run(tmp_path, run_name("exp", 1e-4, 2, 1, 64), [1])
    make_run(tmp_path, run_name("exp", 1e-3, 2, 1, 64), [1])
    with pytest.raises(ValueError, match=r"(?s)several runs.*lr1.00e-03.*lr1.00e-04"):
        find_resume("auto", tmp_path / "x", "exp")


def test_a_run_is_overwritten_neither_afresh_nor_from_elsewhere(tmp_path):
    folder = make_run(tmp_path, run_name("exp", 1e-4, 2, 1, 64), [7])
    path = make_run(tmp_path, "elsewhere", [3]) / "checkpoint-3.ckpt"
    for source in (None, str(path)):
        with pytest.raises(ValueError, match="already holds checkpoints"):
            find_resume(source, folder, "exp")


@pytest.mark.parametrize("name", ["team/vae", "vae/"])
def test_a_name_is_no_path(tmp_path, name):
    with pytest.raises(ValueError, match="--ckpt_dir"):
        find_resume("auto", tmp_path / run_name(name, 1e-4, 2, 1, 64), name)


def test_a_folder_or_file_may_be_named(tmp_path):
    folder = make_run(tmp_path, run_name("exp", 1e-4, 2, 1, 64), [9, 10])
    other = tmp_path / "elsewhere"
    assert find_resume(str(folder), other, "exp") == (folder, folder / "checkpoint-10.ckpt")
    path = folder / "checkpoint-9.ckpt"
    assert find_resume(str(path), other, "exp") == (folder, path)
    assert find_resume(str(path), other, "another") == (other, path)
    with pytest.raises(ValueError, match="does not exist"):
        find_resume(str(folder / "checkpoint-8.ckpt"), other, "exp")
    with pytest.raises(ValueError, match="no checkpoint"):
        find_resume(str(tmp_path), other, "exp")
