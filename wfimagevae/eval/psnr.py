"""Peak signal-to-noise ratio."""

from torch import Tensor

from wfimagevae.pictures.pixels import check_unit_pair, measuring_dtype


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, ``-10 log10(mean squared error)``, in dB.

    Both are images in [0, 1], (B, C, H, W), or it is a ValueError; the result is float64, (B,), and
    infinite for identical images.
    """
    check_unit_pair(x, y)
    dtype = measuring_dtype(x.device)
    error = (x.to(dtype) - y.to(dtype)).square().flatten(1).mean(1)  # (B,)
    return -10 * error.log10()
