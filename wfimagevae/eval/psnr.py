"""Peak signal-to-noise ratio."""

from torch import Tensor

from wfimagevae.pictures.pixels import check_unit_pair, measuring_dtype


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair: ``-10 log10(mean squared error)``.

    Args:
        x: Images in [0, 1], (B, C, H, W).
        y: The same shape and range.

    Returns:
        Decibels, float64, (B,); infinity for identical images.

    Raises:
        ValueError: shapes differ, or values lie outside [0, 1].
    """
    check_unit_pair(x, y)
    dtype = measuring_dtype(x.device)
    error = (x.to(dtype) - y.to(dtype)).square().flatten(1).mean(1)  # (B,)
    return -10 * error.log10()
