"""One self-contained HTML page about a run: curves, figures, pictures and options."""

import base64
import html
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from wfimagevae.engine.report.plots import plot_losses, read_json_lines, read_losses

log = logging.getLogger("wfimagevae")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111827; background: #f9fafb; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 24px; margin: 8px 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 10px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; }
.tile { background: #fff; border: 1px solid #e5e7eb; border-radius: 8px; padding: 10px 16px; }
.tile b { display: block; font-size: 20px; font-variant-numeric: tabular-nums; }
.tile span { color: #6b7280; font-size: 13px; }
table { border-collapse: collapse; background: #fff; font-size: 13px; }
td, th { border: 1px solid #e5e7eb; padding: 3px 10px; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
img { max-width: 100%; display: block; border-radius: 4px; }
.plot { background: #fff; border: 1px solid #e5e7eb; border-radius: 8px; padding: 8px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; margin: 10px 0; }
figure { margin: 0; }
figcaption { color: #6b7280; font-size: 13px; overflow-wrap: anywhere; }
"""


def write_report(run_dir: str | Path, output: str | Path, max_pictures: int = 8) -> Path:
    """Redraws a run's loss plots and writes a report that needs no other file.

    What a run did not write (validation pictures, GPU figures) is left out; where its CSV is not
    found, the report and a warning say where it was looked for.

    Args:
        run_dir: Folder of a training run.
        output: HTML file to write.
        max_pictures: Validation pictures of each kind to embed.

    Returns:
        The file written.

    Raises:
        ValueError: the folder holds nothing of a run, or its options.json is broken.
    """
    run_dir, output = Path(run_dir), Path(output)
    options = _options(run_dir)
    csv_paths = _csv_paths(run_dir, options)
    csv_path = next((path for path in csv_paths if path.is_file()), None)
    if not options and not csv_path:
        raise ValueError(
            f"{run_dir} is no run's folder: neither options.json nor training_losses.csv is in it"
        )
    validations = read_json_lines(run_dir / "validation.jsonl")
    metrics = read_json_lines(run_dir / "metrics.jsonl")
    sections = [_tiles(csv_path, validations)]
    sections += [
        _section("Training curves", _curves(run_dir, csv_path, csv_paths, options)),
        _section("Validation", _validation_table(validations)),
        _section("Held-out images: original and reconstruction", _pairs(run_dir, max_pictures)),
        _section("Discriminator's patch scores", _patch_scores(run_dir, max_pictures)),
        _section("GPU", _gpu_table(metrics)),
        _section("Options", _table(("option", "value"), sorted(options.items()))),
    ]
    title = html.escape(run_dir.resolve().name)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{title}</h1>{''.join(sections)}</main></body></html>\n"
    )
    output.write_text(page, encoding="utf-8")
    return output


def _options(run_dir: Path) -> dict:
    path = run_dir / "options.json"
    if not path.exists():
        return {}
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bytes that are no text, or text that is no JSON
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(options, dict):
        raise ValueError(f"{path} holds no JSON object")
    return options


def _csv_paths(run_dir: Path, options: dict) -> list[Path]:
    """Where the losses may be: what --csv_log_path said, as typed and in the run's folder."""
    default, given = run_dir / "training_losses.csv", options.get("csv_log_path")
    paths = [Path(given), run_dir / Path(given).name, default] if given else [default]
    return list(dict.fromkeys(paths))


def _curves(run_dir: Path, csv_path: Path | None, csv_paths: list[Path], options: dict) -> str:
    """The two pages of plots, and a word where the CSV is not where the options say."""
    note = ""
    if csv_path is None and not options.get("disable_csv_log"):
        note = f"no losses to draw; looked for {', '.join(map(str, csv_paths))}"
    elif csv_path and csv_path != csv_paths[0]:
        note = f"{csv_paths[0]} does not exist; the curves are those of {csv_path}"
    if note:
        log.warning("%s", note)
        note = f"<p>{html.escape(note)}</p>"
    pages = plot_losses(csv_path, run_dir / "training_losses_live") if csv_path else []
    return note + "".join(_plot(page) for page in pages)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>" if body else ""


def _tiles(csv_path: Path | None, validations: list[dict]) -> str:
    """The latest of what a person asks for first."""
    latest: dict[str, str] = {}
    series = read_losses(csv_path) if csv_path else {}
    if series:
        latest["step"] = f"{max(steps[-1] for steps, _ in series.values()):.0f}"
    for name in ("train/rec_loss_per_pixel", "img_per_s"):
        if name in series:
            latest[name] = f"{series[name][1][-1]:.4g}"
    for name in validations[-1] if validations else ():
        if name != "step":
            latest[name] = _cell(validations[-1][name])
    psnrs = [v for row in validations for n, v in row.items() if n.endswith("/psnr") and v]
    if psnrs:
        latest["best PSNR, dB"] = f"{max(psnrs):.2f}"
    tiles = (
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in latest.items()
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _validation_table(validations: list[dict]) -> str:
    """The last twenty validations."""
    names = list(dict.fromkeys(name for row in validations for name in row))
    return _table(names, ([row.get(name) for name in names] for row in validations[-20:]))


def _gpu_table(metrics: list[dict]) -> str:
    rows = []
    for name in dict.fromkeys(n for row in metrics for n in row if n.startswith("gpu/")):
        values = np.array([row[name] for row in metrics if row.get(name) is not None])
        if len(values):
            rows.append([name.removeprefix("gpu/"), values.min(), values.mean(), values.max()])
    return _table(("figure", "least", "mean", "greatest"), rows)


def _pairs(run_dir: Path, max_pictures: int) -> str:
    folder = run_dir / "val_images"
    step = _latest_step(folder / "reconstructed")
    if step is None:
        return ""
    body = ""
    for reconstruction in sorted(step.glob("*.png"))[:max_pictures]:
        original = folder / "original" / reconstruction.name
        if original.exists():
            left = _figure(original, f"{reconstruction.stem}: original")
            right = _figure(reconstruction, f"reconstruction, {step.name}")
            body += f'<div class="pair">{left}{right}</div>'
    return body


def _patch_scores(run_dir: Path, max_pictures: int) -> str:
    step = _latest_step(run_dir / "val_patch_scores")
    if step is None:
        return ""
    note = "<p>Left the image, right its reconstruction; red looks real, blue generated.</p>"
    pictures = sorted(step.glob("*.png"))[:max_pictures]
    return note + "".join(_figure(path, f"{path.stem}, {step.name}") for path in pictures)


def _latest_step(folder: Path) -> Path | None:
    steps = sorted(path for path in folder.glob("step-*") if path.is_dir())
    return steps[-1] if steps else None


def _plot(path: Path) -> str:
    return f'<div class="plot"><img alt="{path.stem}" src="{_data_url(path)}"></div>'


def _figure(path: Path, caption: str) -> str:
    text = html.escape(caption)
    image = f'<img alt="{text}" src="{_data_url(path)}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _table(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    return f"<table><tr>{head}</tr>{body}</table>" if body else ""


def _cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    return json.dumps(value) if isinstance(value, Mapping | list | bool) else str(value)
