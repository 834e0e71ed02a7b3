"""Live plots of training_losses.csv: two pages of curves, drawn without pyplot's global state."""

import csv
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wfimagevae.files import read_json_lines, replacing

Series = dict[str, tuple[np.ndarray, np.ndarray]]

_MAX_ROWS = 1500
_POSITIONS = ("step", "epoch", "samples_seen")
_COLORS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea")


class Panel(NamedTuple):
    """One set of axes: its title, the columns that it shows, and whether a log scale may help."""

    title: str
    columns: tuple[str, ...]
    log: bool = True


RECONSTRUCTION = (
    Panel("reconstruction error, per pixel value", ("train/rec_loss_per_pixel",)),
    Panel("perceptual distance (LPIPS)", ("train/perceptual_loss",)),
    Panel("KL, per pixel value", ("train/kl_loss_per_pixel",)),
    Panel("wavelet error, per pixel value", ("train/wl_loss_per_pixel",)),
    Panel("sums over pixels: nll and total", ("train/nll_loss", "train/total_loss")),
    Panel("sums over pixels: KL and wavelet", ("train/kl_loss", "train/wl_loss")),
    Panel("validation PSNR, dB", ("val/psnr", "val_ema/psnr"), log=False),
    Panel("validation SSIM", ("val/ssim", "val_ema/ssim"), log=False),
)
_QUARTERS = ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")
FLOW = (
    Panel("loss", ("train/loss",)),
    Panel("error, per dimension", ("train/error", "val/error", "val_ema/error")),
    Panel("error by time (0 noise, 1 data)", tuple(f"train/error_t{q}" for q in _QUARTERS)),
    Panel("validation loss", ("val/loss", "val_ema/loss")),
    Panel(
        "energy distance of samples to held-out data",
        tuple(f"{v}/energy_distance{o}" for v in ("val", "val_ema") for o in ("", "_one_step")),
    ),
    Panel(
        "FID of samples to held-out data",
        tuple(f"{v}/fid{o}" for v in ("val", "val_ema") for o in ("", "_one_step")),
    ),
)
_PLAYERS = ("generator", "discriminator", "flow")
ADVERSARIAL = (
    Panel("discriminator loss", ("train/disc_loss",), log=False),
    Panel("generator's adversarial loss", ("train/g_loss",), log=False),
    Panel("logits", ("train/logits_real", "train/logits_fake"), log=False),
    Panel("adversarial weight", ("train/d_weight",)),
    Panel("learning rate", tuple(f"lr/{name}" for name in (*_PLAYERS, "text_encoder")), log=False),
    Panel("gradient norm", tuple(f"grad_norm/{name}" for name in _PLAYERS)),
    Panel("images per second", ("img_per_s",), log=False),
    Panel("share of time waiting for data", ("data_wait_share",), log=False),
    Panel("share of the adversarial weight that counts", ("train/disc_factor",), log=False),
    Panel("skipped updates", tuple(f"skipped/{name}" for name in _PLAYERS), log=False),
)
# Another column says the same.
_REDUNDANT = ("train/rec_loss", *(f"skipped_in_a_row/{name}" for name in _PLAYERS))


def draw_beside(calls: Sequence[tuple[Callable, tuple]]) -> subprocess.Popen:
    """Begins to call functions that draw, with their arguments, in a process of its own.

    What went wrong there stands on its ``stderr``, as text. The functions are those of modules.
    """
    code = "import pickle, sys; sys.path = %r; [f(*a) for f, a in pickle.load(sys.stdin.buffer)]"
    with tempfile.TemporaryFile() as file:
        pickle.dump(calls, file)
        file.seek(0)
        words, pipe = [sys.executable, "-c", code % sys.path], subprocess.PIPE
        return subprocess.Popen(words, stdin=file, stderr=pipe, text=True, errors="replace")


