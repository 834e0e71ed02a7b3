"""One self-contained HTML page about a run: curves, figures, pictures and options."""

import base64
import html
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from wfimagevae.engine.report.plots import plot_losses, read_losses, series_of
from wfimagevae.files import read_json, read_json_lines, write_text

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


def write_report(
    run_dir: str | Path,
    output: str | Path,
    max_pictures: int = 8,
    defaults: Mapping[str, Mapping] | None = None,
) -> Path:
    """Redraws a run's loss plots and writes an HTML page about the run that needs no other file.

    It has up to ``max_pictures`` validation pictures of each kind, and first the options that
    differ from the ``defaults`` of their task. What a run did not write is left out; where its CSV
    is not found, the report and a warning say where it was looked for.
    """
    run_dir, output = Path(run_dir), Path(output)
    options_path = run_dir / "options.json"
    options = read_json(options_path) if options_path.exists() else {}
    # The losses are where --csv_log_path said, as typed or in the run's folder.
    typed = options.get("csv_log_path")
    csv_paths = [Path(typed), run_dir / Path(typed).name] if typed else []
    csv_paths = list(dict.fromkeys([*csv_paths, run_dir / "training_losses.csv"]))
    csv_path = next((path for path in csv_paths if path.is_file()), None)
    if not options and not csv_path:
        raise ValueError(f"{run_dir} is no run's folder: neither options.json nor losses are in it")
    note = ""
    if csv_path is None and not options.get("disable_csv_log"):
        note = f"no losses to draw; looked for {', '.join(map(str, csv_paths))}"
    elif csv_path and csv_path != csv_paths[0]:
        note = f"{csv_paths[0]} does not exist; the curves are those of {csv_path}"
    if note:
        log.warning("%s", note)
        note = f"<p>{html.escape(note)}</p>"
    pages = plot_losses(csv_path, run_dir / "training_losses_live") if csv_path else []
    plots = [f'<div class="plot">{_image(page, page.stem)}</div>' for page in pages]

    # A run that does not say its task has no defaults to compare with: all its options are alike.
    default = (defaults or {}).get(options.get("task"), options)
    changed = [(n, v, default.get(n)) for n, v in sorted(options.items()) if default.get(n) != v]
    others = [(n, v) for n, v in sorted(options.items()) if default.get(n) == v]
    validations = read_json_lines(run_dir / "validation.jsonl")
    columns = list(dict.fromkeys(name for row in validations for name in row))
    metrics = series_of(read_json_lines(run_dir / "metrics.jsonl")).items()
    gpu = [[n[4:], v.min(), v.mean(), v.max()] for n, (_, v) in metrics if n.startswith("gpu/")]
    sections = {
        "Training curves": note + "".join(plots),
        "Validation": _table(columns, [[row.get(n) for n in columns] for row in validations[-20:]]),
        "Held-out images: original and reconstruction": _pairs(run_dir, max_pictures),
        "Discriminator's patch scores": _patch_scores(run_dir, max_pictures),
        "GPU": _table(("figure", "least", "mean", "greatest"), gpu),
        "Options that differ from their defaults": _table(("option", "value", "default"), changed),
        "Options" + (" at their defaults" if changed else ""): _table(("option", "value"), others),
    }
    title = html.escape(run_dir.resolve().name)
    body = [f"<h1>{title}</h1>", _tiles(csv_path, validations)]
    for name, text in sections.items():
        body += [f"<section><h2>{html.escape(name)}</h2>{text}</section>"] if text else []
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    write_text(output, page)
    return output


def _tiles(csv_path: Path | None, validations: list[dict]) -> str:
    latest: dict[str, str] = {}
    series = read_losses(csv_path) if csv_path else {}
    if series:
        latest["step"] = f"{max(steps[-1] for steps, _ in series.values()):.0f}"
    for name in ("train/rec_loss_per_pixel", "img_per_s"):
        if name in series:
            latest[name] = f"{series[name][1][-1]:.4g}"
    if validations:
        latest |= {n: _cell(value) for n, value in validations[-1].items() if n != "step"}
    psnrs = [v.max() for n, (_, v) in series_of(validations).items() if n.endswith("/psnr")]
    if psnrs:
        latest["best PSNR, dB"] = f"{max(psnrs):.2f}"
    tiles = (
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in latest.items()
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _pairs(run_dir: Path, max_pictures: int) -> str:
    folder, body = run_dir / "val_images", ""
    for reconstruction in _latest_pictures(folder / "reconstructed")[:max_pictures]:
        original = folder / "original" / reconstruction.name
        if original.exists():
            left = _figure(original, f"{reconstruction.stem}: original")
            right = _figure(reconstruction, f"reconstruction, {reconstruction.parent.name}")
            body += f'<div class="pair">{left}{right}</div>'
    return body


def _patch_scores(run_dir: Path, max_pictures: int) -> str:
    pictures = _latest_pictures(run_dir / "val_patch_scores")[:max_pictures]
    note = "<p>Left the image, right its reconstruction; red looks real, blue generated.</p>"
    figures = [_figure(path, f"{path.stem}, {path.parent.name}") for path in pictures]
    return note + "".join(figures) if figures else ""


def _latest_pictures(folder: Path) -> list[Path]:
    steps = sorted(path for path in folder.glob(f"step-{'[0-9]' * 8}") if path.is_dir())
    return sorted(steps[-1].glob("*.png")) if steps else []


def _figure(path: Path, caption: str) -> str:
    text = html.escape(caption)
    return f"<figure>{_image(path, caption)}<figcaption>{text}</figcaption></figure>"


def _image(path: Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def _table(header: Sequence[str], rows: Sequence[Iterable]) -> str:
    lines = [[f"<th>{html.escape(name)}</th>" for name in header]]
    lines += [[f"<td>{html.escape(_cell(value))}</td>" for value in row] for row in rows]
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return f"<table>{body}</table>" if rows else ""


def _cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    return json.dumps(value) if isinstance(value, Mapping | list | bool) else str(value)
