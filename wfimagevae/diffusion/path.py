"""The straight path from noise to data."""

from torch import Tensor


def straight_path(noise: Tensor, data: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Point ``x_t`` and velocity ``d x_t / dt`` on the straight line from noise to data, (B, ...).

    Times, (B,), are in [0, 1]; 0 is noise, 1 is data.

    Source: Lipman et al. 2023, arXiv:2210.02747, optimal-transport path.
    """
    if t.shape != (len(data),):
        raise ValueError(f"t must have shape ({len(data)},), got {tuple(t.shape)}")
    t = expand_times(t, data)
    return (1 - t) * noise + t * data, data - noise


def expand_times(t: Tensor, x: Tensor) -> Tensor:
    """Times (B,) with as many trailing dimensions of size 1 as ``x`` has: (B, 1, ..., 1)."""
    return t.view(-1, *[1] * (x.dim() - 1))
