"""What a person sees of a run: progress, files of figures, plots, and the bill at the end."""

import csv
import io
import json
import logging
import math
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from wfimagevae.engine.checkpoint import set_aside
from wfimagevae.engine.distributed import World, all_reduce_mean
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.report.gpu import gpu_figures, peak_flops
from wfimagevae.engine.report.plots import draw_beside, plot_losses
from wfimagevae.engine.report.tracker import Tracker
from wfimagevae.files import read_json_lines, write_text

if TYPE_CHECKING:
    from wfimagevae.engine.run import Watcher

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


class Means:
    """Running means of device scalars, fetched with one transfer.

    A value may also be a pair (sum, weight): its mean is that of all sums over all weights, left
    out where nothing had weight. A scalar is a sum of weight one.
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds detached scalars or pairs; nothing waits for the device."""
        # All sums in one call, of one kernel, and none in place: the values are the caller's.
        known = [key for key in values if key in self._sums]
        before, more = [self._sums[key] for key in known], [values[key] for key in known]
        sums = torch._foreach_add(before, more) if known else ()
        self._sums |= values | dict(zip(known, sums, strict=True))
        for key in values:
            self._counts[key] = self._counts.get(key, 0) + 1

    def fetch(self) -> dict[str, float]:
        """Means since the last call over steps and ranks; waits for the device. Collective."""
        if not self._sums:
            return {}
        means = [self._sums[key].float() for key in self._counts]
        means = torch._foreach_div(means, list(self._counts.values()))
        # One vector for all ranks and the host, with as many numbers a name as that has.
        numbers = iter(all_reduce_mean(torch.cat([mean.flatten() for mean in means])).tolist())
        pairs = [(next(numbers), next(numbers) if m.dim() else 1.0) for m in means]
        names = list(self._counts)
        self.__init__()
        return {n: sum_ / w for n, (sum_, w) in zip(names, pairs, strict=True) if w}

    def state_dict(self) -> dict[str, tuple[Tensor, int]]:
        """This process's sums and counts since the last fetch, on the CPU."""
        return {name: (self._sums[name].cpu(), count) for name, count in self._counts.items()}

    def load_state_dict(self, state: dict[str, tuple[Tensor, int]], device: torch.device) -> None:
        self._sums = {name: total.to(device, copy=True) for name, (total, _) in state.items()}
        self._counts = {name: count for name, (_, count) in state.items()}


