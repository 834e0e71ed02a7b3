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
SCALES = (1.0, 4.0, 6.0)
STEPS = 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_prompts_are_drawn_in_shape_and_colour(tmp_path, two_threads):
    """All 64 captions, five samples each; the classifier and the paint judge both words."""
    generator = load_generator(str(train(tmp_path, 1500)), CPU)
    classifier = train_classifier()
    agreement = {scale: agree(generator, classifier, scale) for scale in (0.0, *SCALES)}
    print(agreement)
    best = max(SCALES, key=lambda scale: agreement[scale])
    changed = swapped_pictures(generator, classifier, best)
    assert agreement[best] >= 0.9, agreement
    assert agreement[0.0] <= 0.25, agreement  # chance is 1 in 64
    assert changed >= 0.8


def train(folder, steps, **options):
    """Trains the small text-to-image network of the examples; its run."""
    texts = {"no_class_conditional": True, "text_encoder": "bytes", "text_length": 20}
    config = ROOT / "examples" / "flow-shapes-text-small.json"
    recipe = RECIPE | texts | {"model_config": config}
    return FlowPlace(folder).train("text", steps, **recipe | options)


def agree(generator, classifier, scale, per_prompt=5):
    """Share of samples whose shape and colour are those of their prompt."""
    dataset = ShapesDataset(32)
    wanted = [(dataset.label(i), i // len(SHAPES)) for i in range(64) for _ in range(per_prompt)]
    prompts = [dataset.caption(i) for i in range(64) for _ in range(per_prompt)]
    found = judge(classifier, draw(generator, list(enumerate(prompts)), scale))
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def swapped_pictures(generator, classifier, scale):
    """Share of noises from which two prompts that differ in both words give what each says."""
    pairs = [("a red circle", "a blue star"), ("a green cross", "a yellow heart")]
    indices = [(k, i) for k in range(len(pairs)) for i in range(20)]
    seen = []
    for side in (0, 1):
        subjects = [(1000 + i, pairs[k][side]) for k, i in indices]
        seen.append(judge(classifier, draw(generator, subjects, scale)))
    differ = [a[0] != b[0] and a[1] != b[1] for a, b in zip(*seen, strict=True)]
    return sum(differ) / len(differ)


def draw(generator, numbered_prompts, scale, batch_size=64):
    """Images of prompts, each from the noise of its number."""
    options = SamplingOptions(sampler="euler", steps=STEPS, guidance_scale=scale)
    subjects = [Subject(index, None, prompt) for index, prompt in numbered_prompts]
    parts = [subjects[i : i + batch_size] for i in range(0, len(subjects), batch_size)]
    x = torch.cat([generator.draw(part, options) for part in parts])
    return generator.images(x)


def judge(classifier, images):
    """The shape that the classifier sees and the colour that the foreground is nearest to."""
    with torch.no_grad():
        shapes = classifier(images).argmax(1).tolist()
    return list(zip(shapes, foreground_colours(images), strict=True))


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


def test_real_pictures_are_judged_right():
    """The measure itself, on real shapes; of the classifier only that shapes come first."""
    dataset = ShapesDataset(32, seed=3, num_items=256, augment=False)
    batch = dataset.to_inputs(dataset.read_batch(list(range(256))), CPU)

    def perfect(images):
        return torch.nn.functional.one_hot(batch["label"], 8).float()

    truth = [dataset.attributes(dataset.index(i)) for i in range(256)]
    wanted = [(list(SHAPES).index(s), list(COLOURS).index(c)) for s, c in truth]
    noisy = batch["image"] + 0.05 * torch.randn(256, 3, 32, 32, generator=torch.manual_seed(0))
    found = judge(perfect, noisy.clamp(-1, 1))
    right = sum(a == b for a, b in zip(found, wanted, strict=True))
    assert right >= 250
    wrong = judge(perfect, noisy.roll(1, 0).clamp(-1, 1))
    assert sum(a == b for a, b in zip(wrong, wanted, strict=True)) < 64


def test_the_recipe_trains_and_its_samples_can_be_judged(tmp_path, monkeypatch):
    """A moment of the training above: each part runs, and an untrained flow agrees by chance."""
    monkeypatch.setattr("tests.task.test_trained_text_to_image.STEPS", 2)
    keys = {"num_shapes": 64, "batch_size": 8, "warmup_steps": 1, "mix_precision": "fp32"}
    generator = load_generator(str(train(tmp_path, 2, **keys)), CPU)

    def anything(images):
        return images.flatten(1)[:, :8]

    assert agree(generator, anything, 2.0, per_prompt=1) < 0.3
    assert 0 <= swapped_pictures(generator, anything, 1.0) <= 1
    assert math.prod(generator.model.sample_shape) == 3 * 32 * 32
