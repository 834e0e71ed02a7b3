"""What a person sees of a step: console line, metrics, plots, samples."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wfimagevae.engine.loop import Task
from wfimagevae.engine.report.progress import log_write_errors
from wfimagevae.engine.run import Run
from wfimagevae.pipeline.graphs import draw_graphs, metrics_path, write_summary
from wfimagevae.pipeline.metrics import Position, StepMetrics, console_line, named_metrics
from wfimagevae.pipeline.samples import SampleDrawer


@dataclass(frozen=True)
class WatchedStep:
    """What its watcher needs to know of a step.

    Attributes:
        name: As the file says.
        names: Of all steps.
        num_epochs: The step's length, where that is what the file gives.
        output: The pipeline's folder.
        latents: Latent values of an image, for a VAE step.
        constants: Values to report where the training logs none of their name.
        samples_every: Samples are drawn at each so many-th checkpoint.
        draws_graphs: Whether plots are wanted.
        started: When the command began, by `time.perf_counter`.
    """

    name: str
    names: Sequence[str]
    num_epochs: int | None
    output: Path
    latents: int | None
    constants: dict[str, float]
    samples_every: int
    draws_graphs: bool
    started: float


class StepWatcher:
    """Looks on while one step trains.

    Args:
        watched: The step.
        drawer: Draws samples, if asked for.
    """

    # Of the time may go into plots.
    PLOT_SHARE = 0.02

    def __init__(self, watched: WatchedStep, drawer: SampleDrawer | None):
        self.watched, self.drawer = watched, drawer
        self.plot_time = 0.0

    def begin(self, run: Run, task: Task) -> None:
        """Opens the metrics' file where the run stands."""
        self.run, self.task = run, task
        self.rows = None
        if run.world.is_main:
            self.rows = StepMetrics(metrics_path(self.watched.output, self.watched.name), run.step)
        if self.drawer:
            self.drawer.begin(task, run.world)

    def line(self, step: int, values: dict[str, float]) -> str:
        """The console's."""
        name, names = self.watched.name, self.watched.names
        title = f"{name} ({names.index(name) + 1}/{len(names)})"
        metrics = named_metrics(values, self.watched.latents)
        elapsed = time.perf_counter() - self.watched.started
        return console_line(title, self._at(step), metrics, self._seconds(values), elapsed)

    def logged(self, step: int, values: dict[str, float]) -> None:
        """Writes a row."""
        if self.rows is None:
            return
        rates = {n.removeprefix("lr/"): v for n, v in values.items() if n.startswith("lr/")}
        metrics = self.watched.constants | named_metrics(values, self.watched.latents)
        with log_write_errors("metrics"):
            self.rows.write(self._at(step), metrics, rates, self._seconds(values))

    def saving(self, step: int) -> None:
        """Draws samples and sums up; before the checkpoint, so that none lacks its samples."""
        if self.drawer and self._samples_due(step):
            with self.run.reporter.paused():
                self.drawer.draw(self._at(step))
        elapsed = time.perf_counter() - self.watched.started
        if self.rows and self.plot_time <= self.PLOT_SHARE * elapsed:
            self.sum_up()

    def sum_up(self) -> None:
        """Writes the summary and draws plots of the metrics so far, on the main process."""
        watched = self.watched
        start = time.perf_counter()
        with log_write_errors("summary and plots"):
            write_summary(watched.output, watched.names)
            if watched.draws_graphs and metrics_path(watched.output, watched.name).exists():
                draw_graphs(watched.output, watched.name)
        self.plot_time += time.perf_counter() - start

    def _samples_due(self, step: int) -> bool:
        every = self.run.options.save_ckpt_step * self.watched.samples_every
        return self.run.finished or bool(every and step % every == 0)

    def _at(self, step: int) -> Position:
        epochs = self.watched.num_epochs
        return Position(step, self.run.epoch_steps, self.run.max_steps, epochs)

    def _seconds(self, values: dict[str, float]) -> float:
        speed = values.get("img_per_s", 0.0)
        return self.run.samples_a_step / speed if speed else 0.0
