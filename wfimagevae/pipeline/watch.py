"""What a person sees of a step: console lines, metrics, plots, a summary, samples."""

import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wfimagevae.dataset.images.decode import open_rgb
from wfimagevae.dataset.images.transforms import center_crop
from wfimagevae.dataset.protocol import to_signed_unit
from wfimagevae.engine.device import autocast
from wfimagevae.engine.loop import Task
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.report.plots import Panel, Series, draw_page, series_of
from wfimagevae.engine.report.progress import JsonLines, log_write_errors
from wfimagevae.engine.run import Run
from wfimagevae.engine.seeding import sample_noise, stable_hash
from wfimagevae.files import read_json_lines, write_text
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.generator_files import open_latent_space
from wfimagevae.generate.subjects import Subject
from wfimagevae.pictures.pixels import to_uint8
from wfimagevae.pictures.writer import save_image
from wfimagevae.pipeline.flags import METRICS
from wfimagevae.pipeline.fluxflow import listed
from wfimagevae.pipeline.steps import Pipeline, Step
from wfimagevae.task.flow_validation import sampling_options

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


class Position(NamedTuple):
    """Where a step stands: the epoch and its batch that were done last, counted from 1."""

    epoch: int
    epochs: int
    batch: int
    batches: int


def position(
    step: int, epoch_steps: float, max_steps: int, num_epochs: int | None = None
) -> Position:
    """The place of an iteration, ``step`` of ``max_steps``, among epochs.

    ``epoch_steps`` make an epoch, and are not always whole; if iterations were counted from a
    number of epochs, the last one ends with them.
    """
    epochs = num_epochs or max(1, math.ceil(max_steps / epoch_steps - _ROUNDING))
    epoch = min(max(1, math.ceil(step / epoch_steps - _ROUNDING)), epochs)
    begin, end = (math.floor(n * epoch_steps + _ROUNDING) for n in (epoch - 1, epoch))
    if num_epochs and epoch == epochs:
        end = max_steps
    return Position(epoch, epochs, step - begin, max(1, end - begin))


