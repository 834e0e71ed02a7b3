"""A flow trained on captioned shapes draws what its prompt says: seven minutes, so marked slow."""

import math

import pytest
import torch

from tests.task.test_trained_flows import RECIPE, train_classifier
from tests.task.training import ROOT, FlowPlace
from wfimagevae.dataset import ShapesDataset
from wfimagevae.dataset.toy.shapes import COLOURS, SHAPES
from wfimagevae.generate.generator_files import load_generator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject

CPU = torch.device("cpu")
GUIDANCE = 2.0
STEPS = 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_prompts_are_drawn_in_shape_and_colour(tmp_path, two_threads):
    """All 64 captions, five samples each; the classifier and the paint judge both words."""
    generator = load_generator(str(train(tmp_path, 1300)), CPU)
    classifier = train_classifier()
    assert agree(generator, classifier, GUIDANCE) >= 0.9
    assert agree(generator, classifier, 0.0) <= 0.25  # chance is 1 in 64
    # From the same noise, prompts that differ in both words give pictures that differ in both.
    pairs = [("a red circle", "a blue star"), ("a green cross", "a yellow heart")]
    sides = [judge(generator, classifier, side * 20, GUIDANCE) for side in zip(*pairs, strict=True)]
    changed = [a[0] != b[0] and a[1] != b[1] for a, b in zip(*sides, strict=True)]
    assert sum(changed) >= 0.8 * len(changed)


def train(folder, steps, **options):
    """Trains the small text-to-image network of the examples; its run."""
    texts = {"no_class_conditional": True, "text_encoder": "bytes", "text_length": 20}
    config = ROOT / "examples" / "flow-shapes-text-small.json"
    recipe = RECIPE | texts | {"model_config": config}
    return FlowPlace(folder).train("text", steps, **recipe | options)


def agree(generator, classifier, scale, per_prompt=5):
    """Share of samples whose shape and colour are those of their prompt."""
    dataset, items = ShapesDataset(32), [i for i in range(64) for _ in range(per_prompt)]
    seen = judge(generator, classifier, [dataset.caption(i) for i in items], scale)
    wanted = [(dataset.label(i), i // len(SHAPES)) for i in items]
    return sum(a == b for a, b in zip(seen, wanted, strict=True)) / len(items)


def judge(generator, classifier, prompts, scale):
    """Shape that the classifier sees, and colour nearest to the paint, of a sample a prompt."""
    options = SamplingOptions(sampler="euler", steps=STEPS, guidance_scale=scale)
    subjects, seen = [Subject(n, None, prompt) for n, prompt in enumerate(prompts)], []
    for start in range(0, len(subjects), 64):
        images = generator.images(generator.draw(subjects[start : start + 64], options))
        with torch.no_grad():
            shapes = classifier(images).argmax(1).tolist()
        seen += zip(shapes, foreground_colours(images), strict=True)
    return seen


def foreground_colours(images):
    """Number of the colour nearest to the mean of the pixels that are not background.

    The background is a gray, the median of each picture's border; paint is what is far from it.
    """
    pixels = (images + 1) * 127.5  # (B, 3, H, W)
    border = torch.cat([pixels[..., 0, :], pixels[..., -1, :], pixels[..., 0], pixels[..., -1]], -1)
    distance = (pixels - border.median(-1).values[..., None, None]).norm(dim=1)  # (B, H, W)
    inside = distance >= 0.6 * distance.flatten(1).max(1).values[:, None, None]
    weight = inside[:, None].float()
    mean = (pixels * weight).sum((2, 3)) / weight.sum((2, 3))
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    return torch.cdist(mean, palette).argmin(1).tolist()


def test_the_paint_of_real_pictures_is_named_right():
    dataset = ShapesDataset(32, seed=3, num_items=256, augment=False)
    images = dataset.to_inputs(dataset.read_batch(list(range(256))), CPU)["image"]
    noisy = (images + 0.05 * torch.randn(256, 3, 32, 32)).clamp(-1, 1)
    paints = [list(COLOURS)[number] for number in foreground_colours(noisy)]
    truth = [dataset.attributes(dataset.index(i))[1] for i in range(256)]
    assert sum(a == b for a, b in zip(paints, truth, strict=True)) >= 250


def test_the_recipe_trains_and_its_samples_can_be_judged(tmp_path, monkeypatch):
    """A moment of the training above: each part runs, and an untrained flow agrees by chance."""
    monkeypatch.setattr("tests.task.test_trained_text_to_image.STEPS", 2)
    keys = {"num_shapes": 64, "batch_size": 8, "warmup_steps": 1, "mix_precision": "fp32"}
    generator = load_generator(str(train(tmp_path, 2, **keys)), CPU)

    def anything(images):
        return images.flatten(1)[:, :8]

    assert agree(generator, anything, 2.0, per_prompt=1) < 0.3
    assert math.prod(generator.model.sample_shape) == 3 * 32 * 32
