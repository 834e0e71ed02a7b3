"""CLIP networks: those of transformers and open_clip give their libraries' own embeddings."""

import json
import logging

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from tests.model.text.tiny_encoders import write_clip, write_encoder
from tests.refusals import refused
from wfimagevae.model.clip import load_clip
from wfimagevae.model.losses.lpips_network import MissingWeights

TEXTS = ["a red circle", "the big blue square on the left"]
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (2, 3, 14, 10), generator=torch.manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def pictures(pixels):
    return [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """An architecture of open_clip named tiny-CLIP-4, and a file of weights for it."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "tiny-CLIP-4.json").write_text(json.dumps(TINY))
    other = TINY | {"text_cfg": TINY["text_cfg"] | {"width": 16}}
    (folder / "tiny-CLIP-5.json").write_text(json.dumps(other))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    network = open_clip.create_model("tiny-CLIP-4")
    torch.save(network.state_dict(), folder / "tiny.pt")
    return folder / "tiny.pt"


def test_a_folder_of_transformers_gives_its_own_embeddings(tmp_path, pixels, pictures):
    from transformers import CLIPModel, CLIPProcessor

    folder = write_clip(tmp_path)
    network, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=TEXTS, images=pictures, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        expected = network(**inputs)
    for spec in (str(folder), f"clip:{folder}"):
        clip = load_clip(spec)
        assert clip.name == f"clip:{folder}" and not clip.network.training
        for mine, theirs in (
            (clip.embed_images(pixels), expected.image_embeds),
            (clip.embed_texts(TEXTS), expected.text_embeds),
        ):
            torch.testing.assert_close(mine / mine.norm(dim=1, keepdim=True), theirs)


@pytest.mark.parametrize("spec", ["tiny-CLIP-4/{file}", "tiny/CLIP-4/{file}", "{folder}"])
def test_weights_of_open_clip_in_files_give_its_own_embeddings(tiny, spec, pixels, pictures):
    network, _, prepare = open_clip.create_model_and_transforms("tiny-CLIP-4", str(tiny))
    with torch.no_grad():
        images = network.eval().encode_image(torch.stack([prepare(image) for image in pictures]))
        texts = network.encode_text(open_clip.get_tokenizer("tiny-CLIP-4")(TEXTS))
    (tiny.parent / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    torch.save(network.state_dict(), tiny.parent / "open_clip_pytorch_model.bin")
    clip = load_clip(spec.format(file=tiny, folder=tiny.parent))
    torch.testing.assert_close(clip.embed_images(pixels), images)
    torch.testing.assert_close(clip.embed_texts(TEXTS), texts)
    assert all(not parameter.requires_grad for parameter in clip.network.parameters())


def test_each_name_of_public_weights_is_understood(monkeypatch):
    asked = []

    def create(architecture, weights, **how):
        asked.append((architecture, weights, how["force_quick_gelu"]))
        raise RuntimeError("no network in tests")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
    monkeypatch.setattr("wfimagevae.model.clip.hub_answers", lambda name: False)
    names = "ViT-L-14", "ViT-L/14", "ViT-L-14/laion2b_s32b_b82k", "ViT-L/14/laion2b_s32b_b82k"
    for name in (*names, "ViT-H-14"):
        refused("neither cached nor.*no network in tests", load_clip, name, error=MissingWeights)
    # OpenAI's were trained with another GELU.
    openai, laion = ("ViT-L-14", "openai", True), ("ViT-L-14", "laion2b_s32b_b82k", False)
    assert asked == [openai, openai, laion, laion, ("ViT-H-14", "laion2b_s32b_b79k", False)]


def test_what_is_no_clip_is_told_with_names_that_are_near(tmp_path, tiny):
    write_encoder(tmp_path, "bert")
    write_encoder(tmp_path, "clip-text")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes(tiny.read_bytes()[:5000])
    for spec, message in (
        ("ViT-L-15", "no folder, and no model of open_clip; did you mean ViT-L-1"),
        ("ViT-L-15/openai", "did you mean ViT-L-1"),
        ("ViT-L-14/laion2b_s32b", "no public weights of ViT-L-14; there is laion2b_s32b_b82k"),
        ("ViT-L-14/none.pt", "'none.pt' is no file"),
        ("tiny-CLIP-4", "no public weights of tiny-CLIP-4; there is none"),
        ("/no/folder", "no folder, and no model of open_clip. Write one such as ViT-L-14"),
        ("clip:/no/folder", "--clip_model /no/folder: no such folder"),
        (str(tmp_path / "bert"), "is a bert, no clip"),
        (str(tmp_path / "clip-text"), "transformers reads no model from there"),
        (f"tiny-CLIP-4/{tmp_path}/other.pt", "holds no such network"),
        (f"tiny-CLIP-4/{tmp_path}/cut.pt", "cut.pt is not a readable checkpoint"),
        (f"tiny-CLIP-5/{tiny}", "holds no such network"),
    ):
        refused(message, load_clip, spec)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    refused("pip install open_clip_torch", load_clip, "ViT-L-14")


def test_texts_that_are_cut_are_told_of_once(tmp_path, tiny, caplog):
    for clip in (load_clip(str(write_clip(tmp_path))), load_clip(f"tiny-CLIP-4/{tiny}")):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "wfimagevae"):
            clip.embed_texts(TEXTS)
            assert not caplog.records
            for _ in range(2):
                clip.embed_texts([TEXTS[0], "a red " * 30])
        (record,) = caplog.records
        assert "a prompt is cut" in record.message and "'a red a red" in record.message


def test_images_are_looked_at_as_they_are_whatever_their_size(tmp_path):
    clip = load_clip(str(write_clip(tmp_path)))
    plain = torch.from_numpy(np.full((1, 3, 64, 48), 200, np.uint8))
    torch.testing.assert_close(clip.embed_images(plain), clip.embed_images(plain[..., :8, :8]))
