"""Energy distance between two sets of samples: no network, no download, any kind of data."""

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**24  # of one converted chunk and of one block of distances
_MAX_ROWS = 4096


@torch.no_grad()
def energy_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased energy distance, 2 E|x - y| - E|x - x'| - E|y - y'|, x' and y' independent copies.

    Its expectation is 0 for equal distributions and positive otherwise, whatever the sizes of the
    sets, so a value may be negative. Distances are Euclidean between whole samples, in the samples'
    units: the value grows with the range and the number of elements.

    Samples are (N, ...) and (M, ...), of any number type, and compared in float64 on the device of
    ``x``. Fewer than two, shapes that differ, or values that are not finite are a ValueError.

    Source: Szekely and Rizzo 2013, "Energy statistics", equation 6.1, with U-statistics.
    """
    for name, samples in (("first", x), ("second", y)):
        if len(samples) < 2:
            raise ValueError(f"energy distance needs 2 samples, the {name} set has {len(samples)}")
        if not samples.isfinite().all():
            raise ValueError(f"the {name} set of samples holds values that are not finite")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"samples of one shape are compared, got {tuple(x.shape[1:])} and {tuple(y.shape[1:])}"
        )
    if x.device.type == "mps":  # has no float64
        x = x.cpu()
    x, y = x.flatten(1), y.to(x.device).flatten(1)
    # Distances do not change, but far from the origin they would lose digits.
    centre = x[0].double()  # (D,)
    between = _distance_sum(x, y, centre) / (len(x) * len(y))
    within_x = _distance_sum(x, x, centre) / (len(x) * (len(x) - 1))
    within_y = _distance_sum(y, y, centre) / (len(y) * (len(y) - 1))
    return float(2 * between - within_x - within_y)


def _distance_sum(x: Tensor, y: Tensor, centre: Tensor) -> Tensor:
    """Sum of all |x_i - y_j|; of a set with itself, each i = j counts exactly 0."""
    rows = min(_MAX_ROWS, max(1, _CHUNK_ELEMENTS // x.shape[1]))
    total = centre.new_zeros(())
    for i, a in enumerate(x.split(rows)):
        a = a.double() - centre  # (rows, D)
        for j, b in enumerate(y.split(rows)):
            distances = torch.cdist(a, b.double() - centre)  # (rows, rows)
            if x is y and i == j:
                distances.fill_diagonal_(0)
            total += distances.sum()
    return total
