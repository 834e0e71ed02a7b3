"""Several autoencoders on the same images by the same protocol."""

from collections.abc import Mapping

import torch
from torch import Tensor

from wfimagevae.dataset import ValidImageDataset
from wfimagevae.engine.cost import count_macs, count_parameters, peak_memory, seconds_per_call
from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.options import BenchmarkOptions
from wfimagevae.eval.report import format_value, markdown_table, protocol_hash
from wfimagevae.generate.autoencoders import Autoencoder
from wfimagevae.generate.image_folder import read_batches
from wfimagevae.model.vae.modeling_wfvae2_image import pad_to_multiple
from wfimagevae.pictures.pixels import from_uint8, to_uint8

_MEMORY = "peak memory (MiB)"


def measure(
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
        notes["left out"] = ", ".join(f"{path} ({reason})" for path, reason in unreadable)
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
        peaks = [peak_memory(call, device) for call in calls]
        macs = count_macs(lambda: autoencoder.decode(autoencoder.encode(images[:1])))
    cost = {
        "encode img/s": f"{len(images) / seconds[0]:.3g}",
        "decode img/s": f"{len(images) / seconds[1]:.3g}",
        "parameters (M)": f"{count_parameters(autoencoder.network) / 1e6:.2f}",
        "GMAC": f"{macs / 1e9:.4g}",
        _MEMORY: "n/a" if None in peaks else f"{max(peaks) / 2**20:.0f}",
    }
    return f"f{images.shape[-1] // latents.shape[-1]} c{latents.shape[1]}", cost


def report(
    rows: list[Mapping[str, str]], notes: list[str], protocol: dict, conditions: str
) -> list[str]:
    """The lines of a Markdown table of `measure`'s rows, how they came about, and its notes.

    ``conditions`` are precision, batch size and device, in words.
    """
    size = protocol["size"].replace("native", "native size")
    lines = [
        markdown_table(list(rows[0]), [list(row.values()) for row in rows]),
        "",
        f"{protocol['count']} images of {size}, protocol {protocol_hash(protocol)}; {conditions}. "
        "GMAC: one image there and back.",
    ]
    if "n/a" in [row[_MEMORY] for row in rows]:
        lines.append("Peak memory is measured on CUDA only.")
    return lines + notes
