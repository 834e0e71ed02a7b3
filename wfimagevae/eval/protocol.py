"""How figures were measured, kept beside them: figures of unlike protocols do not compare."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from wfimagevae.dataset.images.decode import INTERPOLATION
from wfimagevae.eval.evaluator import Networks
from wfimagevae.eval.fid import INCEPTION_URL, weights_digest
from wfimagevae.eval.ssim import SIGMA, TAPS
from wfimagevae.model.losses.lpips_network import BACKBONES


def describe_protocol(
    metrics: Sequence[str],
    networks: Networks,
    resolution: int | None,
    crop_size: int | None,
    count: int,
) -> dict:
    """What defines a measurement, ready for JSON.

    Args:
        metrics: Those that were measured.
        networks: Of the learned metrics.
        resolution: Shorter side after resizing; None is native size.
        crop_size: Side of the centre crop; None is the resolution, or no crop at native size.
        count: Number of images.
    """
    crop = crop_size or resolution
    protocol = {
        "count": count,
        "size": f"{crop}x{crop}" if crop else "native",
        "resize": f"shorter side to {resolution}" if resolution else "none",
        "interpolation": f"{INTERPOLATION}, Pillow, antialiased, 8 bits" if resolution else "none",
        "crop": f"centre {crop}x{crop}" if crop else "none",
        "data_range": "[0, 1], RGB, from 8 bits per channel",
        "average": "mean of per-image values",
    }
    if "ssim" in metrics:
        protocol["ssim"] = {
            "window": f"Gaussian, {TAPS} taps, sigma {SIGMA}, inside the image",
            "sample_covariance": False,
            "channels": "mean over RGB",
        }
    if "lpips" in metrics:
        protocol["lpips"] = {
            "net": networks.lpips_net,
            "version": "0.1",
            "backbone": _weights(networks.lpips_weights, BACKBONES[networks.lpips_net]),
        }
    if "rfid" in metrics:
        protocol["rfid"] = {
            "features": "torch-fidelity InceptionV3, 2048",
            "weights": _weights(networks.inception_weights, INCEPTION_URL),
            "resize": "TensorFlow 1 bilinear to 299x299, no antialiasing",
            "statistics": "float64",
        }
    packages = ["torch", "pillow", "numpy"]
    packages += ["torchvision", "lpips"] if "lpips" in metrics else []
    packages += ["torchmetrics", "torch-fidelity"] if "rfid" in metrics else []
    return protocol | {"versions": {name: version(name) for name in packages}}


def _weights(path: str | None, url: str) -> str:
    """Start of the SHA-256 of the weights, which downloads carry in their names."""
    return weights_digest(path) if path else url.removesuffix(".pth").rsplit("-", 1)[1]


def protocol_hash(protocol: Mapping) -> str:
    """Twelve digits, equal where as many images were measured in the same way.

    Library versions are left out: they are recorded, but seldom change a figure.
    """
    defining = {key: value for key, value in protocol.items() if key != "versions"}
    text = json.dumps(defining, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
