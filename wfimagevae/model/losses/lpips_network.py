"""LPIPS from the `lpips` package: weights found or refused, gradients finite everywhere."""

import warnings
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn

from wfimagevae.model.weight_files import read_torch_file

BACKBONES = {
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
}
# Below these the backbone's last pooling has nothing left.
MIN_SIZES = {"vgg": 16, "alex": 31}


class MissingWeights(ValueError):
    """Weights that are neither on this machine nor downloadable."""


def missing_download(what: str, url: str, flag: str, error: Exception) -> MissingWeights:
    """Says what to do about weights that are not cached and cannot be downloaded."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    return MissingWeights(
        f"{what} are not in {cache} and cannot be downloaded ({error}). Fetch {url} on a machine "
        f"with a network, then copy it there or name it with {flag}"
    )


class LPIPS(nn.Module):
    """Learned perceptual distance, frozen, with the backbone ``vgg`` (training) or ``alex``.

    The features and their linear weights are the `lpips` package's. Only the normalisation is ours:
    the package's square root has an infinite derivative where all channels are zero. ``weights`` is
    a file with the torchvision backbone's state dict; None takes the cached or downloaded one, and
    raises `MissingWeights` where there is neither; False leaves random ones, which measure nothing
    but time. On the device ``meta`` no weights are read.

    Source: Zhang et al. 2018, arXiv:1801.03924.
    """

    def __init__(self, net: str = "vgg", weights: str | Literal[False] | None = None):
        super().__init__()
        self.min_size = MIN_SIZES[net]
        is_sketch = weights is False or torch.get_default_device().type == "meta"
        backbone = {} if is_sketch else _read_backbone(net, weights)  # before the slow construction
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's note on lpips' old argument
            package = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        self.scaling_layer = package.scaling_layer
        self.net = package.net
        self.lins = package.lins
        # torchvision numbers the layers through, the package within slices.
        names = {key: "features." + key.split(".", 1)[1] for key in self.net.state_dict()}
        try:
            if not is_sketch:
                self.net.load_state_dict({key: backbone[name] for key, name in names.items()})
        except (KeyError, RuntimeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            source = weights or BACKBONES[net]
            raise ValueError(f"{source} is no backbone of torchvision's {net}: {what}") from None
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        """Stays in evaluation mode: dropout is for fitting the linear weights only."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Channel-normalised feature maps of images in [-1, 1], float32."""
        return [_unit_channels(h.float()) for h in self.net(self.scaling_layer(images))]

    def forward(self, reference: Tensor, images: Tensor) -> Tensor:
        """Distance of each pair of images in [-1, 1], (B, 3, H, W): float32, (B, 1, 1, 1).

        No gradient flows into the reference. Figures of one backbone do not compare with another's;
        images too small for it are a ValueError.
        """
        if min(images.shape[-2:]) < self.min_size:
            raise ValueError(
                f"LPIPS needs images of at least {self.min_size} px, got {tuple(images.shape)}"
            )
        with torch.no_grad():
            targets = self.features(reference)
        distance = 0
        for lin, target, feature in zip(self.lins, targets, self.features(images), strict=True):
            weight = lin.model[-1].weight.flatten().view(1, -1, 1, 1)  # (1, C, 1, 1)
            difference = (target - feature).square() * weight
            distance = distance + difference.sum(1, keepdim=True).mean((2, 3), keepdim=True)
        return distance


def _unit_channels(h: Tensor) -> Tensor:
    # The clamp leaves every value as it is and cuts the square root's infinite slope at zero.
    norm = h.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt()
    return h / (norm + 1e-10)


def _read_backbone(net: str, weights: str | None) -> dict[str, Tensor]:
    if weights:
        if not Path(weights).is_file():
            raise MissingWeights(f"LPIPS weights {weights} do not exist; get {BACKBONES[net]}")
        return read_torch_file(Path(weights))
    try:
        return torch.hub.load_state_dict_from_url(
            BACKBONES[net], map_location="cpu", progress=False, weights_only=True
        )
    except (URLError, TimeoutError, ConnectionError) as error:
        flag = (
            "--lpips_weights; or do without LPIPS (--perceptual_weight 0 in training, no lpips "
            "under --metric in evaluation)"
        )
        what = f"the weights of LPIPS' {net} backbone"
        raise missing_download(what, BACKBONES[net], flag, error) from None
