"""One picture of what a flow generates: a grid of images, one row a prompt or class; or points."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject
from wfimagevae.pictures.flow_frames import background, path_frames
from wfimagevae.pictures.grid import sample_grid, save_png


class SamplePicture:
    """About ``count`` samples that are drawn at once and can be saved later, by one process.

    The rows show ``subjects``, as many as fit, or else classes; ``batch_size`` samples are drawn
    and decoded at a time. ``content`` are images in [-1, 1], or points, row by row.
    """

    def __init__(
        self,
        generator: FlowGenerator,
        options: SamplingOptions,
        count: int,
        batch_size: int,
        subjects: Sequence[Subject] = (),
    ):
        self.generator = generator
        num_classes = generator.model.num_classes
        side = max(round(count**0.5), 1)
        # A square of rows, each of which shows one thing.
        if subjects:
            self.rows = list(subjects[:side])
        elif num_classes:
            classes = torch.linspace(0, num_classes - 1, min(num_classes, side)).round().long()
            self.rows = [Subject(0, label) for label in classes.tolist()]
        else:
            self.rows = [Subject(0)] * side
        self.columns = max(count // len(self.rows), 1)
        rows = [row for row in self.rows for _ in range(self.columns)]
        samples, parts = [replace(row, index=i) for i, row in enumerate(rows)], []
        for first in range(0, len(samples), batch_size):
            x = generator.draw(samples[first : first + batch_size], options)
            # Low precision may overflow; a picture does not end a training.
            x = x.nan_to_num(0.0, 0.0, 0.0)
            is_point = generator.facts["space"] == "point"
            parts.append((x if is_point else generator.images(x)).cpu())
        self.content = torch.cat(parts)

    def save(self, path: Path) -> None:
        """Writes the picture as a PNG."""
        if self.generator.facts["space"] == "point":
            data = background(self.generator.facts["dataset"])
            (picture,) = path_frames(self.content[None], [1.0], data)
        else:
            titles = [self.generator.title(row) for row in self.rows]
            picture = sample_grid(self.content, self.columns, titles if any(titles) else None)
        save_png(path, picture)
