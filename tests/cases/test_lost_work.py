"""What is lost, or not told, when a run is killed, damaged, changed or started twice."""

import math
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from tests.task.training import FlowPlace, Workplace, load, refused, rows
from wfimagevae.engine import run
from wfimagevae.engine.checkpoint import list_checkpoints, read_checkpoint
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
    with refused("can be used at resolution 4096"):  # the first batch fails
        Workplace(tmp_path).train("x", 1, resolution=4096)
    assert not (tmp_path / "results").exists()


def _damaged(path, how):
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "cut":
        path.write_bytes(content[:middle])
    elif how == "rotten":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        torch.save(how, path)


class Payload:
    def __reduce__(self):
        return os.system, ("false",)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("rotten", r"is damaged: \S+ in it does not have its checksum$"),
        ("cut", "is not a readable checkpoint: torch.save did not write it, or it is cut"),
        ([1], "holds no weights, but a list"),
        ({"state_dict": [1]}, "is not a training checkpoint"),
        ({"state_dict": {"gen_model": Payload()}}, "holds a [a-z]+.system .* not unpickled"),
    ],
)
def test_a_damaged_checkpoint_is_told_in_a_line(tmp_path, how, words):
    """allenai/allennlp #2129: the newest checkpoint is damaged."""
    path = tmp_path / "checkpoint-1.ckpt"
    torch.save({"state_dict": {"gen_model": {"w": torch.randn(1000)}}}, path)
    assert read_checkpoint(path)
    _damaged(path, how)
    with pytest.raises(ValueError, match=words) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_disk_that_was_full_once_costs_one_checkpoint(tmp_path, monkeypatch, caplog):
    write = run.write_checkpoint

    def full_once(path, *content):
        if path.name == "checkpoint-2.ckpt":
            raise OSError(28, "No space left on device")
        write(path, *content)

    monkeypatch.setattr(run, "write_checkpoint", full_once)
    folder = FlowPlace(tmp_path).train("full", 4, save_ckpt_step=2, eval_steps=0)
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-4.ckpt"]
    assert "the checkpoint of step 2 was not saved" in caplog.text


def test_auto_goes_back_to_the_newest_whole_checkpoint(tmp_path, caplog):
    """allenai/allennlp #2129; what was made after it is set aside."""
    place = FlowPlace(tmp_path)
    folder = place.train("back", 3, save_ckpt_step=1, eval_steps=1)
    for step in (3, 2):
        _damaged(folder / f"checkpoint-{step}.ckpt", "rotten")
    whole = str(folder / "checkpoint-1.ckpt")
    with pytest.raises(ValueError, match=f"-3.ckpt is damaged: .*; whole .* it: {whole}$"):
        place.train("back", 3, resume_from_checkpoint=folder / "checkpoint-3.ckpt")
    place.go_on("back", 3, eval_steps=0)
    told = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert ["-3.ckpt is damaged" in told[0], "-2.ckpt is damaged" in told[1]] == [True, True]
    assert told[2].endswith(whole)
    pictures = sorted(path.name for path in (folder / "val_samples").iterdir())
    names = [f"step-0000000{n}-heun.png" for n in (1, 2, 3)]
    assert pictures == [names[0], *(f"{name}.superseded-1" for name in names[1:])]
    assert [row["step"] for row in rows(folder / "metrics.jsonl.superseded-1")] == [2, 3]
    assert {"training_losses.csv.superseded-1", "checkpoint-2.ckpt.superseded-1"} <= {
        path.name for path in folder.iterdir()
    }


def test_the_best_checkpoint_may_be_the_only_whole_one(tmp_path, caplog):
    """allenai/allennlp #2129; and a row of the losses that is damaged costs that row."""
    place = FlowPlace(tmp_path)
    folder = place.train("best", 2, eval_steps=1, log_steps=1, csv_log_steps=1)
    best = folder / "best-energy-distance.ckpt"
    best.unlink()  # a link
    shutil.copy(folder / "checkpoint-2.ckpt", best)
    _damaged(folder / "checkpoint-2.ckpt", "rotten")
    with (folder / "training_losses.csv").open("ab") as file:
        file.write(b"\xff\x00")
    place.go_on("best", 3, log_steps=1, csv_log_steps=1)
    assert f"newest checkpoint that is whole: {best}" in caplog.text
    assert [row["step"] for row in rows(folder / "training_losses.csv")][-1] == "3"


