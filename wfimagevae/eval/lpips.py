"""Learned perceptual distance of image pairs."""

import torch
from torch import Tensor

from wfimagevae.model.losses.lpips_network import LPIPS
from wfimagevae.pictures.pixels import check_unit_pair

# Below these the backbone's last pooling has nothing left.
MIN_SIZES = {"vgg": 16, "alex": 31}


class PerceptualDistance:
    """LPIPS of each pair, in float32; figures of one ``net`` do not compare with another's.

    The network and its errors are those of `LPIPS`, on a device.
    """

    def __init__(self, device: torch.device, net: str = "vgg", weights: str | None = None):
        self.network = LPIPS(net, weights).to(device)
        self.min_size = MIN_SIZES[net]

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances, (B,), of images in [0, 1], (B, 3, H, W); ValueError for tiny ones."""
        check_unit_pair(x, y)
        if min(x.shape[-2:]) < self.min_size:
            raise ValueError(
                f"LPIPS needs images of at least {self.min_size} px, got {tuple(x.shape)}"
            )
        return self.network(x * 2 - 1, y * 2 - 1).flatten()
