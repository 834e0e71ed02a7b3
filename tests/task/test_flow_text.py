"""Flows that learn from captions: training, validation, resuming, sampling by prompts."""

import json

import pytest
import torch

from scripts import save_hf_model
from tests.images import write_images
from tests.model.text.tiny_encoders import write_clip, write_encoder
from tests.task.training import differences, load, refused
from wfimagevae.eval.clip_score import clip_scores
from wfimagevae.generate.generator_files import load_generator
from wfimagevae.generate.options import GeneratorOptions, SamplingOptions
from wfimagevae.generate.subjects import Subject
from wfimagevae.model.clip import load_clip
from wfimagevae.pictures.pixels import to_uint8

CPU = torch.device("cpu")
BYTES = {"text_encoder": "bytes", "text_length": 24}
EULER = SamplingOptions(sampler="euler", steps=2)


@pytest.fixture
def captioned(tmp_path):
    """Folders of six training and four held-out images, most with captions."""
    for name, count in (("train", 6), ("held_out", 4)):
        for i, path in enumerate(sorted(write_images(tmp_path / name, count).iterdir())):
            if i:
                path.with_suffix(".txt").write_text("a red circle\na small circle on the left\n")
    folders = {"data_path": tmp_path / "train", "eval_data_path": tmp_path / "held_out"}
    return {"dataset": "images", "captions": "sidecar"} | folders


def first_batch(dataset, count=8):
    positions = list(range(count))
    return dataset.to_inputs(dataset.read_batch(positions), CPU) | {"position": positions}


@pytest.mark.parametrize("objective", ["flow_matching", "mean_flow"])
def test_a_flow_learns_from_captions_resumes_exactly_and_draws_prompts(place, objective):
    options = BYTES | {"objective": objective, "no_class_conditional": True, "eval_steps": 4}
    prompts = {"sample_prompts": ["a red circle", "a blue star"]}
    whole, parts = place.whole_and_parts(4, 2, **options, **prompts)
    assert differences(load(whole, 4), load(parts, 4)) == []
    assert list((whole / "val_samples").iterdir())

    generator = load_generator(str(whole), CPU)
    facts = {"kind": "bytes", "source": None, "length": 24, "fingerprint": None}
    assert generator.facts["text"] == facts
    for parameter in generator.model.parameters():  # four steps from zero leave nothing to see
        torch.nn.init.normal_(parameter, std=0.1)
    circle, star, again = (
        generator.draw([Subject(3, None, prompt)], EULER)
        for prompt in ("a red circle", "a blue star", "a red circle")
    )
    assert torch.equal(circle, again) and (circle - star).abs().max() > 1e-3
    with pytest.raises(ValueError, match="another text encoder"):
        place.go_on("parts", 5, **options | {"text_length": 32})


def test_validation_scores_a_sample_of_each_prompt_of_a_file_by_clip(place, tmp_path):
    clip, file = write_clip(tmp_path), tmp_path / "prompts.txt"
    prompts = ["a red circle", "the big square", "small", "on the left", "blue"]
    file.write_text("\n".join(prompts))
    options = BYTES | {"no_class_conditional": True, "eval_steps": 2, "no_ema": True}
    options |= {"prompt_file": file, "eval_clip_model": clip, "eval_batch_size": 2}
    run = place.train("scored", 2, **options, sampler="euler", sampling_steps=2)
    (row,) = (json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines())
    generator = load_generator(str(run), CPU)
    sampling = EULER.changed(seed=json.loads((run / "options.json").read_text())["seed"])
    subjects = [Subject(n, None, text) for n, text in enumerate(prompts)]
    samples = generator.draw(subjects, sampling)
    pixels = to_uint8(generator.images(samples))
    expected = clip_scores(load_clip(str(clip)), pixels, prompts, 5)
    assert row["val/clip_score"] == pytest.approx(expected.mean().item(), abs=1e-3)
    assert expected.std() > 0.01


def test_classes_and_captions_condition_together(assemble):
    _, dataset, _, space, objective = assemble(**BYTES)
    batch = first_batch(dataset)
    told = space.condition(batch)
    assert told.keys() == {"label", "ids"} and objective.network.num_classes == 8
    text = bytes(byte - 1 for byte in told["ids"][0].tolist() if byte).decode()
    assert text == batch["caption"][0] == dataset.caption(dataset.index(0))
    *_, space, _ = assemble(no_class_conditional=True, **BYTES)
    assert space.condition(batch).keys() == {"ids"} and space.num_classes == 0


def test_dropped_captions_are_the_null_condition(assemble):
    options = BYTES | {"no_class_conditional": True}
    _, dataset, *_, objective = assemble(cfg_dropout_prob=0.5, **options)
    batch = first_batch(dataset, 64)
    point = objective.draw(batch, torch.full((64,), 0.5))
    null = objective.network.null_condition(64, CPU)
    for name, nothing in null.items():
        is_null = (point.condition[name] == nothing).view(64, -1).all(1)
        assert torch.equal(is_null, point.dropped)
    assert 15 < point.dropped.sum() < 49


def test_an_image_without_a_caption_teaches_the_null_condition(assemble, captioned, caplog):
    _, dataset, _, space, objective = assemble(eval_steps=1, **captioned, **BYTES)
    batch = first_batch(dataset, 6)
    without = batch["caption"].index("")
    told, null = space.condition(batch), objective.network.null_condition(1, CPU)
    assert torch.equal(told["ids"][without], null["ids"][0])
    assert "1 of 6 images have no caption" in caplog.text


