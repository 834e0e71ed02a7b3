"""Networks whose features tell sets of images apart: Inception and DINOv2."""

import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from wfimagevae.eval.fid import INCEPTION_URL, NUM_FEATURES, inception_weights, weights_digest
from wfimagevae.model.losses.lpips_network import MissingWeights

DINOV2_MODEL = "dinov2_vitl14"
DINOV2_REPO = "https://github.com/facebookresearch/dinov2"
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"

# Maps 8-bit images, (B, 3, H, W), to features, (B, F), float32.
Extractor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeatureNetwork:
    """Which network, and where its weights are.

    Attributes:
        kind: ``inception`` (torch-fidelity's port of the network of published FIDs, 2048
            features) or ``dinov2`` (ViT-L/14, 1024 features).
        inception_weights: torch-fidelity's weight file; None takes the cached or downloaded one.
        dinov2_repo: Folder with a clone of the DINOv2 code; None takes torch.hub's copy.
        dinov2_weights: Weight file for that code, needed with it.
        inception_layer: Width of the Inception layer: 64, 192, 768 or 2048.
    """

    kind: str = "inception"
    inception_weights: str | None = None
    dinov2_repo: str | None = None
    dinov2_weights: str | None = None
    inception_layer: int = NUM_FEATURES

    def __post_init__(self):
        if self.kind not in ("inception", "dinov2"):
            raise ValueError(f"unknown features {self.kind!r}: inception or dinov2")
        if bool(self.dinov2_repo) != bool(self.dinov2_weights):
            raise ValueError("--dinov2_repo and --dinov2_weights are given together or not at all")
        for flag in ("inception_weights", "dinov2_weights"):
            path = getattr(self, flag)
            if path and not Path(path).is_file():
                raise ValueError(f"--{flag} {path}: no such file")

    def describe(self) -> dict[str, str]:
        """Network, weights and preprocessing, for a protocol."""
        if self.kind == "inception":
            path, url = self.inception_weights, INCEPTION_URL
            digest = weights_digest(path) if path else url.removesuffix(".pth").rsplit("-", 1)[1]
            name, size = f"torch-fidelity InceptionV3, {self.inception_layer}", 299
        else:
            path = self.dinov2_weights
            digest = weights_digest(path) if path else Path(DINOV2_URL).name
            name, size = f"{DINOV2_MODEL}, class token", 224
        resize = f"TensorFlow 1 bilinear to {size}x{size}, no antialiasing"
        return {"features": name, "weights": digest, "resize": resize}


def load_features(network: FeatureNetwork, device: torch.device) -> Extractor:
    """The network, ready to be called, on a device.

    Raises:
        MissingWeights: weights cannot be had; the message says how to get them.
        ValueError: a file holds something else, or torch-fidelity is not installed.
    """
    try:
        import torch_fidelity  # noqa: F401, for the message
    except ModuleNotFoundError as error:
        raise ValueError(f"{network.kind} needs {error.name}: pip install torch-fidelity") from None
    load = _load_inception if network.kind == "inception" else _load_dinov2
    extractor = load(network).requires_grad_(False).eval().to(device)

    @torch.inference_mode()
    def extract(images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"features are taken of 8-bit images (B, 3, H, W), got {images.dtype} "
                f"{tuple(images.shape)}"
            )
        return extractor(images.to(device).contiguous())[0]  # (B, F)

    return extract


def _load_inception(network: FeatureNetwork) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with inception_weights(network.inception_weights):
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", [str(network.inception_layer)], network.inception_weights
        )


def _load_dinov2(network: FeatureNetwork) -> nn.Module:
    """torch-fidelity's preprocessing around DINOv2's own code."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    class FeatureExtractorOfModel(FeatureExtractorDinoV2):
        # The library's constructor takes downloaded weights only.
        def __init__(self, model: nn.Module):
            FeatureExtractorBase.__init__(self, "dinov2-vit-l-14", ["dinov2"])
            self.feature_extractor_internal_dtype = torch.float32
            self.model = model

    return FeatureExtractorOfModel(_dinov2_model(network).float())


def _dinov2_model(network: FeatureNetwork) -> nn.Module:
    if not network.dinov2_repo:
        with _quiet_hub(), _missing_dinov2():
            # With the branch named, a cached copy is used without asking the network.
            return torch.hub.load("facebookresearch/dinov2:main", DINOV2_MODEL)
    if not (Path(network.dinov2_repo) / "hubconf.py").is_file():
        raise ValueError(
            f"--dinov2_repo {network.dinov2_repo} has no hubconf.py; clone {DINOV2_REPO}"
        )
    with _quiet_hub():
        model = torch.hub.load(network.dinov2_repo, DINOV2_MODEL, source="local", pretrained=False)
    state = torch.load(network.dinov2_weights, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{network.dinov2_weights} does not fit {DINOV2_MODEL}; get {DINOV2_URL} "
            f"({str(error).splitlines()[0]})"
        ) from None
    return model


@contextmanager
def _quiet_hub():
    """Keeps torch.hub's words off standard output, and DINOv2's about xFormers away."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="xFormers")
        yield


@contextmanager
def _missing_dinov2():
    try:
        yield
    except (URLError, TimeoutError, ConnectionError) as error:
        raise MissingWeights(
            f"DINOv2 is not in {torch.hub.get_dir()} and cannot be downloaded ({error}). On a "
            f"machine with a network, clone {DINOV2_REPO} and fetch {DINOV2_URL}, then name the "
            "copies with --dinov2_repo and --dinov2_weights"
        ) from None