def test_a_checkpoint_with_other_types_inside_is_told_in_a_line(tmp_path):
    place = FlowPlace(tmp_path)
    path = place.train("types", 1, ema=True) / "checkpoint-1.ckpt"
    whole = torch.load(path, weights_only=True)
    changes = {
        "current_step": 1.5,
        "rng_state": [{}],
        "schedule_unit": 0,
        "means": {},
        "sampler_state": {"seed": 1234, "position": []},
        "ema_state_dict": dict.fromkeys(whole["ema_state_dict"], 1.0),
        "player_state": {"flow": [1]},
        "optimizer_state": {"gen_optimizer": {"param_groups": [], "state": {}}},
    }
    for name, value in changes.items():
        torch.save(whole | {name: value}, path)
        with pytest.raises(ValueError, match=f"^{path}: .*({name}|the run|optimizer)") as error:
            place.go_on("types", 2, ema=True)
        assert "\n" not in str(error.value), name


def test_no_file_is_a_damaged_checkpoint_too(tmp_path, caplog):
    place = FlowPlace(tmp_path)
    folder = place.train("folder", 1)
    (folder / "checkpoint-2.ckpt").mkdir()
    (folder / "checkpoint-3.ckpt").symlink_to("nowhere")
    place.train("folder", 4, resume_from_checkpoint=folder)
    assert caplog.text.count("whole: ") == 1 and load(folder, 4)


def test_changed_flags_are_told_and_the_earlier_ones_stay(tmp_path, caplog):
    """huggingface/transformers #18070 and #21271: a resumed run takes changed flags in silence."""
    place = FlowPlace(tmp_path)
    folder = place.train("flags", 2, lr_schedule="cosine")
    earlier = (folder / "options.json").read_text()
    caplog.clear()
    place.go_on("flags", 4, lr=1e-2, direction_weight=0.5, log_steps=1, csv_log_steps=1)
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("changed")]
    assert told == [
        "changed at step 2: --direction_weight 0.0 -> 0.5",
        "changed at step 2: --lr 0.001 -> 0.01",
        "changed at step 2: --lr_schedule cosine -> constant",
        "changed at step 2: --max_steps 2 -> 4",
    ]
    assert "the learning rate goes from 0.0005 to 0.01" in caplog.text
    assert (folder / "options-2.json").read_text() == earlier
    place.go_on("flags", 5, lr=1e-2, direction_weight=0.5)
    assert "--max_steps 4 -> 5" in caplog.text and (folder / "options-4.json").exists()


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_epochs_and_schedules_count_samples(tmp_path, caplog, schedule):
    """huggingface/diffusers #8236, Nerogar/OneTrainer #1604: other processes, other batches."""
    place = FlowPlace(tmp_path)
    options = {"epochs": 1, "lr_schedule": schedule, "warmup_steps": 4, "log_steps": 1}
    place.cut("epochs", None, at=2, **options)
    options["resume_from_checkpoint"] = "auto"
    place.cut("epochs", None, at=10, batch_size=2, **options)  # in the warm-up
    folder = place.train("epochs", None, batch_size=8, **options)  # behind it
    # 2 x 4 + 8 x 2 + 5 x 8 = 64 samples; an update of 4 takes schedules one on.
    assert load(folder, 15)["sampler_state"]["position"] == 64
    clock = [0, 1, *(2 + n / 2 for n in range(8)), *(6 + 2 * n for n in range(5))]
    for row, done in zip(rows(folder / "metrics.jsonl"), clock, strict=True):
        share = max(done - 4, 0) / 12
        curve = 1 - share if schedule == "linear" else (1 + math.cos(math.pi * share)) / 2
        assert row["lr/flow"] == pytest.approx(1e-3 * ((done + 1) / 5 if done < 4 else curve))
    assert "an update takes 2 samples, 4 before: --epochs 1 end at step 30" in caplog.text
    assert "step 15/15 | epoch 1 | " in caplog.text
    assert "the learning rate goes" not in caplog.text


@pytest.mark.parametrize(("steps", "pace"), [(8, 1), (12, 0.5)])
def test_max_steps_that_keep_the_plan_are_named(tmp_path, caplog, steps, pace):
    """huggingface/diffusers #8236: --max_steps counts updates; those named keep the samples."""
    place = FlowPlace(tmp_path)
    options = {"lr_schedule": "cosine", "log_steps": 1}
    place.cut("steps", 8, at=4, **options)
    folder = place.go_on("steps", steps, batch_size=2, **options)
    line = "2 samples, 4 before: step 8 comes after 24 samples in place of 32; --max_steps 12 keeps"
    assert (line in caplog.text) == (steps == 8)
    for row in rows(folder / "metrics.jsonl")[4:]:
        share = (4 + (row["step"] - 5) * pace) / 8
        assert row["lr/flow"] == pytest.approx(1e-3 * (1 + math.cos(math.pi * share)) / 2)
    assert row["step"] == steps and "the learning rate goes" not in caplog.text
