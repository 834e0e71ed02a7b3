"""What a person sees of a run: progress, files, plots, trackers, and the bill at the end."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from tqdm import tqdm

from wfimagevae.engine.checkpoint import set_aside
from wfimagevae.engine.distributed import World
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.report.gpu import GpuMonitor, peak_flops
from wfimagevae.engine.report.metrics import CsvLog, JsonLines, csv_log_path
from wfimagevae.engine.report.plots import plot_losses
from wfimagevae.engine.report.tracker import Tracker

log = logging.getLogger("wfimagevae")


@contextmanager
def log_write_errors(what: str) -> Iterator[None]:
    """Whatever fails, a full disk or a name, costs ``what``, and is logged, but not the training.

    No process may wait for another one inside.
    """
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        log.error("%s not written: %s", what, reason)


class Reporter:
    """Counts a run's samples, time and arithmetic, and writes what is measured on rank 0.

    The progress line shows the values of ``headline`` that there are; ``line``, if given, makes the
    whole line from a step and its values; ``samples`` is what is counted. MFU refers to the peak
    rate of the options' precision.
    """

    # Drawing takes half a second; on fast steps, every ten of them would be most of the time.
    PLOT_TIME_SHARE = 0.02
    # In a log file a long validation says how far it is this often, in seconds.
    PROGRESS_EVERY = 30.0

    def __init__(
        self,
        options: TrainingOptions,
        folder: Path,
        world: World,
        tracker: Tracker,
        headline: tuple[str, ...] = (),
        line: Callable[[int, dict[str, float]], str] | None = None,
        samples: str = "images",
    ):
        self.folder, self.world, self.tracker = folder, world, tracker
        self.headline, self.line, self.csv_path = headline, line, csv_log_path(options, folder)
        self.noun, self.unit = samples, "points/s" if samples == "points" else "img/s"
        self.plot_every = 0 if options.disable_live_plot else options.live_plot_every_steps
        self.monitor, self.peak = GpuMonitor(world.device), None
        if world.device.type == "cuda":
            name = torch.cuda.get_device_name(world.device)
            self.peak = peak_flops(name, options.mix_precision)
        self.csv = self.metrics = self.validations = None
        self.steps, self.samples, self.flops = 0, 0.0, 0.0
        self.wait = self.total_wait = self.plot_time = 0.0
        self.started = self.since = time.perf_counter()
        self.reported_samples = self.reported_flops = 0.0
        self.last_plot_step, self.epoch_steps, self.last_progress = 0, 1.0, self.started
        # On a terminal, a bar; in a log file (disable=None), lines.
        self.bar = tqdm(desc="training", unit="step", disable=None if world.is_main else True)

    def begin(self, step: int, max_steps: int, epoch_steps: float) -> None:
        """Opens the files, without rows after ``step``, which come again; starts the clock."""
        if self.world.is_main:
            path = self.csv_path
            if path and path.exists() and not step and path.parent != self.folder.absolute():
                log.warning("%s is of another run: it is now %s", path, set_aside(path))
            self.csv = CsvLog(path, step) if path else None
            self.metrics = JsonLines(self.folder / "metrics.jsonl", step)
            self.validations = JsonLines(self.folder / "validation.jsonl", step)
        self.last_plot_step, self.epoch_steps = step, epoch_steps
        self.started = self.since = time.perf_counter()
        self.bar.total, self.bar.initial = max_steps, step
        self.bar.reset(max_steps)
        self.bar.update(step)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.wait += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = self.last_progress = time.perf_counter()
        try:
            yield
        finally:
            self.since += time.perf_counter() - start

    def progress(self, what: str, done: int, total: int) -> None:
        """How far a validation is: on the bar, or in a line now and then."""
        now, text = time.perf_counter(), f"{what} {done}/{total}"
        if not self.bar.disable:
            self.bar.set_postfix_str(text)
        elif self.world.is_main and now - self.last_progress > self.PROGRESS_EVERY:
            self.last_progress = now
            log.info("%s", text)

    def count(self, samples: int) -> None:
        self.steps += 1
        self.bar.update()
        self.samples += samples

    def worked(self, flops: float) -> None:
        self.flops += flops

    def report(
        self, step: int, max_steps: int, values: dict[str, float], to_log: bool, to_csv: bool
    ) -> dict[str, float]:
        """Writes the means since the last report, and returns them with what is measured here."""
        # Speed, wait and share of the peak since the last report.
        now = time.perf_counter()
        elapsed = max(now - self.since, 1e-9)
        values = values | {
            "img_per_s": (self.samples - self.reported_samples) / elapsed,
            "data_wait_share": self.wait / elapsed,
        }
        if self.peak and self.flops > self.reported_flops:
            rate = (self.flops - self.reported_flops) / elapsed / self.world.size
            values["mfu"] = rate / self.peak
        self.since, self.reported_samples, self.reported_flops = now, self.samples, self.flops
        self.total_wait, self.wait = self.total_wait + self.wait, 0.0
        if not self.world.is_main:
            return values
        values |= self.monitor.read()
        if to_log:
            self._print(step, max_steps, values)
        with log_write_errors("logged values and plots"):
            row = {"step": step} | values
            self.metrics.write(row)
            if self.csv and to_csv:
                self.csv.write(row)
                is_due = self.plot_every and step - self.last_plot_step >= self.plot_every
                if is_due and self.plot_time <= self.PLOT_TIME_SHARE * (now - self.started):
                    self.last_plot_step = step
                    self._plot()
        self.tracker.log(step, values)
        return values

    def _print(self, step: int, max_steps: int, values: dict[str, float]) -> None:
        if self.line and self.bar.disable:
            log.info("%s", self.line(step, values))
            return
        parts = [f"{n.split('/')[-1]} {values[n]:.4g}" for n in self.headline if n in values]
        skipped = sum(v for name, v in values.items() if name.startswith("skipped/"))
        parts += [f"skipped {skipped:.0f}"] if skipped else []
        parts += [f"{values['img_per_s']:.3g} {self.unit}"]
        parts += [f"data {100 * values['data_wait_share']:.0f} %"]
        if not self.bar.disable:
            self.bar.set_postfix_str(" | ".join(parts), refresh=False)
            return
        left = (max_steps - step) * (time.perf_counter() - self.started) / max(self.steps, 1)
        parts += [f"ETA {timedelta(seconds=round(left))}"]
        epoch = f"epoch {step / self.epoch_steps if self.epoch_steps else 0:.3g}"
        log.info("step %d/%d | %s", step, max_steps, " | ".join([epoch, *parts]))

    def _plot(self) -> None:
        start = time.perf_counter()
        plot_losses(self.csv_path, self.folder / "training_losses_live")
        self.plot_time += time.perf_counter() - start

    def validation(self, step: int, values: dict[str, float], pictures: dict[str, Path]) -> None:
        if self.world.is_main:
            of = f" of {self.noun}"
            titles = {name: name + of if "energy_distance" in name else name for name in values}
            figures = " | ".join(f"{titles[name]} {value:.4f}" for name, value in values.items())
            log.info("validation at step %d | %s", step, figures)
            with log_write_errors("validation figures"):
                self.validations.write({"step": step} | values)
            self.tracker.log_images(step, pictures)
            self.tracker.log(step, values)

    def summary(self, plots: bool = True) -> None:
        """Draws the final plots; prints the bill: images, speed, share of the peak, hours."""
        self.bar.close()
        if not self.world.is_main:
            return
        if plots and self.plot_every and self.csv and self.csv.path.exists():
            with log_write_errors("loss plots"):
                self._plot()
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        hours = elapsed * self.world.size / 3600
        line = f"{self.samples:.0f} {self.noun} in {timedelta(seconds=round(elapsed))}"
        line += f" ({self.samples / elapsed:.3g} {self.unit})"
        line += f", {hours:.3g} {self.world.device.type} hours"
        line += f", {100 * self.total_wait / elapsed:.0f} % waiting for data"
        if self.peak and self.flops:
            mfu = self.flops / elapsed / self.world.size / self.peak
            line += f", {100 * mfu:.1f} % of the device's peak (MFU)"
        log.info("done: %s", line)
