"""Several autoencoders on the same images by the same protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from wfimagevae.engine.cost import count_macs, count_parameters, peak_memory, seconds_per_call
from wfimagevae.engine.device import autocast
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.protocol import protocol_hash
from wfimagevae.eval.report import format_value, markdown_table
from wfimagevae.generate.autoencoders import Autoencoder
from wfimagevae.model.vae.modeling_wfvae2_image import pad_to_multiple
from wfimagevae.pictures.pixels import from_uint8, to_uint8


@dataclass(frozen=True)
class Measurement:
    """What one autoencoder achieved, and at which cost.

    Attributes:
        name: As given by the user.
        latent: Spatial factor and channels, such as ``f8 c16``.
        values: Metrics.
        encode_rate: Images per second.
        decode_rate: Images per second.
        num_parameters: Of encoder and decoder.
        macs: Multiply-accumulates of encoding and decoding one image.
        peak_bytes: Most memory that tensors held, weights included; None but on CUDA.
        notes: Metric -> what its value hides.
    """

    name: str
    latent: str
    values: Mapping[str, float]
    encode_rate: float
    decode_rate: float
    num_parameters: int
    macs: int
    peak_bytes: int | None
    notes: Mapping[str, str]


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
        name: What the table calls it.
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
    cost = _cost(autoencoder, first, precision, min_seconds)
    left_out = {"left out": ", ".join(unreadable)} if unreadable else {}
    return Measurement(name, values=values, notes=evaluator.notes | left_out, **cost)


@torch.inference_mode()
def _cost(autoencoder: Autoencoder, images: Tensor, precision: str, min_seconds: float) -> dict:
    """The fields of `Measurement` that need one batch only."""
    device = autoencoder.device
    images = images.to(device, memory_format=torch.channels_last)
    images, _ = pad_to_multiple(images, autoencoder.multiple)
    with autocast(device, precision):
        latents = autoencoder.encode(images)

        def encode():
            return autoencoder.encode(images)

        def decode():
            return autoencoder.decode(latents)

        times = [seconds_per_call(call, device, min_seconds) for call in (encode, decode)]
        peaks = [peak_memory(call, device) for call in (encode, decode)]
        macs = count_macs(lambda: autoencoder.decode(autoencoder.encode(images[:1])))
    return {
        "latent": f"f{images.shape[-1] // latents.shape[-1]} c{latents.shape[1]}",
        "encode_rate": len(images) / times[0],
        "decode_rate": len(images) / times[1],
        "num_parameters": count_parameters(autoencoder.network),
        "macs": macs,
        "peak_bytes": None if None in peaks else max(peaks),
    }


def report(
    measurements: Sequence[Measurement], evaluator: Evaluator, protocol: dict, how: str
) -> str:
    """A Markdown table and, below it, how it was measured and what could not be.

    Args:
        measurements: One a model.
        evaluator: What measured them.
        protocol: See `describe_protocol`.
        how: Precision, batch size and device, in words.
    """
    size = protocol["size"].replace("native", "native size")
    lines = [
        _table(measurements, evaluator.names),
        "",
        f"{protocol['count']} images of {size}, protocol {protocol_hash(protocol)}; {how}. "
        "GMAC: one image there and back.",
    ]
    if None in [m.peak_bytes for m in measurements]:
        lines.append("Peak memory is measured on CUDA only.")
    lines += [f"{m.name}: {name}: {note}" for m in measurements for name, note in m.notes.items()]
    lines += [f"{name} is unavailable: {how}" for name, how in evaluator.unavailable.items()]
    return "\n".join(lines)


def _table(measurements: Sequence[Measurement], metrics: Sequence[str]) -> str:
    header = [
        *("model", "latent"),
        *(name.upper().replace("RFID", "rFID") for name in metrics),
        *("encode img/s", "decode img/s", "parameters (M)", "GMAC", "peak memory (MiB)"),
    ]
    rows = [
        [
            *(m.name, m.latent),
            *(format_value(name, m.values.get(name)) for name in metrics),
            *(f"{m.encode_rate:.3g}", f"{m.decode_rate:.3g}"),
            *(f"{m.num_parameters / 1e6:.2f}", f"{m.macs / 1e9:.4g}"),
            "n/a" if m.peak_bytes is None else f"{m.peak_bytes / 2**20:.0f}",
        ]
        for m in measurements
    ]
    return markdown_table(header, rows)
