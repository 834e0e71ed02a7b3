"""What a generator makes of prompts, negative prompts and sizes; the model is known exactly."""

from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from tests.eval.flow_models import BlobModel, GaussianFlow, WordModel, generator_of
from tests.refusals import refused
from wfimagevae.engine.distributed import World
from wfimagevae.generate.generated_files import (
    SamplePicture,
    Sheet,
    class_stems,
    write_folder,
)
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject, prompt_subjects, slug, subjects_in_turn

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
EULER = SamplingOptions(sampler="euler", steps=3)
RED, GREEN, BLUE, GRAY = "a", "bb", "ccc", ""


def colour(images):
    """Mean of each channel; noise adds a tenth of its own mean."""
    return images.mean((2, 3))


def test_each_sample_shows_its_prompt_which_does_not_change_its_noise():
    generator = generator_of(WordModel())
    x = generator.draw([Subject(i, None, p) for i, p in enumerate((BLUE, RED))], EULER)
    assert colour(x).argmax(1).tolist() == [2, 0]
    nothing = generator.draw([Subject(0, None, GRAY), Subject(0)], EULER)
    assert torch.equal(nothing[0], nothing[1])
    assert colour(nothing).abs().max() < 0.1
    assert torch.equal(nothing[:1], generator.sample([0], None, EULER))
    red, blue = (generator.draw([Subject(7, None, p)], EULER) for p in (RED, BLUE))
    difference = (red - blue)[0]
    assert torch.allclose(difference, difference[:, :1, :1].expand_as(difference), atol=1e-5)
    assert colour(red - blue).tolist()[0] == pytest.approx([1.4, 0, -1.4], abs=1e-5)


def test_a_negative_prompt_stands_in_for_the_null_condition():
    """v = v_neg + w (v_cond - v_neg), for a model whose data is its colour."""
    generator = generator_of(WordModel())
    guided = EULER.changed(guidance_scale=3.0, negative_prompt=BLUE)
    x = generator.draw([Subject(0, None, RED)], guided)
    red, blue = torch.tensor([0.7, -0.7, -0.7]), torch.tensor([-0.7, -0.7, 0.7])
    base = generator.draw([Subject(0, None, RED)], EULER)
    torch.testing.assert_close(colour(x - base)[0], 2 * (red - blue), atol=1e-4, rtol=0)


def test_prompts_are_encoded_one_by_one_and_kept():
    generator, seen = generator_of(WordModel()), []
    encode = generator.text
    generator.text = lambda prompts: seen.append(list(prompts)) or encode(prompts)
    for _ in range(2):
        generator.condition([Subject(0, None, prompt) for prompt in (RED, BLUE, RED)])
    assert seen == [[RED], [BLUE]]
    generator._encode([chr(33 + i) for i in range(100)])
    assert generator._encode_one.cache_info().currsize == 64


def test_what_the_model_cannot_do_is_explained():
    words, blobs = generator_of(WordModel()), generator_of(BlobModel())
    refused("prompt 'a' asked of a model that takes no", blobs.condition, [Subject(0, 0, "a")])
    refused("no class 0: this model has 0 classes", words.condition, [Subject(0, 0)])
    refused("low first", words.resolve, EULER.changed(guidance_interval=(0.6, 0.2)))
    refused("makes 8 x 8; models with position 'rope'", blobs.sample_size, 4, 8)


def test_other_sizes_are_drawn_in_pixels_of_the_image():
    generator = generator_of(WordModel())
    assert generator.sample_size(None, None) is None and generator.sample_size(8, 8) == (8, 8)
    size = generator.sample_size(12, 20)
    x = generator.draw([Subject(0, None, RED)], EULER, size)
    assert x.shape == (1, 3, 12, 20) and colour(x).argmax() == 0
    generator.downsampling = 8
    assert generator.sample_size(96, None) == (12, 8)
    refused("multiples of 32", generator.sample_size, 104, 64)


