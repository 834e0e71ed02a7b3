"""Speed, wait for data, time left and the bill, by a clock that tests set."""

import logging
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from tests.engine.toy import batches, player
from wfimagevae.engine.distributed import World
from wfimagevae.engine.loop import Task, fit
from wfimagevae.engine.report import progress as report
from wfimagevae.engine.run import Run
from wfimagevae.task.flow_options import FlowOptions

READING, UPDATING, VALIDATING = 4.0, 6.0, 100.0  # seconds


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowTask(Task):
    """Each batch, update and validation takes its time on the clock."""

    best_name = "best.ckpt"
    dataset, num_unreadable = range(4), 0

    def __init__(self, clock):
        super().__init__([player()], torch.nn.Identity(), self)
        self.clock, self.batches = clock, iter(batches(8, 4))

    def ready(self, count, seconds):
        return True

    def __iter__(self):
        return self

    def __next__(self):
        self.clock.now += READING
        return next(self.batches)

    def turn(self, step):
        self.clock.now += UPDATING
        return self.players

    def validate(self, step):
        self.clock.now += VALIDATING
        return {"val/energy_distance": 0.0}, 0.0, {}

    def facts(self):
        return {}

    def parts(self):
        return {}


@pytest.fixture
def train(tmp_path, monkeypatch, caplog):
    """Trains 5 steps, 4 samples each, from a step on; returns the progress lines and the bill."""
    clock = Clock()
    monkeypatch.setattr(report, "time", clock)
    caplog.set_level(logging.INFO, "wfimagevae")

    def run(step=0, eval_steps=0, samples="images"):
        here = World(0, 1, torch.device("cpu"))
        options = {"max_steps": 5, "batch_size": 4, "log_steps": 2, "csv_log_steps": 5}
        options |= {"disable_csv_log": True, "save_ckpt_step": 0, "eval_steps": eval_steps}
        task = SlowTask(clock)
        task.samples = samples
        run = Run(FlowOptions(**options), here, tmp_path, task)
        run.step = step
        with run.interrupt:
            fit(run)
        run.reporter.summary()
        lines = [record.getMessage() for record in caplog.records]
        *progress, bill = [line for line in lines if line.startswith(("step ", "done: "))]
        return progress, bill

    return run


def test_a_slow_dataset_and_the_time_left_show_in_every_line_and_in_the_bill(train):
    progress, bill = train()
    for line, step, left in zip(progress, (2, 4, 5), (30, 10, 0), strict=True):
        assert line.startswith(f"step {step}/5 | ")
        assert line.endswith(f" | 0.4 img/s | data 40 % | ETA 0:00:{left:02}")  # 4 of 10 seconds
    assert bill == (
        "done: 20 images in 0:00:50 (0.4 img/s), 0.0139 cpu hours, 40 % waiting for data"
    )


def test_a_resumed_run_counts_its_own_steps_alone(train):
    progress, bill = train(step=3)
    assert [line.split(" | ")[-1] for line in progress] == ["ETA 0:00:10", "ETA 0:00:00"]
    assert bill.startswith("done: 8 images in 0:00:20 (0.4 img/s)")


def test_validation_is_no_part_of_the_speed_of_training(train):
    progress, bill = train(eval_steps=2)
    for line in progress:
        assert "| 0.4 img/s | data 40 % |" in line
    assert "20 images in 0:05:50" in bill  # but of the bill


def test_samples_are_called_what_they_are(train, caplog):
    for samples, rate in (("points", "0.4 points/s"), ("latents", "0.4 img/s")):
        progress, bill = train(eval_steps=4, samples=samples)
        assert all(f"| {rate} |" in line for line in progress[-3:])
        assert bill.startswith(f"done: 20 {samples} in ") and f" {rate[4:]})" in bill
        assert f"| val/energy_distance of {samples} 0.0000" in caplog.text


def test_plots_hold_up_no_step_whether_they_hang_or_fail(tmp_path, monkeypatch, caplog):
    clock, drawings = Clock(), []
    hung, release = os.pipe()

    def draw_beside(calls):
        pipes = {"stdin": hung, "stderr": subprocess.PIPE, "text": True}
        drawings.append(subprocess.Popen([sys.executable, "-c", "input()"], **pipes))
        return drawings[-1]

    monkeypatch.setattr(report, "time", clock)
    monkeypatch.setattr(report, "draw_beside", draw_beside)
    here, options = World(0, 1, torch.device("cpu")), FlowOptions(live_plot_every_steps=1)
    reporter = report.Reporter(options, tmp_path, here)
    reporter.begin(0, 9, 1.0)
    for step in range(1, 7):
        clock.now += 0.6 * reporter.PLOT_EVERY
        reporter.report(step, 9, {"loss": 1.0}, to_log=True, to_csv=True)
        assert len(drawings) == (1 if step < 5 else 2)  # not before the first one is done
        if step == 3:
            os.close(release)
            drawings[0].wait()
    reporter.summary(plots=False)
    assert [r.getMessage() for r in caplog.records if "plots" in r.getMessage()] == [
        "loss plots not written: EOFError: EOF when reading a line"
    ]


def cuda_reporter(tmp_path):
    reporter = report.Reporter(
        FlowOptions(disable_csv_log=True), tmp_path, World(1, 2, torch.device("cpu")), None
    )
    reporter.world = World(1, 2, torch.device("cuda"))
    return reporter


def test_on_cuda_a_wait_counts_as_far_as_the_device_had_nothing_to_do(tmp_path, monkeypatch):
    clock, device = Clock(), SimpleNamespace(busy_until=0.0)

    class Event:
        """Passed when the device is done with all it was asked for before."""

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.passed = max(clock.now, device.busy_until)

        def elapsed_time(self, end):
            return 1000 * (end.passed - self.passed)  # milliseconds, as CUDA's

    monkeypatch.setattr(report, "time", clock)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    reporter = cuda_reporter(tmp_path)
    # Seconds of work that the device has left, of the host's wait, and so of its own.
    for work, wait, idle in ((6, 4, 0), (3, 4, 1), (0, 2, 2)):
        device.busy_until, before = clock.now + work, reporter.total_wait
        with reporter.waiting():
            clock.now += wait
        clock.now += 10
        reporter.report(1, 2, {}, to_log=True, to_csv=False)
        assert reporter.total_wait - before == idle


@pytest.mark.gpu
@pytest.mark.parametrize("is_busy", [True, False])
def test_a_wait_hides_behind_kernels(tmp_path, is_busy):
    reporter = cuda_reporter(tmp_path)
    torch.cuda._sleep(1)
    torch.cuda.synchronize()
    if is_busy:
        torch.cuda._sleep(4_000_000_000)  # cycles: a second or more
    with reporter.waiting():
        time.sleep(0.3)
    torch.cuda.synchronize()
    reporter.report(1, 2, {}, to_log=True, to_csv=False)
    assert reporter.total_wait < 0.05 if is_busy else 0.25 < reporter.total_wait < 0.4
