"""Signals, workers that hang or die, validations that fail: no finished step is lost."""

import logging
import os
import select
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.dataset.conftest import draw
from tests.dataset.reading import read_by
from tests.distributed.worker import on_ranks
from tests.engine.toy import batches, player
from tests.pipeline.files import PipelinePlace
from tests.task.training import ROOT, FlowPlace, Workplace, load
from train_ddp import main
from wfimagevae.dataset import DataError, TrainLoader
from wfimagevae.dataset.protocol import TrainData
from wfimagevae.engine.checkpoint import list_checkpoints, read_checkpoint
from wfimagevae.engine.distributed import World, world
from wfimagevae.engine.loop import Task, fit
from wfimagevae.engine.player import Player
from wfimagevae.engine.run import Run
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.task.flow_options import FlowOptions


class Training(Task):
    """A regression whose data or validation does ``act(task, place)`` at some place."""

    best_name, dataset, num_unreadable = "best.ckpt", range(8), 0

    def __init__(self, act):
        ours = player()
        super().__init__([ours], ours.objective.network, self, validator=act)
        self.act, self.batches, self.events = act, iter(batches(100, 2)), []

    def ready(self, count, seconds):
        return self.act(self, "wait" if seconds else "glance") is not False and seconds > 0

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.batches)

    def turn(self, step):
        self.act(self, f"update {step}")
        return self.players

    def validate(self, step):
        self.events.append(f"validate {step}")
        self.act(self, f"validate {step}")
        self.network(torch.zeros(1, 3, dtype=torch.float64))
        return {"val/score": 1.0}, float(step), {}

    def facts(self):
        return {"state_dict": {}}

    def parts(self):
        return {}


def train(folder, act, here=None, resume=None, **options):
    """Trains 6 steps, saving every 2, validating every 3; the run and what happened."""
    values = {"max_steps": 6, "batch_size": 2, "log_steps": 1, "disable_csv_log": True}
    values |= {"save_ckpt_step": 2, "eval_steps": 3, "ema": True} | options
    task = Training(act)
    run = Run(FlowOptions(**values), here or World(0, 1, torch.device("cpu")), folder, task)
    save = run.save

    def saved(best=False, only_best=False):
        task.events.append("best" if only_best else f"save {run.step}" + " best" * best)
        save(best, only_best)

    run.save = saved
    if resume:
        run.restore(read_checkpoint(resume), resume)
    with run.interrupt:
        fit(run)
    return run, task.events


def at(place, number=signal.SIGTERM):
    return lambda task, here: os.kill(os.getpid(), number) if here == place else None


def test_what_is_due_is_saved_before_it_is_validated(tmp_path):
    """goodfire-ai/spd #741."""
    _, events = train(tmp_path, lambda *_: None)
    assert events == [
        *("save 2", "validate 3", "best", "save 4"),
        *("save 6", "validate 6", "save 6 best"),
    ]
    content = read_checkpoint(tmp_path / "checkpoint-6.ckpt")
    assert content["best_score"] == 6 and not content["validation_owed"]


@pytest.mark.parametrize(
    ("place", "number", "saved", "owed"),
    [
        ("update 3", signal.SIGTERM, 4, False),
        ("validate 3", signal.SIGTERM, 3, True),
        ("validate 6", signal.SIGHUP, 6, True),
        ("update 5", signal.SIGINT, 6, True),
    ],
)
def test_a_signal_is_obeyed_whatever_runs(tmp_path, place, number, saved, owed):
    """goodfire-ai/spd #741: in training and in validations, the last one too."""
    run, events = train(tmp_path, at(place, number))
    assert run.stopping and events.count(f"save {saved}") == 1
    path = list_checkpoints(tmp_path)[-1]
    assert path.stem == f"checkpoint-{saved}"
    assert read_checkpoint(path)["validation_owed"] is owed
    _, events = train(tmp_path, lambda *_: None, resume=path)
    assert (events[:1] == [f"validate {saved}"]) is owed
    assert not read_checkpoint(tmp_path / "checkpoint-6.ckpt")["validation_owed"]


def test_a_signal_is_obeyed_while_data_is_awaited(tmp_path):
    """pytorch/pytorch #33296: storage that answers no more."""

    def stall(task, place):
        if place == "wait" and "validate 3" in task.events:
            os.kill(os.getpid(), signal.SIGTERM)
            return False
        return None

    run, events = train(tmp_path, stall)
    assert run.step == 3 and events[-1] == "save 3"


