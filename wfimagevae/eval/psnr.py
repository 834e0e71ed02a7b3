"""Peak signal-to-noise ratio."""

from torch import Tensor

from wfimagevae.pictures.pixels import unit_pair


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, ``-10 log10(mean squared error)``, in dB.

    Both are images in [0, 1], (B, C, H, W), or it is a ValueError; the result is float64, (B,), and
    infinite for identical images.
    """
    x, y = unit_pair(x, y)
    error = (x - y).square().flatten(1).mean(1)  # (B,)
    return -10 * error.log10()
