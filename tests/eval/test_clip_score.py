"""CLIP scores are cosines; images of two stages are ranked by them while both stages wait."""

import json

import torch

from tests.generate.test_discrete import two_stages
from tests.model.text.tiny_encoders import write_clip
from tests.refusals import refused
from wfimagevae.engine.distributed import World
from wfimagevae.eval import prompt_images
from wfimagevae.eval.clip_score import clip_scores
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.model.clip import load_clip

PROMPTS = ["a red circle", "the big blue square", "a red circle", "small", "a red circle"]


def test_scores_are_the_cosines_of_transformers_in_any_batch(tmp_path):
    from transformers import CLIPModel, CLIPProcessor

    folder = write_clip(tmp_path)
    network, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    pixels = torch.randint(0, 256, (5, 3, 9, 12), generator=torch.manual_seed(0)).to(torch.uint8)
    inputs = processor(text=PROMPTS, images=list(pixels), return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        output = network(**inputs)
    expected = torch.cosine_similarity(output.image_embeds, output.text_embeds)
    clip = load_clip(str(folder))
    for batch_size in (1, 2, 8):
        scores = clip_scores(clip, pixels, PROMPTS, batch_size)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert scores.std() > 0.01
    with torch.no_grad():
        clip.network.visual_projection.weight.fill_(float("inf"))
    refused("not finite", clip_scores, clip, pixels, PROMPTS, 8)


def test_both_stages_wait_on_the_cpu_while_clip_looks_at_large_images(tmp_path, monkeypatch):
    clip, generator, events = load_clip(str(write_clip(tmp_path))), two_stages(), []
    networks = {"base": generator.model, "upsampler": generator.upsampler.model}
    for name, network in (networks | {"clip": clip.network}).items():
        monkeypatch.setattr(network, "to", lambda place, n=name: events.append((n, str(place))))

    def scored(clip, pixels, prompts, batch_size):
        events.append(("scored", tuple(pixels.shape)))
        return clip_scores(clip, pixels, prompts, batch_size)

    monkeypatch.setattr(prompt_images, "clip_scores", scored)
    sampling = generator.resolve(SamplingOptions(steps=2))
    run = prompt_images.PromptImages(tmp_path, "ddim", ["a", "bb", "ccc"], sampling, 2, 1, 4)
    assert run.draw(generator, clip, World(1, 2, torch.device("cpu"))) == 1  # the second batch
    moves = [(name, "cpu") for name in ("base", "upsampler", "clip")]
    assert events[:3] == moves and events[3] == ("scored", (2, 3, 32, 32))
    assert sorted(events[4:]) == sorted(moves)
    assert not run.is_done(0) and not run.is_done(1) and run.is_done(2)
    metadata = json.loads((tmp_path / "prompt_002" / "metadata.json").read_text())
    assert metadata["sampling"]["second_stage"]["upsampler_steps"] == "fast27"
    assert metadata["num_candidates"] == 2 and len(metadata["images"]) == 1
