"""What a training step costs, phase by phase, of any kind of training."""

import itertools
import logging
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from wfimagevae.engine.checkpoint import Checkpoint
from wfimagevae.engine.device import autocast, synchronize
from wfimagevae.engine.distributed import World
from wfimagevae.engine.interrupt import Interrupt
from wfimagevae.engine.loop import Task, fit
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.report.gpu import peak_flops
from wfimagevae.engine.report.progress import Reporter, ReportOptions
from wfimagevae.engine.report.tracker import Tracker
from wfimagevae.engine.run import Run, RunLength


class TrainBenchmark:
    """Times the steps of a training that is built as the trainer builds it.

    Args:
        task: Players, and whose turn it is; their arithmetic, where it is known.
        batches: Endless micro-batches, on the players' device.
        options: Of the training.
        shown: What a result says of the training.
    """

    def __init__(self, task: Task, batches: Iterator, options: TrainingOptions, shown: dict):
        self.task, self.batches, self.options, self.shown = task, batches, options, shown
        self.device = task.players[0].device

    def time_steps(self, warmup: int, steps: int) -> dict:
        """Speed without interference, then the phases with the device synchronised between.

        Args:
            warmup: Steps before either measurement.
            steps: Steps of each.

        Returns:
            ``img_per_s``, ``ms`` a step, median ``ms_data``, ``ms_forward``, ``ms_backward``
            (with clipping, averages and what else an update does) and ``ms_optimizer``, summed
            over the players of a step; peak memory in bytes; share of the device's peak.
        """
        for step in range(warmup):
            self._step(step)
        synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start, flops = time.perf_counter(), 0.0
        for step in range(warmup, warmup + steps):
            flops += self._step(step)
        synchronize(self.device)
        elapsed = time.perf_counter() - start
        images = steps * self.options.batch_size * self.options.grad_accum_steps
        result = {"img_per_s": images / elapsed, "ms": 1000 * elapsed / steps}
        result |= self._phases(warmup + steps, steps) | self._memory()
        peak = self._peak_flops()
        result["mfu"] = flops / elapsed / peak if peak else None
        return result | {"device": str(self.device), "torch": torch.__version__} | self.shown

    def _step(self, step: int) -> float:
        micro = [next(self.batches) for _ in range(self.options.grad_accum_steps)]
        samples = len(micro) * self.options.batch_size
        players = self.task.turn(step)
        for player in players:
            player.update(micro, step)
        return sum(player.flops_per_sample for player in players) * samples

    def _phases(self, first: int, steps: int) -> dict[str, float]:
        watch = _Stopwatch(self.device)
        removers = []
        for player in self.task.players:
            removers += [
                player.objective.register_forward_pre_hook(lambda *_: watch.start()),
                player.objective.register_forward_hook(lambda *_: watch.stop("forward")),
                player.optimizer.register_step_pre_hook(lambda *_: watch.start()),
                player.optimizer.register_step_post_hook(lambda *_: watch.stop("optimizer")),
            ]
        rows = []
        for step in range(first, first + steps):
            watch.times = dict.fromkeys(("data", "forward", "optimizer"), 0.0)
            watch.start()
            micro = [next(self.batches) for _ in range(self.options.grad_accum_steps)]
            watch.stop("data")
            begin = time.perf_counter()
            for player in self.task.turn(step):
                player.update(micro, step)
            synchronize(self.device)
            update = time.perf_counter() - begin
            backward = update - watch.times["forward"] - watch.times["optimizer"]
            rows.append(watch.times | {"backward": backward})
        for remover in removers:
            remover.remove()
        phases = ("data", "forward", "backward", "optimizer")
        return {f"ms_{p}": 1000 * statistics.median(row[p] for row in rows) for p in phases}

    def _memory(self) -> dict[str, int]:
        if self.device.type == "cuda":
            return {"peak_memory": torch.cuda.max_memory_allocated(self.device)}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_resident": peak if sys.platform == "darwin" else 1024 * peak}

    def _peak_flops(self) -> float | None:
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        return peak_flops(name, self.options.mix_precision)

    def loop_overhead(self, steps: int, rounds: int = 7) -> float:
        """Time of the trainer's loop over that of the objectives' bare steps, in turns.

        The bare step is zero_grad, forward, backward and optimizer step of each player; the
        loop adds clipping, checks, logs, files and signals.

        Args:
            steps: Steps of each in a round.
            rounds: Rounds; the median ratio is returned.
        """
        logging.getLogger("wfimagevae").setLevel(logging.WARNING)
        ratios = []
        with tempfile.TemporaryDirectory() as folder, Interrupt() as interrupt:
            here = World(0, 1, self.device)
            report = ReportOptions(
                Path(folder), Path(folder) / "losses.csv", 0, (), self.options.mix_precision
            )
            reporter = Reporter(report, here, Tracker("none"))
            for _ in range(rounds):
                run = Run(
                    here,
                    self.options.changed(grad_accum_steps=1),
                    RunLength(steps, steps),
                    Path(folder),
                    Checkpoint({}),
                    interrupt,
                    reporter,
                )
                bare = self._seconds(lambda: self._bare_steps(steps))
                loop = self._seconds(lambda run=run: fit(self.task, self.batches, run))
                ratios.append(loop / bare)
        return statistics.median(ratios)

    def step_seconds(self, steps: int = 1) -> float:
        """Time of the steps 0, 1, ... ``steps`` - 1, with their batches."""
        return self._seconds(lambda: [self._step(step) for step in range(steps)])

    def _seconds(self, function) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        function()
        synchronize(self.device)
        return time.perf_counter() - start

    def _bare_steps(self, steps: int) -> None:
        for step in range(steps):
            batch = next(self.batches)
            for player in self.task.turn(step):
                player.optimizer.zero_grad()
                player.objective.begin_update()
                with autocast(self.device, self.options.mix_precision):
                    loss, _ = player.objective(batch, step)
                loss.backward()
                player.optimizer.step()


def ratio_in_turns(first: Callable[[], float], second: Callable[[], float], rounds: int) -> float:
    """Median of what one measures over what the other does, measured in turns.

    Args:
        first: Measures, in seconds.
        second: Measures what it is compared with.
        rounds: Of each; one round before them does not count.
    """
    times = [(first(), second()) for _ in range(rounds + 1)][1:]
    return statistics.median(a / b for a, b in times)


class RandomBatches(Iterator):
    """One batch, of random numbers, at ever new positions.

    Args:
        inputs: What the objective gets, each (B, ...), on the device.
    """

    num_unreadable = 0

    def __init__(self, inputs: dict[str, Tensor]):
        self._inputs, self._positions = inputs, itertools.count()

    def __next__(self) -> dict:
        size = len(next(iter(self._inputs.values())))
        positions = list(itertools.islice(self._positions, size))
        return self._inputs | {"position": positions, "unreadable": []}


class _Stopwatch:
    """Adds up the time between start and stop, by phase."""

    def __init__(self, device: torch.device):
        self.device = device
        self.times: dict[str, float] = {}
        self._begin = 0.0

    def start(self) -> None:
        synchronize(self.device)
        self._begin = time.perf_counter()

    def stop(self, phase: str) -> None:
        synchronize(self.device)
        self.times[phase] += time.perf_counter() - self._begin