def test_a_row_holds_one_prompt_or_class_whatever_the_batch_size():
    subjects = [Subject(0, None, prompt) for prompt in (BLUE, GREEN, RED, "dddd")]
    picture = SamplePicture(generator_of(WordModel()), EULER, 9, 2, subjects)
    assert [row.prompt for row in picture.rows] == [BLUE, GREEN, RED] and picture.columns == 3
    assert colour(picture.content).argmax(1).tolist() == [2] * 3 + [1] * 3 + [0] * 3
    singly, together = (
        SamplePicture(generator_of(BlobModel()), EULER, 12, batch_size) for batch_size in (1, 100)
    )
    assert singly.columns == 4 and [row.label for row in singly.rows] == [0, 1, 2]
    torch.testing.assert_close(singly.content, together.content)
    brightest = singly.content.mean((2, 3)).argmax(1)  # a blob's colour is its class
    assert brightest.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def class_sheet(generator, count, classes):
    subjects = subjects_in_turn(count, classes)
    return Sheet(subjects, class_stems(generator, subjects), [EULER])


@pytest.fixture
def grids(monkeypatch):
    """The calls of `sample_grid`."""
    draw = Mock(return_value=Image.new("RGB", (1, 1)))
    monkeypatch.setattr("wfimagevae.generate.generated_files.sample_grid", draw)
    return draw.call_args_list


def test_a_grid_has_prompts_at_the_left_and_scales_above(tmp_path, grids):
    generator, prompts = generator_of(WordModel()), [RED, BLUE, ""]
    for per_prompt, scales in ((1, (0.0, 1.0)), (2, (1.0,))):
        columns = [EULER.changed(guidance_scale=scale) for scale in scales]
        subjects = prompt_subjects(prompts, per_prompt)
        sheet = Sheet(subjects, [slug(subject.prompt) for subject in subjects], columns)
        write_folder(tmp_path, generator, sheet, 4, ALONE)
    single = Sheet(prompt_subjects([RED], 5), ["a"] * 5, [EULER])
    write_folder(tmp_path, generator, single, 4, ALONE)
    (scaled, *first), (rows, *second), (five, *third) = (call.args for call in grids)
    titles = [RED, BLUE, "(no prompt)"]
    assert first == [2, titles, ["guidance 0", "guidance 1"]]
    assert colour(scaled[0::2]).abs().max() < 0.1  # a guidance of 0 ignores the prompt
    assert colour(scaled[1::2])[:2].argmax(1).tolist() == [0, 2]
    assert second == [2, titles, None] and colour(rows)[:4].argmax(1).tolist() == [0, 0, 2, 2]
    assert third == [2, [RED, "", ""], None] and len(five) == 5


def test_samples_that_overflow_leave_a_picture_but_no_files(tmp_path):
    generator = generator_of(BlobModel())
    generator.model.gain.data.fill_(torch.inf)
    SamplePicture(generator, EULER, 4, 4).save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").exists()
    sheet = class_sheet(generator, 2, [0, 1])
    refused("samples are not finite", write_folder, tmp_path / "out", generator, sheet, 2, ALONE)


def test_a_picture_of_points_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    generator = generator_of(GaussianFlow())
    generator.facts["dataset"] = "moons"
    picture, path = SamplePicture(generator, EULER, 16, 16), tmp_path / "new" / "points.png"
    picture.save(path)
    before = path.read_bytes()
    with Image.open(path) as shown:
        assert shown.format == "PNG" and len(shown.getcolors(10**6)) > 2

    def full_disk(self, file, **how):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    refused("no space left", picture.save, path, error=OSError)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_grid_of_one_image_a_class_is_a_square(tmp_path, grids):
    for count in (3, 9):
        generator = generator_of(BlobModel())
        write_folder(tmp_path, generator, class_sheet(generator, count, [0, 1, 2]), 4, ALONE)
    (_, columns, names, _), (images, wide, rows, _) = (call.args for call in grids)
    assert (columns, names) == (2, None)
    assert (wide, rows) == (3, ["red", "green", "blue"])
    assert images.mean((2, 3)).argmax(1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
