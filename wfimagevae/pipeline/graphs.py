"""Plots of a step's metrics, and the summary of all steps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wfimagevae.engine.report.plots import Panel, Series, draw_page
from wfimagevae.files import read_json_lines, write_atomically

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


def metrics_path(folder: Path, name: str) -> Path:
    """Where a step's metrics stand, below the output folder."""
    return folder / "graph" / f"training_metrics_{name}.jsonl"


def draw_graphs(folder: Path, name: str) -> None:
    """Draws a step's metrics: losses, KL, learning rates, batch times, and all at once.

    Args:
        folder: The pipeline's output.
        name: Of the step.
    """
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
    text = "\n".join(sections)
    path = folder / "graph" / "training_summary.txt"
    write_atomically(path, lambda file: file.write(text.encode()))


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
    series = _series(rows)
    for key, (steps, values) in series.items():
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