def plot_losses(csv_path: str | Path, output_prefix: str | Path) -> list[Path]:
    """Draws the training curves as two pages: losses, and the adversarial game with the rest.

    A ``validation.jsonl`` in the folder of ``output_prefix`` is drawn too. A panel without data is
    left out, a page without panels is not drawn, and a column that belongs to no panel gets its own
    on page 2. Long runs are thinned to
    about 1500 rows, so that the cost stays flat. Returns the files ``<output_prefix>_page1.png``
    and ``_page2.png``, each replaced in one move, so that a viewer never sees half of one.
    """
    output_prefix = Path(output_prefix)
    validations = read_json_lines(output_prefix.with_name("validation.jsonl"))
    series = read_losses(csv_path) | series_of(validations)
    in_panels = {name for panel in RECONSTRUCTION + FLOW + ADVERSARIAL for name in panel.columns}
    others = [Panel(n, (n,)) for n in series if n not in in_panels and n not in _REDUNDANT]
    pages = {
        "Losses": RECONSTRUCTION + FLOW,
        "Progress, and the adversarial game if there is one": (*ADVERSARIAL, *others),
    }
    paths = [output_prefix.with_name(f"{output_prefix.name}_page{n}.png") for n in (1, 2)]
    for path, (title, panels) in zip(paths, pages.items(), strict=True):
        draw_page(title, panels, series, path)
    return [path for path in paths if path.exists()]


def read_losses(csv_path: str | Path) -> Series:
    """Numeric columns of a training CSV, as `series_of` gives them; long ones are thinned."""
    with open(csv_path, newline="", encoding="utf-8", errors="replace") as file:
        header, *lines = file.readlines() or [""]
    if len(lines) > _MAX_ROWS:  # at random: a fixed stride would hit one player's rows
        chosen = np.random.default_rng(0).choice(len(lines) - 1, _MAX_ROWS - 1, replace=False)
        lines = [lines[i] for i in sorted(chosen)] + lines[-1:]
    return series_of(list(csv.DictReader([header, *lines])))


def series_of(rows: Sequence[Mapping]) -> Series:
    """Numbers of the rows by name: (steps, values), both float64 (n,), finite ones only.

    Names without any or of zeros only, and the positions (step, epoch, samples_seen), are left
    out. Rows without a ``step`` are counted.
    """
    steps = np.array([_number(row.get("step", i)) for i, row in enumerate(rows)])
    series = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = np.array([_number(row.get(name)) for row in rows])
        mask = np.isfinite(values) & np.isfinite(steps)
        if name not in _POSITIONS and np.any(values[mask]):
            series[name] = (steps[mask], values[mask])
    return series


def _number(cell) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return np.nan


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over about a fortieth of the run, shorter at the ends."""
    window = np.ones(2 * (len(values) // 80) + 1)
    counts = np.convolve(np.ones(len(values)), window, "same")
    return np.convolve(values, window, "same") / counts


def draw_page(title: str, panels: Sequence[Panel], series: Series, path: Path) -> None:
    """Draws the panels that have data, if any, on one page; replaces the PNG file in one move."""
    from matplotlib.figure import Figure

    panels = [panel for panel in panels if any(name in series for name in panel.columns)]
    if not panels:
        return
    rows = -(-len(panels) // 2)
    height = 0.7 + 2.4 * rows
    figure = Figure(figsize=(12, height), dpi=80)
    # Set by hand: matplotlib's own layout engines take longer than all the drawing.
    figure.subplots_adjust(
        left=0.07, right=0.98, top=1 - 0.7 / height, bottom=0.4 / height, wspace=0.17, hspace=0.38
    )
    figure.suptitle(
        f"{title}, by training step", fontsize=13, fontweight="bold", y=1 - 0.15 / height, va="top"
    )
    for i, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(rows, 2, i + 1), panel, series)
    with replacing(path) as file:
        figure.savefig(file, format="png", pil_kwargs={"compress_level": 3})


def _draw_panel(axes, panel: Panel, series: Series) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    present = [name for name in panel.columns if name in series]
    for color, name in zip(_COLORS, present, strict=False):
        steps, values = series[name]
        smooth = _smooth(values)
        if np.any(smooth != values):
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        style = {"linewidth": 1.6, "marker": "o" if len(values) < 30 else None, "ms": 3}
        axes.plot(steps, smooth, color=color, label=name.removeprefix("train/"), **style)
    # A log scale where values span more than a factor of five.
    values = np.concatenate([series[name][1] for name in present])
    if panel.log and values.min() > 0 and values.max() > 5 * values.min():
        axes.set_yscale("log")
        decades = np.log10(values.max() / values.min())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set_fontsize(8)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.tick_params(labelsize=8, which="both")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(True, color="#e5e7eb", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    if len(present) > 1:
        place = {"loc": "lower right", "bbox_to_anchor": (1.01, 0.97), "ncols": 2}
        axes.legend(fontsize=8, frameon=False, **place)
