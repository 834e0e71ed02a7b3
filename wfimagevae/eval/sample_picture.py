"""One picture of what a flow generates: a grid of images, one row a class, or points."""

from pathlib import Path

import torch

from wfimagevae.eval.generation import FlowGenerator, SamplingOptions, labels_in_turn
from wfimagevae.eval.sample_grid import save_grid


class SamplePicture:
    """Samples that are drawn at once and can be saved later, by one process of several.

    Args:
        generator: Draws them.
        options: How.
        count: About how many; whole rows.
    """

    def __init__(self, generator: FlowGenerator, options: SamplingOptions, count: int):
        self.generator = generator
        num_classes = generator.model.num_classes
        side = max(round(count**0.5), 1)
        rows = min(num_classes, side) or side
        self.columns = max(count // rows, 1)
        self.classes = torch.linspace(0, num_classes - 1, rows).round().long().tolist()
        self.classes = self.classes if num_classes else []
        labels = labels_in_turn(self.classes, rows * self.columns)
        if labels is not None:  # one class a row
            labels = labels.view(self.columns, rows).T.flatten()
        x = generator.sample(list(range(rows * self.columns)), labels, options)
        self.content = x if generator.facts["space"] == "point" else generator.images(x)

    def save(self, path: Path) -> None:
        """Writes the picture as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.generator.facts["space"] == "point":
            self._save_points(path)
            return
        names = self.generator.facts.get("class_names") or []
        titles = [names[n] if n < len(names) else str(n) for n in self.classes] or None
        save_grid(path, self.content, self.columns, titles)

    def _save_points(self, path: Path) -> None:
        from wfimagevae.dataset.points import PointDataset
        from wfimagevae.eval.flow_pictures import Plane, path_frames

        real = PointDataset(self.generator.facts["dataset"], split="test")
        plane = Plane(real.read_batch(list(range(2000)))["point"])
        (frame,) = path_frames(self.content[None], [1.0], plane)
        frame.save(path)
