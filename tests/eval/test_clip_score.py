"""CLIP scores are cosines; images of prompts are ranked by them, and never drawn twice."""

import torch

from tests.model.text.tiny_encoders import write_clip
from tests.refusals import refused
from wfimagevae.eval.clip_score import clip_scores
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