class StepWatcher:
    """Looks on while one step trains, and draws its pictures, under names that never repeat.

    A VAE step's are images beside their reconstructions: ``original``; ``nr``, decoded from the
    posterior's mean; ``ns``, from a sample of it. A flow step's are one picture of each prompt, or
    one where it takes no text. All of them at each size.

    ``options`` are those of the step's training; ``latents`` is how many values the latent of an
    image has, for a VAE step; ``started`` is when the command began, by `time.perf_counter`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        step: Step,
        options: TrainingOptions,
        latents: int | None,
        started: float,
    ):
        output, is_vae = pipeline.content.output, step.task == "vae"
        self.pipeline, self.step, self.options = pipeline, step, options
        self.graph, self.samples = pipeline.output / "graph", pipeline.output / "samples"
        self.latents, self.started = latents, started
        self.num_epochs = None if options.max_steps else options.epochs
        # Reported even where the training logs no such value, as it does not change.
        self.constants = {"kl_weight": options.kl_weight} if is_vae else {}
        self.session = time.strftime("%Y%m%dT%H%M%S")
        self.sizes = output.sample_sizes or [[step.size, step.size]]
        subjects = listed(output.test_image_address) if is_vae else output.sample_captions
        self.subjects = [] if output.no_samples else subjects
        self.generator: FlowGenerator | None = None

    def begin(self, run: Run, task: Task) -> None:
        """Opens the metrics' file where the run stands; rows of later steps come again."""
        self.run, self.task = run, task
        if run.world.is_main:
            self.graph.mkdir(parents=True, exist_ok=True)
            self.rows = JsonLines(self._records(self.step), run.step)
        if self.step.task == "flow" and not self.pipeline.content.output.no_samples:
            self.generator = generator = task.generator()
            generator.resolve(sampling_options(self.options))  # what it cannot follow is told now
            if generator.decode is None and generator.facts["space"] == "latent":
                generator.decode = open_latent_space(generator.facts, run.world.device).to_images
            if not generator.model.takes_text:
                self.subjects = [""]

    def line(self, step: int, values: dict[str, float]) -> str:
        """``[h:mm:ss] Step gan (2/3) | Epoch 5/20 | Batch 127/500 | VAE 0.02 | ... s/batch``."""
        minutes, second = divmod(int(time.perf_counter() - self.started), 60)
        title = f"{self.step.name} ({self.step.index + 1}/{len(self.pipeline.steps)})"
        where, values, seconds = self._measured(step, values)
        parts = [
            f"[{minutes // 60}:{minutes % 60:02d}:{second:02d}] Step {title}",
            f"Epoch {where.epoch}/{where.epochs}",
            f"Batch {where.batch}/{where.batches}",
            *(f"{word} {values[n]:.4g}" for n, (_, word) in METRICS.items() if n in values),
            f"{seconds:.3g}s/batch",
        ]
        return " | ".join(parts)

    def logged(self, step: int, values: dict[str, float]) -> None:
        """Writes a row of ``training_metrics_<step>.jsonl``."""
        where, metrics, seconds = self._measured(step, values)
        row = {
            "step": step,
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "session_id": self.session,
            "epoch": where.epoch,
            "batch": where.batch,
            "global_step": step,
            "metrics": self.constants | metrics,
            "learning_rates": {n[3:]: v for n, v in values.items() if n.startswith("lr/")},
            "extras": {"batch_time": seconds, "eta_seconds": (self.run.max_steps - step) * seconds},
        }
        self.rows.write(row)

    def _records(self, step: Step) -> Path:
        return self.graph / f"training_metrics_{step.name}.jsonl"

    def _measured(
        self, step: int, values: dict[str, float]
    ) -> tuple[Position, dict[str, float], float]:
        """The place of an iteration, values under FluxFlow's names, seconds of a batch."""
        metrics = {n: values[logged] for n, (logged, _) in METRICS.items() if logged in values}
        if "kl_loss" in metrics and self.latents:
            metrics["kl_loss"] /= self.latents  # the mean over latent values
        if "train/kl_weight" in values:
            metrics["kl_weight"] = values["train/kl_weight"]
        speed = values.get("img_per_s", 0.0)
        before = round(self.run.step_offset)
        steps = step + before, self.run.epoch_steps, self.run.max_steps + before
        where = position(*steps, self.num_epochs)
        return where, metrics, self.run.samples_a_step / speed if speed else 0.0

    def draws(self, step: int) -> bool:
        """Whether samples belong to the checkpoint of a step."""
        every = self.run.options.save_ckpt_step
        every *= self.pipeline.content.output.samples_per_checkpoint
        return bool(self.subjects and (self.run.finished or (every and step % every == 0)))

    @torch.no_grad()
    def draw(self, step: int) -> None:
        """Draws the samples of a checkpoint; files that are there stay as they are. Collective."""
        run, ema, generator = self.run, self.task.players[0].ema, self.generator
        if not (generator or run.world.is_main):
            return  # of a flow the weights may be spread over all processes
        where = self._measured(step, {})[0]
        place = f"{self.step.name}_{self.step.index + 1:03d}_{where.epoch:03d}_{where.batch:05d}"
        self.task.network.eval()
        with ema.applied() if ema else nullcontext():
            for (width, height), (index, subject) in product(self.sizes, enumerate(self.subjects)):
                # All processes draw a flow's sample together; the main one makes a picture of it.
                if generator:
                    run.pulse(None, "sample", index, len(self.subjects))
                    whom, sides = Subject(index, None, subject or None), (height, width)
                    sampling, sides = sampling_options(self.options), generator.sample_size(*sides)
                    sample = generator.draw([whom], sampling, sides)
                if not run.world.is_main:
                    continue
                with log_write_errors(f"the sample of {subject!r}"):
                    if generator:
                        words = re.sub(r"\W+", "_", subject).strip("_")[:40]
                        words = words or ("prompt" if subject else "sample")
                        images = [(words, generator.images(sample)[0])]
                    else:
                        images = self._reconstructions(subject, width, height)
                    for suffix, image in images:
                        code = hashlib.md5(os.fsencode(subject)).hexdigest()[:8]
                        path = self.samples / f"{width}x{height}" / f"{place}_{code}-{suffix}.webp"
                        if not path.exists():
                            save_image(path, to_uint8(image.float().nan_to_num(0.0)))

    def _reconstructions(self, path: str, width: int, height: int) -> Iterator[tuple[str, Tensor]]:
        vae, device = self.task.network, self.run.world.device
        factor = vae.spatial_factor
        width, height = (max(side // factor, 1) * factor for side in (width, height))
        pixels = center_crop(open_rgb(path, short_side=(height, width)), (height, width))
        image = to_signed_unit(torch.from_numpy(pixels))[None].to(device)
        shape = (vae.config.latent_dim, height // factor, width // factor)
        noise = sample_noise(stable_hash("samples", self.options.seed), [0], shape, device)
        yield "original", image[0]
        with autocast(device, self.options.mix_precision):
            mean = vae(image, sample_posterior=False).sample
            drawn = vae(image, noise=noise).sample
        yield from (("nr", mean[0]), ("ns", drawn[0]))

    def saved(self, step: int) -> None:
        """Writes the summary of all steps so far."""
        with log_write_errors("summary"):
            steps = [(s.name, read_json_lines(self._records(s))) for s in self.pipeline.steps]
            text = "\n".join(_summary(*step) for step in steps)
            write_text(self.graph / "training_summary.txt", text)

    def plots(self) -> list[tuple[Callable, tuple]]:
        """What draws losses, KL, learning rates and batch times, and all at once."""
        series = _series(read_json_lines(self._records(self.step)))
        rates = tuple(key for key in series if key.startswith("lr/"))
        learning = (Panel("learning rate", rates, log=False),)
        pages = {
            "training_losses": _LOSSES,
            "kl_loss": _KL,
            "learning_rates": learning,
            "batch_times": _TIMES,
            "training_overview": (*_LOSSES, *_KL, *learning, *_TIMES),
        }
        calls = []
        for page, panels in pages.items():
            path = self.graph / f"{self.step.name}_{page}.png"
            title = f"{self.step.name}: {page.replace('_', ' ')}"
            calls.append((draw_page, (title, panels, series, path)))
        return calls


def _summary(name: str, rows: list[dict]) -> str:
    """What a step trained so far, and where it stands."""
    if not rows:
        return f"{name}\n  not begun\n"
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
    """Columns of the metrics' rows."""
    flat = [
        {"step": row["step"], "batch_time": row["extras"]["batch_time"]}
        | row["metrics"]
        | {f"lr/{name}": rate for name, rate in row["learning_rates"].items()}
        for row in rows
    ]
    return series_of(flat)
