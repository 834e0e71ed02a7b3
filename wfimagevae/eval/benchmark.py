"""Several autoencoders on the same images by the same protocol."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from wfimagevae.engine.cost import count_macs, count_parameters, peak_memory, seconds_per_call
from wfimagevae.engine.device import autocast
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.report import format_value, markdown_table, protocol_hash
from wfimagevae.generate.autoencoders import Autoencoder
from wfimagevae.model.vae.modeling_wfvae2_image import pad_to_multiple
from wfimagevae.pictures.pixels import from_uint8, to_uint8

_MEMORY = "peak memory (MiB)"


def measure(
    name: str,
    autoencoder: Autoencoder,
    loader: DataLoader,
    evaluator: Evaluator,
    precision: str,
    min_seconds: float,
) -> tuple[dict[str, str], list[str]]:
    """Column -> cell of a model's row in the table, and lines to stand below it.

    Quality is measured over all images, cost on the first batch, encoding and decoding for
    ``min_seconds`` each. It is a ValueError if no image is readable.
    """
    # Quality, of reconstructions rounded to 8 bits: the figures are those of files.
    evaluator.reset()
    first, unreadable = None, []
    with tqdm(total=len(loader.dataset), unit="img", desc=name) as bar:
        for batch in loader:
            bar.update(len(batch["path"]) + len(batch["unreadable"]))
            unreadable += [f"{path} ({reason})" for path, reason in batch["unreadable"]]
            images = batch["image"]
            if images is None:
                continue
            first = images if first is None else first
            decoded = autoencoder.reconstruct(images, precision)
            evaluator.update(images, from_uint8(to_uint8(decoded)))
    values = evaluator.compute()
    notes = evaluator.notes | ({"left out": ", ".join(unreadable)} if unreadable else {})
    # Cost, and everything as it stands in the table.
    latent, cost = _cost(autoencoder, first, precision, min_seconds)
    figures = {
        metric.upper().replace("RFID", "rFID"): format_value(metric, values.get(metric))
        for metric in evaluator.names
    }
    row = {"model": name, "latent": latent, **figures, **cost}
    return row, [f"{name}: {metric}: {note}" for metric, note in notes.items()]


@torch.inference_mode()
def _cost(
    autoencoder: Autoencoder, images: Tensor, precision: str, min_seconds: float
) -> tuple[str, dict[str, str]]:
    """Factor and channels of the latents, such as ``f8 c16``, and the columns of what it costs."""
    device = autoencoder.device
    images = images.to(device, memory_format=torch.channels_last)
    images, _ = pad_to_multiple(images, autoencoder.multiple)
    with autocast(device, precision):
        latents = autoencoder.encode(images)
        calls = [lambda: autoencoder.encode(images), lambda: autoencoder.decode(latents)]
        seconds = [seconds_per_call(call, device, min_seconds) for call in calls]
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
