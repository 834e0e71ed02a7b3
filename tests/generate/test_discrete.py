"""Generators at discrete times: guidance, two stages, filling in; the models are known exactly."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.eval.flow_models import WordModel, letters
from tests.refusals import refused
from wfimagevae.diffusion.gaussian import GaussianDiffusion
from wfimagevae.diffusion.sampler import GAUSSIAN_SAMPLERS, SAMPLERS
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.inpainting import fill_in
from wfimagevae.generate.options import (
    DISCRETE_SAMPLERS,
    FlowSampler,
    SamplingOptions,
    UpsamplerOptions,
)
from wfimagevae.generate.subjects import Subject
from wfimagevae.generate.two_stages import TwoStageGenerator

CPU = torch.device("cpu")
TEN = SamplingOptions(steps=10)
COLOURS = torch.tensor([[0.7, -0.7, -0.7], [-0.7, 0.7, -0.7], [-0.7, -0.7, 0.7], [0.0] * 3])


class NoiseModel(WordModel):
    """The exact noise where all images of a word are its colour, and variances on top."""

    prediction = "epsilon"

    def __init__(self):
        super().__init__()
        self.config = {"schedule": "squaredcos_cap_v2", "num_train_steps": 1000}
        self.diffusion, self.calls = GaussianDiffusion("squaredcos_cap_v2"), 0

    def data(self, x, condition):
        lengths = (condition["ids"] > 0).sum(1)
        return COLOURS[torch.where(lengths == 0, 3, lengths - 1)][:, :, None, None].expand_as(x)

    def forward(self, x, t, condition=None, t_end=None):
        self.calls += 1
        alpha_bar = self.diffusion.alpha_bar[t.long()].to(x.dtype).view(-1, 1, 1, 1)
        eps = (x - alpha_bar.sqrt() * self.data(x, condition)) / (1 - alpha_bar).sqrt()
        return torch.cat([eps, torch.full_like(eps, -1.0)], 1)


class Enlarger(NoiseModel):
    """The same, whose images are the small ones with each pixel four times as large."""

    sample_shape, needs = (3, 32, 32), ("low_res",)

    def data(self, x, condition):
        return F.interpolate(condition["low_res"], x.shape[2:], mode="nearest")


class Filler(NoiseModel):
    """The same, where the mask leaves something to draw, and what is known elsewhere."""

    needs = ("inpaint_image", "inpaint_mask")

    def data(self, x, condition):
        mask = condition["inpaint_mask"]
        return condition["inpaint_image"] * mask + super().data(x, condition) * (1 - mask)


def generator_of(model, **facts):
    facts = {"space": "pixel", "objective": "noise_prediction", "cfg_dropout_prob": 0.2} | facts
    return FlowGenerator(model, CPU, facts, text=letters)


def two_stages(**options):
    return TwoStageGenerator(
        generator_of(NoiseModel()), generator_of(Enlarger()), UpsamplerOptions(**options)
    )


def test_the_names_of_options_are_those_of_samplers():
    assert set(DISCRETE_SAMPLERS) == GAUSSIAN_SAMPLERS.keys()
    assert not GAUSSIAN_SAMPLERS.keys() & SAMPLERS.keys()
    assert SAMPLERS.keys() == set(FlowSampler.__args__)


@pytest.mark.parametrize("sampler", DISCRETE_SAMPLERS)
def test_each_sampler_draws_what_the_prompt_says(sampler):
    x = generator_of(NoiseModel()).draw(
        [Subject(0, None, "a"), Subject(1, None, "ccc")], TEN.changed(sampler=sampler)
    )
    expected = COLOURS[[0, 2], :, None, None].expand(-1, -1, 8, 8)
    torch.testing.assert_close(x, expected, atol=0.02, rtol=0)


def test_guidance_leads_away_from_the_null_or_a_negative_prompt_within_its_interval():
    """Guided data are null + w (cond - null), since noise is linear in the data."""
    generator, options = generator_of(NoiseModel()), TEN.changed(clip="none", guidance_scale=1.5)
    x = generator.draw([Subject(0, None, "a")], options)
    torch.testing.assert_close(x.mean((2, 3))[0], 1.5 * COLOURS[0], atol=0.02, rtol=0)
    x = generator.draw([Subject(0, None, "a")], options.changed(negative_prompt="ccc"))
    torch.testing.assert_close(
        x.mean((2, 3))[0], 1.5 * COLOURS[0] - 0.5 * COLOURS[2], atol=0.02, rtol=0
    )
    # Time 0 is noise: guidance near the noise alone is forgotten by the last step.
    x = generator.draw([Subject(0, None, "a")], options.changed(guidance_interval=(0.0, 0.5)))
    torch.testing.assert_close(x.mean((2, 3))[0], COLOURS[0], atol=0.02, rtol=0)
    x = generator.draw([Subject(0, None, "a")], options.changed(guidance_interval=(0.5, 1.0)))
    torch.testing.assert_close(x.mean((2, 3))[0], 1.5 * COLOURS[0], atol=0.02, rtol=0)


def test_respacing_says_how_often_the_network_is_asked():
    generator = generator_of(NoiseModel())
    for spacing, count in (("7", 7), ("10,10,3,2,2", 27), ("fast27", 27), ("ddim25", 25)):
        generator.model.calls = 0
        options = generator.resolve(TEN.changed(timestep_respacing=spacing))
        generator.draw([Subject(0, None, "a")], options)
        assert generator.model.calls == options.steps == count  # and records and tables say so


def test_what_the_model_cannot_do_is_explained():
    discrete, upsampler = generator_of(NoiseModel()), generator_of(Enlarger())
    flow = FlowGenerator(WordModel(), CPU, {"space": "pixel", "objective": "flow_matching"})
    never = generator_of(NoiseModel(), cfg_dropout_prob=0.0)
    for message, generator, values in (
        ("sampler 'heun': this model predicts noise at", discrete, {"sampler": "heun"}),
        ("eta 0.5 is ddim's", discrete, {"sampler": "plms", "eta": 0.5}),
        ("bad spacing", discrete, {"timestep_respacing": "fast"}),
        ("plms needs at least 3 steps, got 2", discrete, {"sampler": "plms", "steps": 2}),
        ("sampler 'ddim': this model predicts velocities", flow, {"sampler": "ddim"}),
        ("are of models at discrete times", flow, {"clip": "static"}),
        ("never learned the null", never, {"guidance_scale": 2.0}),
    ):
        refused(message, generator.resolve, TEN.changed(**values))
    refused("name it as --upsampler of a base", upsampler.draw, [Subject(0, None, "a")], TEN)
    options = UpsamplerOptions()
    refused("is no base model", TwoStageGenerator, upsampler, upsampler, options)
    refused("is no upsampler", TwoStageGenerator, discrete, discrete, options)
    refused("bad spacing", two_stages, upsampler_steps="17,x")


def test_two_stages_enlarge_what_the_first_one_draws():
    generator = two_stages()
    subjects = [Subject(0, None, "bb"), Subject(5, None, "a")]
    x = generator.draw(subjects, TEN)
    assert x.shape == (2, 3, 32, 32) and generator.pixel_size(None) == (32, 32)
    images = generator.images(x)
    expected = COLOURS[[1, 0], :, None, None].expand(-1, -1, 32, 32)
    torch.testing.assert_close(images, expected, atol=0.02, rtol=0)
    # Each sample by itself, and other sizes, in pixels of the large image.
    torch.testing.assert_close(generator.draw(subjects[1:], TEN), x[1:], atol=1e-5, rtol=0)
    size = generator.sample_size(64, 32)
    assert size == (16, 8)
    assert generator.images(generator.draw(subjects, TEN, size)).shape == (2, 3, 64, 32)
    record = generator.describe(generator.resolve(TEN))
    assert record["second_stage"]["upsampler_steps"] == "fast27" and record["sampler"] == "ddim"


def test_the_second_stage_reads_the_text_is_not_guided_and_starts_a_little_colder():
    generator, seen = two_stages(upsampler_steps="3"), []
    enlarger = generator.upsampler.model
    enlarger.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    generator.draw([Subject(4, None, "bb")], TEN.changed(guidance_scale=3.0))
    assert [len(x) for x, *_ in seen] == [1, 1, 1]  # a guided call would have two rows
    assert torch.equal(seen[0][2]["ids"], letters(["bb"])["ids"])
    noise = generator.upsampler.noise([4], 0)
    torch.testing.assert_close(seen[0][0], 0.997 * noise)
    low_res = (seen[0][2]["low_res"] + 1) * 127.5  # as a file would hold it
    torch.testing.assert_close(low_res, low_res.round())


def test_the_idle_stage_is_put_away_if_asked(monkeypatch):
    moves = []
    for name, model in (("base", NoiseModel), ("upsampler", Enlarger)):
        monkeypatch.setattr(model, "to", lambda self, place, n=name: moves.append(n))
    two_stages().draw([Subject(0, None, "a")], TEN)
    assert moves == []
    two_stages(offload=True).draw([Subject(0, None, "a")], TEN)
    assert moves == ["upsampler", "base", "base", "upsampler"]  # away, ready, away, ready


@pytest.fixture
def photo(tmp_path):
    """An image of 24 x 16 px and a mask that leaves the left half of its middle square to draw."""
    pixels = np.full((16, 24, 3), 200, np.uint8)
    mask = np.zeros((16, 24), np.uint8)
    mask[:, :12] = 255
    paths = str(tmp_path / "image.png"), str(tmp_path / "mask.png")
    for path, content in zip(paths, (pixels, mask), strict=True):
        Image.fromarray(content).save(path)
    return paths


def test_what_is_missing_of_an_image_is_drawn_and_the_rest_stays(photo):
    generator = generator_of(Filler())
    fill_in(generator, *photo)
    x = generator.images(generator.draw([Subject(0, None, "a"), Subject(1, None, "bb")], TEN))
    known = torch.full((2, 3, 8, 4), 200 / 127.5 - 1)
    torch.testing.assert_close(x[..., 4:], known)  # not a rounding away from the image
    drawn = COLOURS[[0, 1], :, None, None].expand(-1, -1, 8, 4)
    torch.testing.assert_close(x[..., :4], drawn, atol=0.02, rtol=0)


def test_masks_of_other_sizes_and_models_that_do_not_fill_in_are_refused(photo, tmp_path):
    image, mask = photo
    refused("does not fill in images", fill_in, generator_of(NoiseModel()), *photo)
    small = str(tmp_path / "small.png")
    Image.open(mask).resize((8, 8)).save(small)
    filler = generator_of(Filler())
    refused("has 8 x 8 pixels and --inpaint_image .* 24 x 16", fill_in, filler, image, small)
    refused("give --inpaint_image FILE", filler.draw, [Subject(0, None, "a")], TEN)
