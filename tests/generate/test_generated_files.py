"""Grids of generated images: in training, and as scripts/generate.py writes them."""

import contextlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.eval.flow_models import BlobModel, GaussianFlow, generator_of
from wfimagevae.engine.distributed import World
from wfimagevae.generate.generated_files import class_sheet, write_folder
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.sample_picture import SamplePicture
from wfimagevae.generate.subjects import subjects_in_turn

ALONE = World(0, 1, torch.device("cpu"))
EULER = SamplingOptions(sampler="euler", steps=2)


def test_a_row_holds_one_class_whatever_the_batch_size():
    singly, together = (
        SamplePicture(generator_of(BlobModel()), EULER, 12, batch_size) for batch_size in (1, 100)
    )
    assert singly.columns == 4 and [row.label for row in singly.rows] == [0, 1, 2]
    torch.testing.assert_close(singly.content, together.content)
    brightest = singly.content.mean((2, 3)).argmax(1)  # a blob's colour is its class
    assert brightest.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_samples_that_overflow_leave_a_picture_but_no_files(tmp_path):
    model = BlobModel()
    model.gain.data.fill_(torch.inf)
    generator = generator_of(model)
    SamplePicture(generator, EULER, 4, 4).save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").exists()
    with pytest.raises(ValueError, match="samples are not finite"):
        sheet = class_sheet(generator, subjects_in_turn(2, [0, 1]), [EULER])
        write_folder(tmp_path / "out", generator, sheet, 2, ALONE)


def test_a_picture_of_points_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    generator = generator_of(GaussianFlow())
    generator.facts["dataset"] = "moons"
    picture, path = SamplePicture(generator, EULER, 16, 16), tmp_path / "new" / "points.png"
    picture.save(path)
    before = path.read_bytes()
    with Image.open(path) as shown:
        assert shown.format == "PNG" and len(shown.getcolors(10**6)) > 2

    def full_disk(self, target, **how):
        with contextlib.ExitStack() as stack:
            is_path = isinstance(target, str | Path)
            file = stack.enter_context(open(target, "wb")) if is_path else target
            file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        picture.save(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_grid_of_one_image_a_class_is_a_square(tmp_path, monkeypatch):
    grids = []
    monkeypatch.setattr("wfimagevae.generate.generated_files.save_grid", lambda *a: grids.append(a))
    for count in (3, 9):
        generator = generator_of(BlobModel())
        sheet = class_sheet(generator, subjects_in_turn(count, [0, 1, 2]), [EULER])
        write_folder(tmp_path, generator, sheet, 4, ALONE)
    (_, _, columns, names, _), (_, images, wide, rows, _) = grids
    assert (columns, names) == (2, None)
    assert (wide, rows) == (3, ["red", "green", "blue"])
    assert images.mean((2, 3)).argmax(1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
