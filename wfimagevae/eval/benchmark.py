"""Several autoencoders on the same images by the same protocol."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from wfimagevae.engine.cost import count_macs, count_parameters, peak_memory, seconds_per_call
from wfimagevae.engine.device import autocast
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.report import format_value, markdown_table, protocol_hash, remarks
from wfimagevae.generate.autoencoders import Autoencoder
from wfimagevae.model.vae.modeling_wfvae2_image import pad_to_multiple
from wfimagevae.pictures.pixels import from_uint8, to_uint8

_MEMORY = "peak memory (MiB)"


@dataclass(frozen=True)
class Measurement:
    """What one autoencoder achieved, and at which cost.

    Attributes:
        latent: Spatial factor and channels, such as ``f8 c16``.
        values: Metric -> figure.
        notes: Metric -> what its value hides.
        cost: Column of the table -> speed, size or memory, as it stands there.
    """

    latent: str
    values: Mapping[str, float]
    notes: Mapping[str, str]
    cost: Mapping[str, str]


def measure(
    name: str,
    autoencoder: Autoencoder,
    loader: DataLoader,
    evaluator: Evaluator,
    precision: str,
    min_seconds: float,
) -> Measurement:
    """Quality over all images, speed and memory on the first batch.

    Reconstructions are rounded to 8 bits, so that the figures are those of files.

    Args:
        name: What the progress bar calls the model.
        autoencoder: The model.
        loader: Images; see `valid_loader`.
        evaluator: The metrics; it is reset.
        precision: fp32, bf16 or fp16.
        min_seconds: How long each of encoding and decoding is timed.

    Raises:
        ValueError: no image is readable.
    """
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
    latent, cost = _cost(autoencoder, first, precision, min_seconds)
    return Measurement(latent, values, notes, cost)


@torch.inference_mode()
def _cost(
    autoencoder: Autoencoder, images: Tensor, precision: str, min_seconds: float
) -> tuple[str, dict[str, str]]:
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
    measurements: Mapping[str, Measurement], evaluator: Evaluator, protocol: dict, conditions: str
) -> str:
    """A Markdown table and, below it, how it was measured and what could not be.

    Args:
        measurements: Name of each model -> what was measured.
        evaluator: What measured them.
        protocol: See `describe_protocol`.
        conditions: Precision, batch size and device, in words.
    """
    header = ["model", "latent", *(n.upper().replace("RFID", "rFID") for n in evaluator.names)]
    rows = []
    for model, m in measurements.items():
        figures = [format_value(name, m.values.get(name)) for name in evaluator.names]
        rows.append([model, m.latent, *figures, *m.cost.values()])
    costs = [m.cost for m in measurements.values()]
    size = protocol["size"].replace("native", "native size")
    lines = [
        markdown_table([*header, *costs[0]], rows),
        "",
        f"{protocol['count']} images of {size}, protocol {protocol_hash(protocol)}; {conditions}. "
        "GMAC: one image there and back.",
    ]
    if "n/a" in [cost[_MEMORY] for cost in costs]:
        lines.append("Peak memory is measured on CUDA only.")
    for model, m in measurements.items():
        lines += [f"{model}: {name}: {note}" for name, note in m.notes.items()]
    return "\n".join([*lines, *remarks({}, evaluator.unavailable)])
