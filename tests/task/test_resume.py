"""N steps, stop, resume, M steps equal N + M steps, bit for bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.task.training import ROOT, differences, load, rows
from train_ddp import main
from wfimagevae.engine import train as training
from wfimagevae.engine.checkpoint import list_checkpoints, read_checkpoint, step_of
from wfimagevae.engine.loop import fit
from wfimagevae.model.weight_files import latest_checkpoint
from wfimagevae.task.vae import VaeTask

EVERYTHING = {"ema": True, "ema_decay": "0.999,0.9", "grad_accum_steps": 2, "eval_steps": 3}
EVERYTHING |= {"dataset_num_worker": 2, "lr_schedule": "cosine", "warmup_steps": 2}
OPTIONAL_TERMS = {f"{name}_weight": 0.1 for name in ("mmd", "color", "histogram", "contrast")}
OPTIONAL_TERMS |= {"kl_weight": 1e-3, "kl_warmup_steps": 8, "kl_free_bits": 0.01}
OPTIONAL_TERMS |= {"r1_weight": 1, "r1_interval": 2, "instance_noise_std": 0.1}
OPTIONAL_TERMS |= {"instance_noise_decay": 0.9, "grad_accum_steps": 2}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("gan_schedule", ["joint", "alternate"])
@pytest.mark.parametrize("case", ["everything", "bf16", "optional terms"])
def test_resuming_changes_no_bit(workplace, gan_schedule, case, monkeypatch):
    """Not even where the checkpoint's file, which is mapped, loses its content meanwhile."""

    def fit_without_file(run):
        with (run.folder / "checkpoint-4.ckpt").open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            file.write(bytes(size))
        return fit(run)

    options = OPTIONAL_TERMS if case == "optional terms" else EVERYTHING
    options = options | {"gan_schedule": gan_schedule, "log_steps": 1, "csv_log_steps": 1}
    options |= {"mix_precision": "bf16"} if case == "bf16" else {}
    name = f"{gan_schedule}-{case}"
    whole = workplace.train(f"{name}-whole", 9, **options)
    # The schedule's length belongs to the command: a run of four steps has another cosine.
    workplace.cut(f"{name}-cut", 9, at=4, **options)
    monkeypatch.setattr(training, "fit", fit_without_file)
    folder = workplace.go_on(f"{name}-cut", 9, **options)
    assert not differences(load(whole, 9), load(folder, 9))
    one, other = (
        [{k: v for k, v in row.items() if k == "step" or k.startswith("train/")} for row in lines]
        for lines in (rows(run / "training_losses.csv") for run in (whole, folder))
    )
    assert one == other and [row["step"] for row in one] == [str(n) for n in range(1, 10)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_cleanly_and_the_run_goes_on(workplace, number):
    name = f"signal-{number.name.lower()}"
    whole = load(workplace.train(f"{name}-whole", 60), 60)
    command = [sys.executable, str(ROOT / "train_image_ddp.py"), *workplace.flags(name, 60)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    for line in process.stderr:
        if "step 4/" in line:
            process.send_signal(number)
            break
    rest = process.stderr.read()
    assert process.wait() == 0
    assert "stopped by a signal after step" in rest
    (stopped,) = workplace.run_folder(name).glob("checkpoint-*.ckpt")
    assert stopped.stem != "checkpoint-60"
    folder = workplace.go_on(name, 60)
    assert not differences(whole, load(folder, 60))


def signalled(at):
    """A validation in which a signal comes, at one step."""
    validate = VaeTask.validate

    def with_signal(self, step):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(self, step)

    return with_signal


def test_a_validation_that_a_signal_put_off_is_made_up_for(workplace, monkeypatch):
    # Its score moves the learning rate, and chooses the best checkpoint.
    options = {"eval_steps": 2, "lr_schedule": "plateau", "plateau_patience": 1, "ema": True}
    whole = workplace.train("validated-whole", 6, **options)
    with monkeypatch.context() as patched:
        patched.setattr(VaeTask, "validate", signalled(4))
        cut = workplace.train("validated", 6, **options)
    assert [path.name for path in list_checkpoints(cut)] == ["checkpoint-4.ckpt"]
    workplace.go_on("validated", 6, **options)
    assert not differences(load(whole, 6), load(cut, 6))
    one, other = ((folder / "validation.jsonl").read_text() for folder in (whole, cut))
    assert one == other and one.count("\n") == 3


def test_a_validation_put_off_at_the_end_is_made_up_for_once(workplace, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(VaeTask, "validate", signalled(1))
        folder = workplace.train("owed", 1, eval_steps=1)
    assert load(folder, 1)["validation_owed"]
    workplace.go_on("owed", 1)  # --eval_steps 0: not wanted now
    assert not (folder / "validation.jsonl").exists()
    for _ in range(2):
        workplace.go_on("owed", 1, eval_steps=1)
        assert (folder / "validation.jsonl").read_text().count("\n") == 1
        assert not load(folder, 1)["validation_owed"]
        assert (folder / "best-psnr.ckpt").exists()


def test_a_run_that_went_back_has_a_best_checkpoint(workplace, monkeypatch):
    scores = {1: 10.0, 2: 20.0, 3: 30.0, 4: 15.0}
    monkeypatch.setattr(VaeTask, "validate", lambda self, step: ({}, scores[step], {}))
    options = {"save_ckpt_step": 1, "eval_steps": 1}
    folder = workplace.train("best", 3, **options)
    scores[3] = 12.0
    path = folder / "checkpoint-2.ckpt"  # whose own best copy the later one had replaced
    workplace.train("best", 4, resume_from_checkpoint=path, **options)
    assert read_checkpoint(folder / "best-psnr.ckpt")["current_step"] == 4


def test_going_back_sets_aside_what_came_later(workplace, caplog):
    options = {"save_ckpt_step": 1, "eval_steps": 3}
    folder = workplace.train("back", 6, **options)
    later = {n: (folder / f"checkpoint-{n}.ckpt").read_bytes() for n in range(3, 7)}
    path = folder / "checkpoint-2.ckpt"
    workplace.train("back", 4, resume_from_checkpoint=path, keep_last=2, lr=1e-4, **options)
    assert [p.name for p in list_checkpoints(folder)] == ["checkpoint-3.ckpt", "checkpoint-4.ckpt"]
    for n, content in later.items():
        assert (folder / f"checkpoint-{n}.ckpt.superseded-1").read_bytes() == content
    assert (folder / "best-psnr.ckpt.superseded-1").exists()
    assert "set aside" in caplog.text
    assert latest_checkpoint(folder).name == "checkpoint-4.ckpt"


def test_a_resume_that_fails_leaves_the_records(workplace):
    folder = workplace.cut("refused", 6, at=4)
    records = ("options.json", "training_losses.csv", "metrics.jsonl")
    before = [(folder / name).read_bytes() for name in records]
    with pytest.raises(ValueError, match="does not fit"):
        workplace.go_on("refused", 8, disc_num_layers=2)
    assert [(folder / name).read_bytes() for name in records] == before


def test_a_shortened_run_is_finished_and_says_so(workplace):
    folder = workplace.cut("shortened", 8, at=5)
    assert not load(folder, 5)["finished"]
    workplace.go_on("shortened", 4)
    assert load(folder, 5)["finished"]


def test_a_losses_file_of_another_run_is_kept(workplace, tmp_path):
    path = tmp_path / "losses.csv"
    workplace.train("first-log", 4, csv_log_path=path)
    first = path.read_bytes()
    workplace.train("second-log", 2, csv_log_path=path)
    assert (tmp_path / "losses.csv.superseded-1").read_bytes() == first
    path.write_text("name,size\na,1\n")
    with pytest.raises(ValueError, match=r"losses.csv is no log of losses.*name, size"):
        workplace.go_on("second-log", 3, csv_log_path=path)
    assert path.read_text() == "name,size\na,1\n"
    with pytest.raises(ValueError, match=r"is no file; give another --csv_log_path"):
        workplace.train("third-log", 1, csv_log_path=tmp_path)


def test_checkpoints_are_kept_by_the_clock_and_by_number(workplace):
    folder = workplace.train("kept", 12, save_ckpt_step=2, keep_last=2, eval_steps=6)
    names = sorted(path.name for path in folder.glob("*.ckpt"))
    assert names == ["best-psnr.ckpt", "checkpoint-10.ckpt", "checkpoint-12.ckpt"]
    folder = workplace.train("clock", 12, save_every_minutes=1e-9)
    assert len(list(folder.glob("checkpoint-*.ckpt"))) == 12


SLOW_WRITER = """
import os, signal, sys, time, torch
from wfimagevae.engine.run import Run
from train_ddp import main
write, advance, steps, saves = torch.save, Run.advance, [0], []

def wait_and_write(content, file):
    saves.append(content["current_step"])
    deadline = time.monotonic() + 60
    while steps[0] < min(saves[-1] + 2, 8):
        assert time.monotonic() < deadline, "training waits"
        time.sleep(0.01)
    if len(sys.argv) > 2 and saves[-1] == 6:
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(content, file)

def count(run, flops):
    advance(run, flops)
    steps[0] = run.step

torch.save, Run.advance = wait_and_write, count
sys.exit(main(sys.argv[1].split("|")))
"""


def test_training_goes_on_while_a_checkpoint_is_written(workplace):
    """What is written is the state of its step; -9 meanwhile leaves the checkpoint before."""
    options = {"save_ckpt_step": 3, "ema": True, "csv_log_steps": 1}
    whole = workplace.train("at-once", 8, **options)

    def train(name, *arguments):
        command = [sys.executable, "-c", SLOW_WRITER, "|".join(workplace.flags(name, 8, **options))]
        code = subprocess.run([*command, *arguments], env=ENVIRONMENT, cwd=ROOT).returncode
        return code, workplace.run_folder(name)

    code, folder = train("meanwhile")
    assert code == 0
    assert not [d for step in (3, 6, 8) for d in differences(load(whole, step), load(folder, step))]
    code, folder = train("killed", "killed")
    assert code == -signal.SIGKILL
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-3.ckpt"]
    workplace.go_on("killed", 8, **options)
    assert not differences(load(whole, 8), load(folder, 8))


def test_a_signal_waits_for_the_checkpoint_that_is_being_written(workplace, monkeypatch):
    write = torch.save

    def signalled(content, file):
        if content["current_step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        write(content, file)

    monkeypatch.setattr(torch, "save", signalled)
    assert main(workplace.flags("signalled", 50, save_ckpt_step=2)) == 0
    saved = list_checkpoints(workplace.run_folder("signalled"))
    assert saved[0].name == "checkpoint-2.ckpt" and saved[-1].name != "checkpoint-50.ckpt"
    steps = [read_checkpoint(path)["current_step"] for path in saved]
    assert steps == [step_of(path) for path in saved]
