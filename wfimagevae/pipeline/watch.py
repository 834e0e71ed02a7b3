"""What a person sees of a step: console lines, metrics, plots, a summary, samples."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wfimagevae.engine.loop import Task
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.report.metrics import JsonLines
from wfimagevae.engine.report.plots import Panel, Series, draw_page
from wfimagevae.engine.report.progress import log_write_errors
from wfimagevae.engine.run import Run
from wfimagevae.files import read_json_lines, write_text
from wfimagevae.pipeline.metrics import METRICS
from wfimagevae.pipeline.samples import SampleDrawer
from wfimagevae.pipeline.steps import Pipeline, Step

_LOSSES = (
    Panel("VAE: reconstruction, per pixel value", ("vae_loss",)),
    Panel("flow: error of the velocity, per dimension", ("flow_loss",)),
    Panel("generator and discriminator", ("g_loss", "d_loss"), log=False),
    Panel("LPIPS", ("lpips_loss",)),
    Panel("colour, histogram, contrast", ("color_stats", "hist_loss", "contrast_loss")),
)
_KL = (
    Panel("KL divergence, per latent value", ("kl_loss",)),
    Panel("its weight, for sums", ("kl_weight",), log=False),
)
_TIMES = (Panel("seconds a batch", ("batch_time",), log=False),)
# What multiples of an epoch's length are off by, at most.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Position:
    """Where a step stands: the epoch and its batch that were done last, counted from 1."""

    epoch: int
    epochs: int
    batch: int
    batches: int


def position(
    step: int, epoch_steps: float, max_steps: int, num_epochs: int | None = None
) -> Position:
    """The place of an iteration among epochs.

    Args:
        step: Iterations done.
        epoch_steps: Iterations that make an epoch, not always whole.
        max_steps: Iterations in all.
        num_epochs: Epochs that they were counted from, if they were: the last one ends with them.
    """
    epochs = num_epochs or max(1, math.ceil(max_steps / epoch_steps - _ROUNDING))
    epoch = min(max(1, math.ceil(step / epoch_steps - _ROUNDING)), epochs)
    begin, end = (math.floor(n * epoch_steps + _ROUNDING) for n in (epoch - 1, epoch))
    if num_epochs and epoch == epochs:
        end = max_steps
    return Position(epoch, epochs, step - begin, max(1, end - begin))


def console_line(
    title: str, where: Position, metrics: dict[str, float], seconds: float, elapsed: float
) -> str:
    """``[h:mm:ss] Step vae_gan (2/3) | Epoch 5/20 | Batch 127/500 | VAE 0.02 | ... | 3.2s/batch``.

    Args:
        title: The step's name and number.
        where: The place in the step.
        metrics: Values under FluxFlow's names.
        seconds: Time of a batch; ``elapsed`` is that since the command began.
    """
    minutes, second = divmod(int(elapsed), 60)
    return " | ".join(
        [
            f"[{minutes // 60}:{minutes % 60:02d}:{second:02d}] Step {title}",
            f"Epoch {where.epoch}/{where.epochs}",
            f"Batch {where.batch}/{where.batches}",
            *(f"{m.label} {metrics[name]:.4g}" for name, m in METRICS.items() if name in metrics),
            f"{seconds:.3g}s/batch",
        ]
    )


class StepWatcher:
    """Looks on while one step trains.

    Args:
        pipeline: The file, of which ``step`` is one and ``options`` those of its training.
        latents: Latent values of an image, for a VAE step.
        drawer: Draws samples, if asked for.
        started: When the command began, by `time.perf_counter`.
    """

    # Share of the time that may go into plots.
    PLOT_SHARE = 0.02

    def __init__(
        self,
        pipeline: Pipeline,
        step: Step,
        options: TrainingOptions,
        latents: int | None,
        drawer: SampleDrawer | None,
        started: float,
    ):
        self.pipeline, self.step, self.drawer = pipeline, step, drawer
        self.latents, self.started, self.plot_time = latents, started, 0.0
        self.num_epochs = None if options.max_steps else options.epochs
        # Reported even where the training logs no such value, as it does not change.
        self.constants = {"kl_weight": options.kl_weight} if step.task == "vae" else {}
        self.session = time.strftime("%Y%m%dT%H%M%S")

    def begin(self, run: Run, task: Task) -> None:
        """Opens the metrics' file where the run stands; rows of later steps come again."""
        self.run, self.rows = run, None
        if run.world.is_main:
            path = metrics_path(self.pipeline.output, self.step.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.rows = JsonLines(path, run.step)
        if self.drawer:
            self.drawer.begin(task, run.world)

    def line(self, step: int, values: dict[str, float]) -> str:
        """The progress line of an iteration."""
        title = f"{self.step.name} ({self.step.index + 1}/{len(self.pipeline.steps)})"
        elapsed = time.perf_counter() - self.started
        metrics, seconds = self._metrics(values), self._seconds(values)
        return console_line(title, self._position(step), metrics, seconds, elapsed)

    def logged(self, step: int, values: dict[str, float]) -> None:
        """Writes a row of ``training_metrics_<step>.jsonl``."""
        if self.rows is None:
            return
        where, seconds = self._position(step), self._seconds(values)
        rates = {n.removeprefix("lr/"): v for n, v in values.items() if n.startswith("lr/")}
        left = self.run.max_steps - step
        row = {
            "step": step,
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "session_id": self.session,
            "epoch": where.epoch,
            "batch": where.batch,
            "global_step": step,
            "metrics": self.constants | self._metrics(values),
            "learning_rates": rates,
            "extras": {"batch_time": seconds, "eta_seconds": left * seconds},
        }
        with log_write_errors("metrics"):
            self.rows.write(row)

    def saving(self, step: int) -> None:
        """Draws samples and sums up; before the checkpoint, so that none lacks its samples."""
        output = self.pipeline.content.output
        every = self.run.options.save_ckpt_step * output.samples_per_checkpoint
        if self.drawer and (self.run.finished or (every and step % every == 0)):
            where = self._position(step)
            with self.run.reporter.paused():
                self.drawer.draw(where.epoch, where.batch)
        elapsed = time.perf_counter() - self.started
        if self.rows and self.plot_time <= self.PLOT_SHARE * elapsed:
            self.sum_up()

    def sum_up(self) -> None:
        """Writes the summary and draws plots of the metrics so far, on the main process."""
        start, output, name = time.perf_counter(), self.pipeline.output, self.step.name
        with log_write_errors("summary and plots"):
            write_summary(output, [step.name for step in self.pipeline.steps])
            has_rows = metrics_path(output, name).exists()
            if self.pipeline.content.output.generate_diagrams and has_rows:
                draw_graphs(output, name)
        self.plot_time += time.perf_counter() - start

    def _metrics(self, values: dict[str, float]) -> dict[str, float]:
        """Logged values under FluxFlow's names, means over pixels and latent values."""
        metrics = {name: values[m.logged] for name, m in METRICS.items() if m.logged in values}
        if "kl_loss" in metrics:
            metrics["kl_loss"] /= self.latents or 1
        if "train/kl_weight" in values:
            metrics["kl_weight"] = values["train/kl_weight"]
        return metrics

    def _position(self, step: int) -> Position:
        return position(step, self.run.epoch_steps, self.run.max_steps, self.num_epochs)

    def _seconds(self, values: dict[str, float]) -> float:
        speed = values.get("img_per_s", 0.0)
        return self.run.samples_a_step / speed if speed else 0.0


def metrics_path(folder: Path, name: str) -> Path:
    """Where a step's metrics stand, below the output folder."""
    return folder / "graph" / f"training_metrics_{name}.jsonl"


def draw_graphs(folder: Path, name: str) -> None:
    """Draws a step's losses, KL, learning rates and batch times, and all at once."""
    series = _series(read_json_lines(metrics_path(folder, name)))
    rates = tuple(key for key in series if key.startswith("lr/"))
    learning = (Panel("learning rate", rates, log=False),)
    pages = {
        "training_losses": _LOSSES,
        "kl_loss": _KL,
        "learning_rates": learning,
        "batch_times": _TIMES,
        "training_overview": (*_LOSSES, *_KL, *learning, *_TIMES),
    }
    for page, panels in pages.items():
        path = folder / "graph" / f"{name}_{page}.png"
        draw_page(f"{name}: {page.replace('_', ' ')}", panels, series, path)


def write_summary(folder: Path, names: Sequence[str]) -> None:
    """Writes ``graph/training_summary.txt``: what each step trained so far and where it stands."""
    sections = []
    for name in names:
        rows = read_json_lines(metrics_path(folder, name))
        sections.append(_summary(name, rows) if rows else f"{name}\n  not begun\n")
    write_text(folder / "graph" / "training_summary.txt", "\n".join(sections))


def _summary(name: str, rows: list[dict]) -> str:
    last = rows[-1]
    sessions = len(dict.fromkeys(row["session_id"] for row in rows))
    seconds = sum(
        (row["step"] - before) * (row["extras"]["batch_time"] or 0)
        for before, row in zip([0, *(row["step"] for row in rows)], rows, strict=False)
    )
    lines = [
        name,
        f"  steps {last['step']}, epoch {last['epoch']}, sessions {sessions}, "
        f"about {seconds / 3600:.2f} hours",
        f"  from {rows[0]['timestamp']} to {last['timestamp']}",
    ]
    for key, (steps, values) in _series(rows).items():
        if not key.startswith("lr/") and key != "batch_time":
            best = int(np.argmin(values))
            lines.append(
                f"  {key}: first {values[0]:.6g}, last {values[-1]:.6g}, "
                f"lowest {values[best]:.6g} at step {int(steps[best])}"
            )
    return "\n".join(lines) + "\n"


def _series(rows: list[dict]) -> Series:
    """Columns of the metrics' rows, finite values only."""
    columns: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        rates = {f"lr/{name}": rate for name, rate in row["learning_rates"].items()}
        times = {"batch_time": row["extras"]["batch_time"]}
        for name, value in (row["metrics"] | rates | times).items():
            if value is not None and np.isfinite(value):
                columns.setdefault(name, []).append((row["step"], value))
    return {name: tuple(np.array(pairs, dtype=float).T) for name, pairs in columns.items()}