def test_nohup_stays_and_a_request_to_look_changes_nothing(tmp_path):
    """Nerogar/OneTrainer #218: samples now; the training is that which nobody asked."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for name in ("asked", "hup"):
            (tmp_path / name).mkdir()
        _, events = train(tmp_path / "asked", at("update 4", signal.SIGUSR1))
        assert events[3:6] == ["save 4", "save 5", "validate 5"]
        run, events = train(tmp_path / "hup", at("update 5", signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.step == 6 and events[-1] == "save 6 best"
    one, other = (
        read_checkpoint(tmp_path / name / "checkpoint-6.ckpt") for name in ("asked", "hup")
    )
    del one["rng_state"], other["rng_state"], one["means"], other["means"]
    assert one == other


@pytest.mark.parametrize(
    "entry", ["train_ddp", "train_image_ddp", "wfimagevae/torchrun", "wfimagevae/__main__"]
)
def test_a_request_to_look_before_a_training_begins_does_not_end_it(entry):
    """Nerogar/OneTrainer #218: a scheduler may ask in the first second, while imports run."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Asked:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('pydantic', 'torch'):\n"
        "            os.kill(os.getpid(), signal.SIGUSR1)\n"
        "            raise SystemExit(7)\n"
        "sys.meta_path.insert(0, Asked())\n"
        f"runpy.run_path({str(ROOT / entry) + '.py'!r}, run_name='__main__')"
    )
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=variables).returncode == 7


def test_a_request_to_look_while_it_validates_is_met_once(tmp_path):
    run, events = train(tmp_path, at("validate 3", signal.SIGUSR1))
    assert events[:5] == ["save 2", "validate 3", "best", "save 3", "save 4"]
    assert run.step == 6


