"""Pictures of flows: fields and paths of points, denoising and interpolation of images."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wfimagevae.dataset.toy.points import PointDataset

_DATA_COLOUR, _START_COLOUR = "#d1d5db", "#6b7280"
_PIXELS, _DPI = 560, 80
_NUM_DATA = 2000  # points in the background
_DENSITY = 24  # arrows along each side


def background(name: str) -> Tensor:
    """Held-out points of a toy data set, (N, 2), to be drawn in grey."""
    return PointDataset(name, split="test").read_batch(list(range(_NUM_DATA)))["point"]


def direction_colours(vectors: Tensor) -> np.ndarray:
    """Colours of vectors, (N, 2), by direction alone: RGB in [0, 1], (N, 3); hue = angle.

    Red points right, and hues follow the circle against the clock: green-yellow up, cyan left.
    """
    from matplotlib.colors import hsv_to_rgb

    angle = torch.atan2(vectors[:, 1], vectors[:, 0]).double().cpu().numpy()
    hue = np.mod(angle / (2 * math.pi), 1.0)
    return hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.9), np.full_like(hue, 0.85)], 1))


def field_frames(
    velocity: Callable[[Tensor, Tensor], Tensor], times: Sequence[float], data: Tensor
) -> Iterator[Image.Image]:
    """The velocity field at some times: arrows coloured by direction, the data, (N, 2), in grey.

    An arrow's length is the root of its speed, on one scale for all frames: slow places stay
    legible beside fast ones. ``velocity(x, t)`` takes x (N, 2), float32, and t, a scalar tensor,
    and gives (N, 2), finite, or it is a ValueError.
    """
    canvas = _Canvas(data)
    line = torch.linspace(-canvas.limit, canvas.limit, _DENSITY + 2)[1:-1]
    places = torch.cartesian_prod(line, line)  # (_DENSITY^2, 2)
    fields = torch.stack([velocity(places, torch.tensor(float(t))).float().cpu() for t in times])
    if not fields.isfinite().all():  # (T, N, 2)
        raise ValueError("the velocity field is not finite")
    speeds = fields.norm(dim=-1, keepdim=True)  # (T, N, 1)
    fastest = speeds.quantile(0.95).clamp_min(1e-12)
    # The longest arrow spans the distance between two places.
    lengths = (speeds / fastest).clamp_max(1).sqrt() * 2 * canvas.limit / (_DENSITY + 1)

    # The arrows are drawn once; each frame turns, scales and colours them.
    arrows = canvas.axes.quiver(
        *places.T.numpy(),
        *np.zeros((2, len(places))),
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.0035,
        pivot="mid",
        zorder=3,
    )
    _draw_wheel(canvas.figure)
    for t, v, length in zip(times, fields, lengths, strict=True):
        arrows.set_UVC(*(length * torch.nn.functional.normalize(v, dim=1)).T.numpy())
        arrows.set_color(direction_colours(v))
        yield canvas.picture(f"velocity at t = {t:.2f}")


def path_frames(paths: Tensor, times: Sequence[float], data: Tensor) -> Iterator[Image.Image]:
    """Particles, (T, N, 2), on their way from noise to data, with their trails; a frame a time.

    A particle's colour is the direction from its start to its end; the data, (N, 2), is grey.
    Positions that are not finite are a ValueError.
    """
    if not paths.isfinite().all():
        raise ValueError("paths of points are not finite")
    from matplotlib.collections import LineCollection

    # Points, trails and starts are drawn once; each frame moves the points, lengthens the trails.
    canvas, paths = _Canvas(data), paths.float().cpu()
    colours = direction_colours(paths[-1] - paths[0])
    points = canvas.axes.scatter(*paths[0].T.numpy(), s=14, c=colours, zorder=4)
    trails = LineCollection([], colors=colours, linewidths=0.8, alpha=0.45, zorder=3)
    canvas.axes.add_collection(trails)
    canvas.axes.scatter(*paths[0].T.numpy(), s=3, c=_START_COLOUR, zorder=2, lw=0)
    for i, t in enumerate(times):
        points.set_offsets(paths[i].numpy())
        trails.set_segments(list(paths[: i + 1].transpose(0, 1).numpy()))
        yield canvas.picture(f"{paths.shape[1]} particles at t = {t:.2f}")


class _Canvas:
    """A square figure that takes in data and noise, the data in grey, drawn again each frame."""

    def __init__(self, data: Tensor):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.limit = limit = 1.1 * max(3.0, float(data.abs().max()))
        self.figure = Figure(figsize=(_PIXELS / _DPI, _PIXELS / _DPI), dpi=_DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0.07, 0.05, 0.9, 0.88))
        self.axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        self.axes.set_aspect("equal")
        self.axes.scatter(*data.cpu().T.numpy(), s=4, c=_DATA_COLOUR, zorder=1, lw=0)

    def picture(self, title: str) -> Image.Image:
        self.axes.set_title(title, fontsize=11)
        self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())


def _draw_wheel(figure) -> None:
    """Shows which colour is which direction."""
    axes = figure.add_axes((0.91, 0.935, 0.06, 0.06), projection="polar", zorder=5)
    edges = torch.linspace(0, 2 * math.pi, 49)
    middles = (edges[1:] + edges[:-1]) / 2
    colours = direction_colours(torch.stack([middles.cos(), middles.sin()], 1))
    axes.bar(middles.numpy(), np.ones(48), width=2.1 * math.pi / 48, color=colours)
    axes.set_axis_off()
