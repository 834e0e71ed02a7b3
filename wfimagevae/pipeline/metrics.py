"""A step's metrics under FluxFlow's names: one line of the console, one row of a file."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from wfimagevae.engine.report.metrics import JsonLines
from wfimagevae.pipeline.units import METRICS

# What the console shows, in order.
_SHOWN = {
    "vae_loss": "VAE",
    "kl_loss": "KL",
    "g_loss": "G",
    "d_loss": "D",
    "lpips_loss": "LPIPS",
    "color_stats": "ColorStats",
    "hist_loss": "Hist",
    "contrast_loss": "Contrast",
    "flow_loss": "Flow",
}


# What multiples of an epoch's length are off by, at most.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Position:
    """Where a step stands.

    Attributes:
        step: Iterations done.
        epoch_steps: Iterations that make an epoch, not always whole.
        max_steps: All of them.
        num_epochs: That they were counted from, if they were: the last one ends with them.
    """

    step: int
    epoch_steps: float
    max_steps: int
    num_epochs: int | None = None

    @property
    def epoch(self) -> int:
        """From 1."""
        return min(max(1, _ceil(self.step / self.epoch_steps)), self.epochs)

    @property
    def epochs(self) -> int:
        """In all."""
        return self.num_epochs or max(1, _ceil(self.max_steps / self.epoch_steps))

    @property
    def batch(self) -> int:
        """Of the epoch, from 1."""
        return self.step - self._begin

    @property
    def batches(self) -> int:
        """Of the epoch."""
        ends = self.num_epochs is not None and self.epoch == self.epochs
        end = self.max_steps if ends else _floor(self.epoch * self.epoch_steps)
        return max(1, end - self._begin)

    @property
    def _begin(self) -> int:
        """Iterations before the epoch."""
        return _floor((self.epoch - 1) * self.epoch_steps)


def _ceil(steps: float) -> int:
    return math.ceil(steps - _ROUNDING)


def _floor(steps: float) -> int:
    return math.floor(steps + _ROUNDING)


def named_metrics(values: dict[str, float], latents: int | None) -> dict[str, float]:
    """Logged values under FluxFlow's names: means over pixels and latent values.

    Args:
        values: As logged.
        latents: Latent values of an image; None where nothing is divided by them.
    """
    found = {}
    for name, metric in METRICS.items():
        if metric.name in values:
            divisor = latents if metric.per_latent and latents else 1
            found[name] = values[metric.name] / divisor
    if "train/kl_weight" in values:
        found["kl_weight"] = values["train/kl_weight"]
    return found


def console_line(
    title: str, where: Position, metrics: dict[str, float], seconds: float, elapsed: float
) -> str:
    """``[h:mm:ss] Step vae_gan (2/3) | Epoch 5/20 | Batch 127/500 | VAE 0.02 | ... | 3.2s/batch``.

    Args:
        title: Such as ``vae_gan (2/3)``.
        where: In the step.
        metrics: Of `named_metrics`.
        seconds: Of a batch.
        elapsed: Seconds since the command began.
    """
    shown = [f"{text} {metrics[name]:.4g}" for name, text in _SHOWN.items() if name in metrics]
    minutes, second = divmod(int(elapsed), 60)
    parts = [
        f"[{minutes // 60}:{minutes % 60:02d}:{second:02d}] Step {title}",
        f"Epoch {where.epoch}/{where.epochs}",
        f"Batch {where.batch}/{where.batches}",
        *shown,
        f"{seconds:.3g}s/batch",
    ]
    return " | ".join(parts)


class StepMetrics:
    """The file ``training_metrics_<step>.jsonl``.

    Args:
        path: The file; an existing one is continued.
        resume_step: Rows of later steps are dropped: they come again.
    """

    def __init__(self, path: Path, resume_step: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = JsonLines(path, resume_step)
        self.session = time.strftime("%Y%m%dT%H%M%S")

    def write(
        self,
        where: Position,
        metrics: dict[str, float],
        rates: dict[str, float],
        seconds: float,
    ) -> None:
        """Appends a row."""
        self.file.write(
            {
                "step": where.step,
                "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S"),
                "session_id": self.session,
                "epoch": where.epoch,
                "batch": where.batch,
                "global_step": where.step,
                "metrics": metrics,
                "learning_rates": rates,
                "extras": {
                    "batch_time": seconds,
                    "eta_seconds": (where.max_steps - where.step) * seconds,
                },
            }
        )