def test_a_run_asked_to_stop_draws_no_plots(tmp_path, monkeypatch):
    """goodfire-ai/spd #741: on a busy machine all pages take longer than is left."""
    drawn, update, place = [], Player.update, PipelinePlace(tmp_path)
    there = "wfimagevae.engine.report.progress.draw_beside"
    monkeypatch.setattr(there, lambda calls: drawn.extend(args[-1] for _, args in calls))

    def asked(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return update(*args)

    def run(name):
        content = place.content(name)
        del content["training"]["pipeline"]["steps"][1:]
        content["output"] |= {"generate_diagrams": True, "checkpoint_save_interval": 100}
        assert len(list(place.run(content).glob("steps/*/checkpoint-*.ckpt"))) == 1
        return {path.name for path in drawn}

    assert run("whole") >= {"warmup_batch_times.png", "training_losses_live"}
    drawn.clear()
    monkeypatch.setattr(Player, "update", asked)
    assert not run("stopped")


@pytest.mark.parametrize(
    ("place", "saved"),
    [
        ("engine.player.Player.update", 0),  # the first one compiles
        ("task.flow_validation.energy_distance", 2),
        ("engine.report.progress.draw_beside", 2),
    ],
)
def test_no_call_that_takes_long_holds_up_a_signal(tmp_path, monkeypatch, place, saved):
    """goodfire-ai/spd #741: what Python does not come back from for a minute."""

    def hang(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    monkeypatch.setattr(f"wfimagevae.{place}", hang)
    start, options = time.monotonic(), {"disable_live_plot": None, "csv_log_steps": 1}
    assert main(FlowPlace(tmp_path).flags("x", 2, eval_steps=2, **options)) == 0
    assert time.monotonic() - start < 20
    found = [path.stem for path in tmp_path.glob("results/*/checkpoint-*.ckpt")]
    assert found == [f"checkpoint-{saved}"] * (saved > 0)


def fail(place, error):
    def act(task, here):
        if here == place:
            raise error

    return act


def test_no_validation_ends_a_training(tmp_path, caplog):
    """Nerogar/OneTrainer #1621: out of memory, saved first, told once."""
    error = torch.OutOfMemoryError("CUDA out of memory\nmore")
    run, events = train(tmp_path, fail("validate 3", error), save_ckpt_step=3)
    assert events == ["save 3", "validate 3", "save 3", "save 6", "validate 6", "save 6 best"]
    (told,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert told.endswith("OutOfMemoryError: CUDA out of memory") and "step 3" in told
    assert run.task.network.training


@pytest.mark.parametrize("moment", ["wait", "glance"])
def test_data_that_fails_ends_a_training_after_a_save(tmp_path, moment):
    """pytorch/pytorch #96629: hours of steps are no price for a storage that fails."""

    def act(task, place):
        if place == "update 4":
            task.events.append("fifth")
        if place == moment and "fifth" in task.events:
            raise DataError("none of 3 images is readable")

    with pytest.raises(DataError, match="none of 3"):
        train(tmp_path, act, eval_steps=0)
    assert list_checkpoints(tmp_path)[-1].stem == "checkpoint-5"


def _rank(folder):
    """Rank 1 fails in one validation, and hears a signal while its data does not come."""
    with world("cpu") as here:

        def act(task, place):
            if here.rank and place == "validate 3":
                raise torch.OutOfMemoryError("rank 1")
            if place == "wait" and here.rank and "save 4" in task.events:
                os.kill(os.getpid(), signal.SIGTERM)
                return False

        run, events = train(folder, act, here)
        assert events == ["save 2", "validate 3", "save 4"] and run.stopping


def test_processes_leave_off_and_end_together(tmp_path):
    """goodfire-ai/spd #741, under torchrun."""
    on_ranks(2, _rank, tmp_path)
    assert [path.stem for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]


class Numbers(TrainData):
    """Positions as tensors, slow enough that workers have something left to do."""

    seed = 0

    def __len__(self):
        return 10

    def read_batch(self, positions):
        time.sleep(0.01)
        return {"x": torch.tensor(positions).expand(1000, -1).clone()}


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_worker_that_hangs_or_dies_is_replaced_and_the_order_stays(number, caplog):
    """pytorch/pytorch #96629."""
    whole = draw(TrainLoader(Numbers(), 2, read_by(0)), 12)
    loader = TrainLoader(Numbers(), 2, read_by(2, data_timeout=1))
    parts = [next(loader) for _ in range(3)]
    pid = loader._workers[1].pid
    os.kill(pid, number)
    parts += draw(loader, 9)
    assert [b["position"] for b in parts] == [b["position"] for b in whole]
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(parts, whole, strict=True))
    assert f"process {pid} " in caplog.text and caplog.text.count("replaced") == 1


class Stalled(Numbers):
    def read_batch(self, positions):
        time.sleep(3600)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_whoever_waits_for_stalled_storage_can_look_about(num_workers):
    """pytorch/pytorch #33296: a pipe or a share that answers no more, without workers too."""
    loader, start = TrainLoader(Stalled(), 2, read_by(num_workers)), time.monotonic()
    assert not loader.ready(1, 0.2) and not loader.ready(1, 0.2)
    loader.close()
    assert time.monotonic() - start < 30


class Piped(Numbers):
    def __init__(self, fifo):
        self.fifo = fifo

    def read_batch(self, positions):
        subprocess.run(f"sleep 3600 > '{self.fifo}'; true", shell=True)


def test_a_stuck_command_ends_with_the_worker_that_runs_it(tmp_path):
    """webdataset/webdataset: a pipe's command is a shell's, which has children."""
    os.mkfifo(tmp_path / "fifo")
    loader = TrainLoader(Piped(tmp_path / "fifo"), 2, read_by(1))
    loader.ready()
    with (tmp_path / "fifo").open("rb") as file:  # once the command has it, too
        loader.close()
        assert select.select([file], [], [], 20)[0] and file.read() == b""


class Killing(Numbers):
    def read_batch(self, positions):
        os.kill(os.getpid(), signal.SIGKILL)


def test_data_that_kills_every_worker_is_an_error():
    """pytorch/pytorch #1355: a file on which the decoder of every worker ends."""
    with pytest.raises(DataError, match=r"died \(exit code -9\), after 3 others at the same batch"):
        next(TrainLoader(Killing(), 2, read_by(1)))


def test_names_and_pictures_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    """A held-out name that is not UTF-8, one too long with more around it, a full GPU."""
    place = Workplace(tmp_path)
    images = sorted((tmp_path / "held_out").iterdir())
    images[0].rename(tmp_path / "held_out" / os.fsdecode(b"caf\xe9.png"))
    images[1].rename(tmp_path / "held_out" / f"{'n' * 250}.png")
    folder = place.train("names", 2, eval_steps=2, disc_start=0)
    assert len(list((folder / "val_images" / "original").iterdir())) == 3
    assert "caf\\udce9.png" in (folder / "val_patch_scores" / "summary.csv").read_text()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]

    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(FlowGenerator, "sample", full)
    flow = FlowPlace(tmp_path).train("full", 2, eval_steps=1, ema=True)
    whole = FlowPlace(tmp_path).train("whole", 2, ema=True)
    one, other = (load(f, 2)["state_dict"]["gen_model"] for f in (flow, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert caplog.text.count("failed, training goes on: OutOfMemoryError: full") == 2


def test_an_error_under_torchrun_is_told_once_and_last(tmp_path):
    """Facico/Chinese-Vicuna #113: the launcher's traceback hides what failed."""
    command = [sys.executable, "-m", "wfimagevae.torchrun", "--standalone", "--nproc_per_node=2"]
    command += [ROOT / "train_image_ddp.py", "--image_path=none", "--eval_steps=0", "--device=cpu"]
    done = subprocess.run(
        [*map(str, command), "--ckpt_dir=out/runs"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: image path")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
