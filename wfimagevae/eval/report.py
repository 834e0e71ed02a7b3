"""What an evaluation hands back: tables for people, JSON for programs, each with its protocol.

A protocol says how figures were measured; figures of unlike protocols do not compare.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from wfimagevae.dataset.images.decode import INTERPOLATION
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.features import describe_inception, weights_digest
from wfimagevae.eval.options import PairOptions
from wfimagevae.eval.ssim import SIGMA, TAPS
from wfimagevae.model.losses.lpips_network import BACKBONES

_SET_COLUMNS = ("fid", "kid", "precision", "recall", "energy_distance")


def describe_protocol(metrics: Sequence[str], options: PairOptions, count: int) -> dict:
    """What defines a measurement of so many pairs by these metrics, ready for JSON."""
    resolution = options.resolution
    crop = options.crop_size or resolution
    protocol = {
        "count": count,
        "size": f"{crop}x{crop}" if crop else "native",
        "resize": f"shorter side to {resolution}" if resolution else "none",
        "interpolation": f"{INTERPOLATION}, Pillow, antialiased, 8 bits" if resolution else "none",
        "crop": f"centre {crop}x{crop}" if crop else "none",
        "data_range": "[0, 1], RGB, from 8 bits per channel",
        "average": "mean of per-image values",
    }
    packages = ["torch", "pillow", "numpy"]
    if "ssim" in metrics:
        protocol["ssim"] = {
            "window": f"Gaussian, {TAPS} taps, sigma {SIGMA}, inside the image",
            "sample_covariance": False,
            "channels": "mean over RGB",
        }
    if "lpips" in metrics:
        protocol["lpips"] = {
            "net": options.lpips_net,
            "version": "0.1",
            "backbone": weights_digest(options.lpips_weights, BACKBONES[options.lpips_net]),
        }
        packages += ["torchvision", "lpips"]
    if "rfid" in metrics:
        features = describe_inception(options.inception_weights)
        protocol["rfid"] = features | {"statistics": "float64"}
        packages += ["torch-fidelity"]
    return protocol | {"versions": {name: version(name) for name in packages}}


def protocol_hash(protocol: Mapping) -> str:
    """Twelve digits, equal where as many images were measured in the same way.

    Library versions are left out: they are recorded, but seldom change a figure.
    """
    defining = {key: value for key, value in protocol.items() if key != "versions"}
    text = json.dumps(defining, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; all but the first are set to the right."""
    table = [list(header), *map(list, rows)]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(header))]
    lines = [
        [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(row)))]
        for row in table
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def format_value(name: str, value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.2f}" if name == "psnr" else f"{value:.4f}"


def remarks(notes: Mapping[str, str], unavailable: Mapping[str, str]) -> list[str]:
    lines = [f"{name}: {note}" for name, note in notes.items()]
    return lines + [f"{name} is unavailable: {remedy}" for name, remedy in unavailable.items()]


def evaluation_json(evaluator: Evaluator, values: Mapping[str, float], protocol: dict) -> dict:
    """What the JSON file of measured pairs holds; infinite and unavailable metrics are null."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    return {
        **{name: finite.get(name) for name in evaluator.names},
        "unavailable": evaluator.unavailable,
        "notes": evaluator.notes,
        "protocol": protocol,
        "protocol_hash": protocol_hash(protocol),
    }


def evaluation_table(evaluator: Evaluator, values: Mapping[str, float]) -> str:
    """The figures of measured pairs for a person, and below them what needs saying."""
    rows = [[name, format_value(name, values.get(name))] for name in evaluator.names]
    table = markdown_table(["metric", f"{evaluator.count} images"], rows)
    return "\n".join([table, *remarks(evaluator.notes, evaluator.unavailable)])


def sets_table(results: Sequence[Mapping], unavailable: Mapping[str, str]) -> str:
    """Measured sets for a person, a row each, and below them what needs saying.

    A result has ``sampling``, ``notes``, ``protocol`` and its figures.
    """
    columns = [name for name in _SET_COLUMNS if any(name in result for result in results)]
    header, rows = ["generated"], []
    for result in results:
        sampling = result["sampling"]
        row = [f"{result['protocol']['generated_count']} samples"]
        if "sampler" in sampling:
            header = ["sampler", "steps", "NFE", "guidance"]
            scale, nfe = sampling["guidance"]["scale"], sampling["nfe"]
            row = [sampling["sampler"], str(sampling["steps"]), f"{nfe:g}", f"{scale:g}"]
        for name in columns:
            figure = format_value(name, result.get(name))
            if name == "kid" and name in result:
                figure = f"{result['kid']:.5f} ± {result['kid_std']:.5f}"
            row.append(figure)
        rows.append(row)
    notes = {name: note for result in results for name, note in result["notes"].items()}
    header += [name.replace("_", " ") for name in columns]
    return "\n".join([markdown_table(header, rows), *remarks(notes, unavailable)])
