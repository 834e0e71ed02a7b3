"""Frechet distance between Inception features of originals and reconstructions (rFID)."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from wfimagevae.model.losses.lpips_network import MissingWeights
from wfimagevae.pictures.pixels import check_unit_pair

NUM_FEATURES = 2048
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)


class FrechetDistance:
    """rFID by torchmetrics and torch-fidelity's port of the TensorFlow Inception network.

    Images are rounded to 8 bits and resized to 299 px by the port's own bilinear filter,
    without antialiasing, as published FIDs are. Statistics are float64; with several processes
    `compute` adds up those of all of them.

    Args:
        device: Where the network runs (on Apple's MPS, which lacks float64: the CPU).
        weights: torch-fidelity's weight file; None takes the cached or downloaded one.
        num_features: Width of the feature layer: 64, 192, 768 or 2048 (the FID of papers).

    Raises:
        MissingWeights: the weights cannot be had; the message says how to get them.
        ValueError: the file holds something else, or a package is not installed.
    """

    def __init__(
        self,
        device: torch.device,
        weights: str | None = None,
        num_features: int = NUM_FEATURES,
    ):
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.metric = _build_metric(weights, num_features).to(self.device)

    @torch.no_grad()
    def update(self, real: Tensor, generated: Tensor) -> None:
        """Adds pairs of images in [0, 1], (B, 3, H, W)."""
        check_unit_pair(real, generated)
        for images, is_real in ((real, True), (generated, False)):
            pixels = images.mul(255).round().to(self.device, torch.uint8)
            self.metric.update(pixels.contiguous(), real=is_real)

    def compute(self) -> float:
        """The distance over all processes; ValueError for fewer than two images."""
        # A process whose share was empty has not learnt the type from its features.
        self.metric.orig_dtype = torch.float64
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``compute`` method")
            try:
                return float(self.metric.compute())
            except RuntimeError as error:
                if "More than one sample" not in str(error):
                    raise
                raise ValueError("rFID needs at least two images") from None

    def reset(self) -> None:
        """Forgets the images seen."""
        self.metric.reset()


def _build_metric(weights: str | None, num_features: int):
    try:
        import torch_fidelity  # noqa: F401, for the message: torchmetrics needs it
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ModuleNotFoundError as error:
        raise ValueError(
            f"rFID needs {error.name}: pip install torchmetrics torch-fidelity"
        ) from None
    with inception_weights(weights):
        return FrechetInceptionDistance(
            num_features, feature_extractor_weights_path=weights, antialias=False
        )


@contextmanager
def inception_weights(weights: str | None) -> Iterator[None]:
    """Around the building of torch-fidelity's Inception network: checks its weights.

    Args:
        weights: File; None takes the cached or downloaded one.

    Raises:
        MissingWeights: the weights cannot be had; the message says how to get them.
        ValueError: the file holds something else.
    """
    if weights:
        _check_weights(weights)
    try:
        yield
    except (URLError, TimeoutError, ConnectionError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise MissingWeights(
            f"torch-fidelity's Inception weights are not in {cache} and cannot be downloaded "
            f"({error}). Fetch {INCEPTION_URL} on a machine with a network, then copy it there "
            "or name it with --inception_weights"
        ) from None


def _check_weights(weights: str) -> None:
    """Refuses a file that is no plain state dict, before torch-fidelity unpickles it."""
    if not Path(weights).is_file():
        raise MissingWeights(f"Inception weights {weights} do not exist; get {INCEPTION_URL}")
    cause = None
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged file raises almost anything
        state, cause = None, error
    if not isinstance(state, dict) or "Mixed_7c.branch_pool.conv.weight" not in state:
        raise ValueError(
            f"{weights} does not hold torch-fidelity's Inception weights; get {INCEPTION_URL}"
        ) from cause


def weights_digest(path: str) -> str:
    """First 8 hexadecimal digits of a file's SHA-256, as download names carry them."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]