class CsvLog:
    """A CSV file that grows by rows and, when a new name appears, by columns.

    An existing file is continued, without rows after ``resume_step``, which come again.
    """

    def __init__(self, path: Path, resume_step: int):
        self.path, self.columns = path, ["step"]
        if path.exists():
            columns, rows = self._read()
            self.columns = columns or self.columns
            # A kill may have cut the last line short.
            rows = [row for row in rows if None not in row.values() and row["step"].isdigit()]
            self._rewrite([row for row in rows if int(row["step"]) <= resume_step])

    def write(self, row: dict[str, float]) -> None:
        new = [key for key in row if key not in self.columns]
        if new or not self.path.exists():
            self.columns += new
            self._rewrite([*(self._read()[1] if self.path.exists() else ()), row])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)

    def _read(self) -> tuple[list[str], list[dict]]:
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), list(reader)

    def _rewrite(self, rows: list[dict]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


class JsonLines:
    """A file of one JSON object a line, continued like a `CsvLog`."""

    def __init__(self, path: Path, resume_step: int):
        self.path = path
        if path.exists():
            rows = read_json_lines(path)
            kept = [row for row in rows if row.get("step", math.inf) <= resume_step]
            write_text(path, "".join(map(_json_line, kept)))

    def write(self, row: dict) -> None:
        """Appends a row; numbers that JSON cannot hold become null."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_json_line(row))


def _json_line(row: dict) -> str:
    return json.dumps(_finite(row)) + "\n"


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Reporter:
    """Counts a run's samples, time and arithmetic, and writes what is measured on rank 0.

    The progress line shows the values of ``headline`` that there are, or is the ``watcher``'s;
    ``samples`` is what is counted. MFU refers to the peak rate of the options' precision.
    """

    # Drawing takes a second of another process; on fast steps, every ten of them would be always.
    PLOT_EVERY = 50.0
    # In a log file a long validation says how far it is this often, in seconds.
    PROGRESS_EVERY = 30.0

    def __init__(
        self,
        options: TrainingOptions,
        folder: Path,
        world: World,
        tracker: Tracker | None = None,
        headline: tuple[str, ...] = (),
        watcher: "Watcher | None" = None,
        samples: str = "images",
    ):
        self.folder, self.world, self.tracker = folder, world, tracker
        self.headline, self.watcher = headline, watcher
        # The losses' CSV file, if there is to be one, is told at once where it is another file.
        path = Path(options.csv_log_path or folder / "training_losses.csv")
        self.csv_path = None if options.disable_csv_log else path
        if self.csv_path and path.exists():
            if not path.is_file():
                hint = "give another --csv_log_path, or --disable_csv_log"
                raise ValueError(f"{path} is no file; {hint}")
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                columns = csv.DictReader(file).fieldnames
            if columns and "step" not in columns:
                raise ValueError(
                    f"{path} is no log of losses: its columns are {', '.join(columns):.80}; give "
                    "another --csv_log_path"
                )
        self.noun, self.unit = samples, "points/s" if samples == "points" else "img/s"
        self.plot_every = 0 if options.disable_live_plot else options.live_plot_every_steps
        self.peak = None
        if world.device.type == "cuda":
            name = torch.cuda.get_device_name(world.device)
            self.peak = peak_flops(name, options.mix_precision)
        self.csv = self.metrics = self.validations = None
        self.steps, self.samples, self.flops = 0, 0.0, 0.0
        self.waits, self.total_wait = [], 0.0
        self.drawing: subprocess.Popen | None = None
        self.started = self.since = time.perf_counter()
        self.reported_samples = self.reported_flops = 0.0
        self.last_plot_step, self.last_plot, self.epoch_steps = 0, -math.inf, 1.0
        self.last_progress = self.started
        # On a terminal, a bar; in a log file (disable=None), lines.
        self.bar = tqdm(desc="training", unit="step", disable=None if world.is_main else True)

    def begin(self, step: int, max_steps: int, epoch_steps: float, offset: float = 0.0) -> None:
        """Opens the files, without rows after ``step``, which come again; starts the clock."""
        if self.world.is_main:
            path = self.csv_path
            if path and path.exists() and not step and path.parent != self.folder.absolute():
                log.warning("%s is of another run: it is now %s", path, set_aside(path))
            self.csv = CsvLog(path, step) if path else None
            self.metrics = JsonLines(self.folder / "metrics.jsonl", step)
            self.validations = JsonLines(self.folder / "validation.jsonl", step)
        self.last_plot_step, self.epoch_steps, self.step_offset = step, epoch_steps, offset
        self.started = self.since = time.perf_counter()
        self.bar.total, self.bar.initial = max_steps, step
        self.bar.reset(max_steps)
        self.bar.update(step)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the wait for data: on CUDA what the device was idle, with the data's own copy."""
        if self.world.device.type != "cuda":
            start = time.perf_counter()
            yield
            self.waits.append((start, time.perf_counter()))
            return
        # Events stand behind all that the device was asked for, and need not wait.
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self.waits.append((start, end))

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

    def count(self, samples: int, flops_per_sample: float) -> None:
        self.steps += 1
        self.bar.update()
        self.samples += samples
        self.flops += samples * flops_per_sample

    def report(
        self, step: int, max_steps: int, values: dict[str, float], to_log: bool, to_csv: bool
    ) -> None:
        """Writes the means since the last report, with what is measured here."""
        # Speed, wait and share of the peak since the last report; its events are over, as the
        # means that were fetched came behind them.
        now = time.perf_counter()
        elapsed = max(now - self.since, 1e-9)
        is_cuda = self.world.device.type == "cuda"
        wait = sum(a.elapsed_time(b) / 1000 if is_cuda else b - a for a, b in self.waits)
        values = values | {
            "img_per_s": (self.samples - self.reported_samples) / elapsed,
            "data_wait_share": wait / elapsed,
        }
        if self.peak and self.flops > self.reported_flops:
            rate = (self.flops - self.reported_flops) / elapsed / self.world.size
            values["mfu"] = rate / self.peak
        self.since, self.reported_samples, self.reported_flops = now, self.samples, self.flops
        self.total_wait, self.waits = self.total_wait + wait, []
        if not self.world.is_main:
            return
        values |= gpu_figures(self.world.device)
        if to_log:
            self._print(step, max_steps, values)
        with log_write_errors("logged values and plots"):
            row = {"step": step} | values
            self.metrics.write(row)
            if to_log and self.watcher:
                self.watcher.logged(step, values)
            if self.csv and to_csv:
                self.csv.write(row)
                is_due = self.plot_every and step - self.last_plot_step >= self.plot_every
                if is_due and now - self.last_plot >= self.PLOT_EVERY:
                    self.last_plot_step, self.last_plot = step, now
                    self._plot()
        if self.tracker:
            self.tracker.log(step, values)

    def _print(self, step: int, max_steps: int, values: dict[str, float]) -> None:
        if self.watcher and self.bar.disable:
            log.info("%s", self.watcher.line(step, values))
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
        parts = [f"epoch {(step + self.step_offset) / self.epoch_steps:.3g}", *parts]
        log.info("step %d/%d | %s", step, max_steps, " | ".join(parts))

    def _plot(self) -> None:
        """Begins to redraw the plots, unless those of last time are still being drawn."""
        if self.drawing is None or self.drawing.poll() is not None:
            self._finish_plots()
            calls = [(plot_losses, (self.csv_path, self.folder / "training_losses_live"))]
            self.drawing = draw_beside(calls + (self.watcher.plots() if self.watcher else []))

    def _finish_plots(self) -> None:
        """Waits until the plots are drawn, and logs what they failed by."""
        drawing, self.drawing = self.drawing, None
        with log_write_errors("loss plots"):
            if drawing and (errors := drawing.communicate(timeout=60)[1]) and drawing.returncode:
                raise OSError(errors.strip().splitlines()[-1])

    def validation(self, step: int, values: dict[str, float], pictures: dict[str, Path]) -> None:
        if self.world.is_main:
            of = f" of {self.noun}"
            titles = {name: name + of if "energy_distance" in name else name for name in values}
            figures = " | ".join(f"{titles[name]} {value:.4f}" for name, value in values.items())
            log.info("validation at step %d | %s", step, figures)
            with log_write_errors("validation figures"):
                self.validations.write({"step": step} | values)
            if self.tracker:
                self.tracker.log_images(step, pictures)
                self.tracker.log(step, values)

    def summary(self, plots: bool = True) -> None:
        """Prints the bill: images, speed, share of the peak, hours; draws the final plots."""
        self.bar.close()
        if not self.world.is_main:
            return
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
        if plots and self.plot_every and self.csv and self.csv.path.exists():
            self._finish_plots()
            with log_write_errors("loss plots"):
                self._plot()
            self._finish_plots()
