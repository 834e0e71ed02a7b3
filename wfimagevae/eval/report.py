"""What evaluations and comparisons of autoencoders hand back: tables, JSON, each with its protocol.

A protocol says how figures were measured; figures of unlike protocols do not compare.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import torch
from torch import Tensor

from wfimagevae.command_line import printable
from wfimagevae.dataset import ValidImageDataset
from wfimagevae.dataset.images.decode import INTERPOLATION
from wfimagevae.engine.cost import HeldBytes, count_macs, seconds_per_call
from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.features import describe_features, weights_digest
from wfimagevae.eval.options import BenchmarkOptions, PairOptions, SetMetricOptions
from wfimagevae.eval.ssim import SIGMA, TAPS
from wfimagevae.generate.autoencoders import Autoencoder
from wfimagevae.generate.image_folder import Unreadable, read_batches
from wfimagevae.model.losses.lpips_network import BACKBONES
from wfimagevae.model.vae.tiling import pad_to_multiple
from wfimagevae.pictures.pixels import from_uint8, to_uint8

_SET_COLUMNS = ("fid", "kid", "precision", "recall", "energy_distance", "clip_score")
_SET_COLUMNS += ("clip_score_best",)


def describe_protocol(
    metrics: Sequence[str], options: PairOptions, count: int, left_out: int = 0
) -> dict:
    """What defines a measurement of so many pairs by these metrics, ready for JSON.

    ``left_out`` pairs more were unreadable.
    """
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
    protocol |= {"left_out": left_out} if left_out else {}
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
        inception = SetMetricOptions(inception_weights=options.inception_weights)
        protocol["rfid"] = describe_features(inception) | {"statistics": "float64"}
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


def evaluation_json(
    evaluator: Evaluator, values: Mapping[str, float], protocol: dict, unreadable: Unreadable = ()
) -> dict:
    """What the JSON file of measured pairs holds; infinite and unavailable metrics are null."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    return {
        **{name: finite.get(name) for name in evaluator.names},
        "unavailable": evaluator.unavailable,
        "unreadable": [list(entry) for entry in unreadable],
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
            cells = {"sampler": sampling["sampler"], "steps": str(sampling["steps"])}
            cells |= {"NFE": f"{sampling['nfe']:g}"} if "nfe" in sampling else {}
            cells |= {"guidance": f"{sampling['guidance']['scale']:g}"}
            header, row = [*cells], [*cells.values()]
        for name in columns:
            figure = format_value(name, result.get(name))
            if name == "kid" and name in result:
                figure = f"{result['kid']:.5f} ± {result['kid_std']:.5f}"
            row.append(figure)
        rows.append(row)
    notes = {name: note for result in results for name, note in result["notes"].items()}
    distance = results[0]["protocol"].get("energy_distance", {"vectors": ""})
    of = "pixels" if "pixels" in distance["vectors"] else "points"
    header += [name.replace("energy_distance", f"energy distance of {of}") for name in columns]
    return "\n".join([markdown_table(header, rows), *remarks(notes, unavailable)])


def benchmark(
    name: str,
    autoencoder: Autoencoder,
    images: ValidImageDataset,
    evaluator: Evaluator,
    options: BenchmarkOptions,
) -> tuple[dict[str, str], list[str]]:
    """Column -> cell of a model's row in the table, and lines to stand below it.

    Quality is measured over all images, cost on the first batch. It is a ValueError if no image is
    readable.
    """
    # Quality, of reconstructions rounded to 8 bits: the figures are those of files.
    evaluator.reset()
    first, unreadable = None, []
    alone = World(0, 1, autoencoder.device)
    for batch in read_batches(images, options, alone, name, unreadable):
        first = batch["image"] if first is None else first
        decoded = autoencoder.reconstruct(batch["image"], options.mixed_precision)
        evaluator.update(batch["image"], from_uint8(to_uint8(decoded)))
    values, notes = evaluator.compute(), dict(evaluator.notes)
    if unreadable:
        listed = ", ".join(f"{path} ({reason})" for path, reason in unreadable)
        notes["left out"] = printable(listed)
    # Cost, and everything as it stands in the table.
    latent, cost = _cost(autoencoder, first, options)
    figures = {
        metric.upper().replace("RFID", "rFID"): format_value(metric, values.get(metric))
        for metric in evaluator.names
    }
    row = {"model": name, "latent": latent, **figures, **cost}
    return row, [f"{name}: {metric}: {note}" for metric, note in notes.items()]


@torch.inference_mode()
def _cost(
    autoencoder: Autoencoder, images: Tensor, options: BenchmarkOptions
) -> tuple[str, dict[str, str]]:
    """Factor and channels of the latents, such as ``f8 c16``, and the columns of what it costs."""
    device = autoencoder.device
    images = images.to(device, memory_format=torch.channels_last)
    images, _ = pad_to_multiple(images, autoencoder.multiple)
    with autocast(device, options.mixed_precision):
        latents = autoencoder.encode(images)
        calls = [lambda: autoencoder.encode(images), lambda: autoencoder.decode(latents)]
        seconds = [seconds_per_call(call, device, options.timing_seconds) for call in calls]
        with HeldBytes() as held:
            for call in calls:
                call()
        macs = count_macs(lambda: autoencoder.decode(autoencoder.encode(images[:1])))
    weights = sum(tensor.nbytes for tensor in autoencoder.network.state_dict().values())
    cost = {
        "encode img/s": f"{len(images) / seconds[0]:.3g}",
        "decode img/s": f"{len(images) / seconds[1]:.3g}",
        "parameters (M)": f"{autoencoder.network.num_parameters() / 1e6:.2f}",
        "GMAC": f"{macs / 1e9:.4g}",
        "peak memory (MiB)": f"{(held.most + weights) / 2**20:.1f}",
    }
    return f"f{images.shape[-1] // latents.shape[-1]} c{latents.shape[1]}", cost


def benchmark_table(
    rows: list[Mapping[str, str]], notes: list[str], protocol: dict, conditions: str
) -> list[str]:
    """The lines of a Markdown table of `benchmark`'s rows, how they came about, and its notes.

    ``conditions`` are precision, batch size and device, in words.
    """
    size = protocol["size"].replace("native", "native size")
    return [
        markdown_table(list(rows[0]), [list(row.values()) for row in rows]),
        "",
        f"{protocol['count']} images of {size}, protocol {protocol_hash(protocol)}; {conditions}. "
        "GMAC: one image there and back. Memory: of tensors, weights included.",
        *notes,
    ]
