"""One picture of what a flow generates: a grid of images, one row a class, or points."""

from pathlib import Path

import torch

from wfimagevae.eval.generation import FlowGenerator, SamplingOptions
from wfimagevae.eval.sample_grid import save_grid


class SamplePicture:
    """Samples that are drawn at once and can be saved later, by one process of several.

    Args:
        generator: Draws them.
        options: How.
        count: About how many; whole rows.
        batch_size: Samples, and decoded images, at a time.
    """

    def __init__(
        self, generator: FlowGenerator, options: SamplingOptions, count: int, batch_size: int
    ):
        self.generator = generator
        num_classes = generator.model.num_classes
        side = max(round(count**0.5), 1)
        rows = min(num_classes, side) or side
        self.columns = max(count // rows, 1)
        classes = torch.linspace(0, num_classes - 1, rows).round().long()
        self.classes = classes.tolist() if num_classes else []
        labels = classes.repeat_interleave(self.columns)  # one class a row
        parts = []
        for indices in torch.arange(rows * self.columns).split(batch_size):
            chosen = labels[indices] if num_classes else None
            x = generator.sample(indices.tolist(), chosen, options)
            # Low precision may overflow; a picture does not end a training.
            x = x.nan_to_num(0.0, 0.0, 0.0)
            is_point = generator.facts["space"] == "point"
            parts.append((x if is_point else generator.images(x)).cpu())
        self.content = torch.cat(parts)

    def save(self, path: Path) -> None:
        """Writes the picture as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.generator.facts["space"] == "point":
            self._save_points(path)
            return
        titles = [self.generator.class_name(number) for number in self.classes] or None
        save_grid(path, self.content, self.columns, titles)

    def _save_points(self, path: Path) -> None:
        from wfimagevae.dataset.points import PointDataset
        from wfimagevae.eval.flow_pictures import Plane, path_frames

        real = PointDataset(self.generator.facts["dataset"], split="test")
        plane = Plane(real.read_batch(list(range(2000)))["point"])
        (frame,) = path_frames(self.content[None], [1.0], plane)
        frame.save(path)
