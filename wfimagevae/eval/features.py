"""Networks whose features tell sets of images apart: Inception and DINOv2."""

import hashlib
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from wfimagevae.eval.options import SetMetricOptions
from wfimagevae.files import read_torch_file
from wfimagevae.model.losses.lpips_network import missing_download

NUM_FEATURES = 2048
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
DINOV2_MODEL = "dinov2_vitl14"
DINOV2_REPO = "https://github.com/facebookresearch/dinov2"
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"

# Maps 8-bit images, (B, 3, H, W), to features, (B, F), float32.
Extractor = Callable[[Tensor], Tensor]


def load_features(options: SetMetricOptions, device: torch.device) -> Extractor:
    """The network that the options name; see `load_inception` for errors."""
    if options.features == "inception":
        return load_inception(device, options.inception_weights)
    return load_dinov2(device, options.dinov2_repo, options.dinov2_weights)


def describe_features(options: SetMetricOptions, width: int = NUM_FEATURES) -> dict[str, str]:
    """Network, weights and preprocessing, for a protocol; ``width`` is that of the features."""
    if options.features == "inception":
        features, side = f"torch-fidelity InceptionV3, {width}", 299
        weights = weights_digest(options.inception_weights, INCEPTION_URL)
    else:
        features, side, path = f"{DINOV2_MODEL}, class token", 224, options.dinov2_weights
        weights = weights_digest(path) if path else Path(DINOV2_URL).name
    resize = f"TensorFlow 1 bilinear to {side}x{side}, no antialiasing"
    return {"features": features, "weights": weights, "resize": resize}


def weights_digest(path: str | Path | None, url: str = "") -> str:
    """First 8 digits of a weight file's SHA-256, which the name of a download carries."""
    if not path:
        return url.removesuffix(".pth").rsplit("-", 1)[1]
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def load_inception(
    device: torch.device, weights: str | None = None, num_features: int = NUM_FEATURES
) -> Extractor:
    """The torch-fidelity package's port of the TensorFlow Inception network of published FIDs.

    On Apple's MPS, which lacks float64, it runs on the CPU. Without a file of weights the cached or
    downloaded one is taken, or `MissingWeights` raised. ``num_features``, the width of the layer
    that is read, is 64, 192, 768 or 2048. Another file, or no torch-fidelity, is a ValueError.
    """
    _require_torch_fidelity("Inception")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # A file that is no plain state dict is refused before torch-fidelity unpickles it.
    if weights:
        wrong = f"{weights} does not hold torch-fidelity's Inception weights; get {INCEPTION_URL}"
        try:
            state = read_torch_file(Path(weights))
        except ValueError as error:
            raise ValueError(wrong) from error
        if "Mixed_7c.branch_pool.conv.weight" not in state:
            raise ValueError(wrong)
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", [str(num_features)], weights)
    except (URLError, TimeoutError, ConnectionError) as error:
        what, flag = "torch-fidelity's Inception weights", "--inception_weights"
        raise missing_download(what, INCEPTION_URL, flag, error) from None
    return _extractor(network, device)


def load_dinov2(
    device: torch.device, repo: str | None = None, weights: str | None = None
) -> Extractor:
    """DINOv2's class token by its own code, after torch-fidelity's preprocessing.

    ``repo`` is a folder with a clone of the DINOv2 code, needed with ``weights`` for it; None takes
    torch.hub's copy. Errors are those of `load_inception`.
    """
    _require_torch_fidelity("DINOv2")
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    class FeatureExtractorOfModel(FeatureExtractorDinoV2):
        # The library's constructor takes downloaded weights only.
        def __init__(self, model: nn.Module):
            FeatureExtractorBase.__init__(self, "dinov2-vit-l-14", ["dinov2"])
            self.feature_extractor_internal_dtype = torch.float32
            self.model = model

    if repo and not (Path(repo) / "hubconf.py").is_file():
        raise ValueError(f"--dinov2_repo {repo} has no hubconf.py; clone {DINOV2_REPO}")
    # torch.hub's words stay off standard output, and DINOv2's about xFormers away.
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="xFormers")
            if repo:
                model = torch.hub.load(repo, DINOV2_MODEL, source="local", pretrained=False)
                state = torch.load(weights, map_location="cpu", weights_only=True)
                try:
                    model.load_state_dict(state)
                except RuntimeError as error:
                    raise ValueError(
                        f"{weights} does not fit {DINOV2_MODEL}; get {DINOV2_URL} "
                        f"({str(error).splitlines()[0]})"
                    ) from None
            else:  # with the branch named, a cached copy is used without asking the network
                model = torch.hub.load("facebookresearch/dinov2:main", DINOV2_MODEL)
    except (URLError, TimeoutError, ConnectionError) as error:
        urls, flags = f"{DINOV2_REPO} and {DINOV2_URL}", "--dinov2_repo and --dinov2_weights"
        raise missing_download("DINOv2's code and weights", urls, flags, error) from None
    return _extractor(FeatureExtractorOfModel(model.float()), device)


def _extractor(network: nn.Module, device: torch.device) -> Extractor:
    device = torch.device("cpu") if device.type == "mps" else device
    network = network.requires_grad_(False).eval().to(device)

    @torch.inference_mode()
    def extract(images: Tensor) -> Tensor:
        features = network(images.to(device).contiguous())[0]  # (B, F)
        if not features.isfinite().all():
            raise ValueError(f"features of {type(network).__name__} are not finite: its weights?")
        return features

    return extract


def _require_torch_fidelity(network: str) -> None:
    if not find_spec("torch_fidelity"):
        raise ValueError(f"{network} needs torch_fidelity: pip install torch-fidelity")