def test_a_frozen_encoder_gives_tokens_and_keeps_its_weights(place, captioned, tmp_path):
    encoder = f"t5:{write_encoder(tmp_path, 't5')}"
    options = captioned | {"text_encoder": encoder, "text_length": 12, "text_attention": "joint"}
    run = place.train("t5", 2, eval_steps=2, eval_num_samples=4, **options)
    content = load(run, 2)
    assert content["config"]["text_encoder"] == "external"
    assert content["config"]["text_attention"] == "joint"
    assert content["generator"]["text"]["length"] == 12
    assert not any("shared" in name for name in content["state_dict"]["gen_model"])
    generator = load_generator(str(run), CPU)
    assert generator.draw([Subject(0, None, "a red circle")], EULER).isfinite().all()
    moved = (tmp_path / "t5").rename(tmp_path / "moved")
    told = f"of this flow cannot be read: t5:{tmp_path / 't5'}: no such folder.* --text_encoder t5:"
    with pytest.raises(ValueError, match=told):
        load_generator(str(run), CPU)
    load_generator(GeneratorOptions(from_pretrained=str(run), text_encoder=f"t5:{moved}"), CPU)
    export = ["--from_pretrained", str(run), "--save_dir", str(tmp_path / "export")]
    with pytest.raises(ValueError, match="--text_encoder t5:PATH"):
        save_hf_model.main(export)
    save_hf_model.main([*export, "--text_encoder", f"t5:{moved}"])
    exported = load_generator(str(tmp_path / "export"), CPU)
    assert exported.facts["text"]["source"] == str(moved)
    card = (tmp_path / "export" / "README.md").read_text()
    assert "tags: [flow-matching, wfimagevae]" in card
    with pytest.raises(ValueError, match="was trained with the text encoder t5"):
        load_generator(
            GeneratorOptions(from_pretrained=str(run), text_encoder=f"clip:{moved}"), CPU
        )
    assert len(content["generator"]["text"]["fingerprint"]) == 64


def test_a_class_conditional_flow_learns_captions_besides(place):
    first = place.train("first", 2)
    unchanged = {"lr": 1e-12, "ema_decay": 0.0}
    second = place.train("second", 1, pretrained_model_name_or_path=first, **unchanged, **BYTES)
    before, after = (load_generator(str(run), CPU) for run in (first, second))
    subjects = [Subject(0, 1), Subject(1, 5)]
    old, new = (generator.draw(subjects, EULER) for generator in (before, after))
    torch.testing.assert_close(old, new, atol=1e-4, rtol=0)


def test_weights_that_learned_another_encoders_texts_bring_a_warning(
    place, captioned, tmp_path, caplog
):
    encoder = f"t5:{write_encoder(tmp_path, 't5')}"
    options = captioned | {"text_length": 12}
    first = place.train("first", 1, text_encoder=encoder, **options)
    options |= {"pretrained_model_name_or_path": first}
    place.train("same", 1, text_encoder=encoder, **options)
    assert "learned the texts of" not in caplog.text
    other = f"bert:{write_encoder(tmp_path, 'bert')}"
    place.train("other", 1, text_encoder=other, **options)
    assert f"{first} learned the texts of {encoder}; those of {other}" in caplog.text


def test_none_is_no_text_encoder(assemble):
    _, dataset, _, space, _ = assemble(text_encoder="none")
    assert space.text is None and torch.is_tensor(space.condition(first_batch(dataset)))


def test_a_prefix_stands_before_every_caption(assemble, captioned):
    _, dataset, *_ = assemble(fixed_prompt_prefix="pixels", **captioned, **BYTES)
    captions = set(dataset.read_batch(list(range(30)))["caption"])
    assert captions == {"", "pixels. a red circle", "pixels. a small circle on the left"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"captions": "sidecar"}, "--captions is for flows that take text"),
        ({"text_length": 8}, "--text_length is for flows that take text"),
        ({"sample_prompts": ["x"]}, "--sample_prompts is for flows that take text"),
        (
            BYTES | {"captions": "sidecar"},
            "is for --dataset images, not for shapes",
        ),
        (BYTES | {"dataset": "moons", "model_name": "MLP"}, "needs captions, which this data"),
        ({"prompt_file": "x"}, "--prompt_file is for flows that take text"),
        ({"eval_clip_model": "x"}, "--eval_clip_model is for flows that take text"),
        (BYTES | {"eval_steps": 1, "prompt_file": "none.txt"}, "--prompt_file none.txt: no such"),
        (
            BYTES | {"eval_steps": 1, "eval_clip_model": "ViT-L-15"},
            "--eval_clip_model .ViT-L-15.* did you mean ViT-L-1",
        ),
        ({"text_encoder": "byte"}, "names no text encoder"),
        ({"text_encoder": "t5:nowhere"}, "t5:nowhere"),
        (BYTES | {"model_name": "UNet"}, "does not suit this data"),
    ],
)
def test_bad_options_are_explained_before_the_first_step(place, options, words):
    with refused(words):
        place.train("bad", 1, **options)


def test_captions_that_are_missing_are_explained(place, tmp_path):
    options = BYTES | {"dataset": "images", "data_path": write_images(tmp_path / "plain", 2)}
    with pytest.raises(ValueError, match="--text_encoder bytes needs captions"):
        place.train("bad", 1, **options)
    with pytest.raises(ValueError, match="none of 2 images has a caption"):
        place.train("bad", 1, **options, captions="sidecar")


def test_a_text_flow_is_not_trained_on_without_its_text(place):
    first = place.train("first", 1, **BYTES)
    with pytest.raises(ValueError, match="takes text: give --text_encoder"):
        place.train("second", 1, pretrained_model_name_or_path=first)
