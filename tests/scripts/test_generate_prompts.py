"""Generating by prompts: names, records, sizes, ranks; the very picture again from its record."""

import json
import shlex
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from scripts import eval_generation, evaluate_prompts, generate, save_hf_model, visualize_flow
from tests.images import write_images
from tests.refusals import refused
from tests.scripts.flow_exports import command, export_text, generated
from wfimagevae.dataset.toy.shapes import SHAPES
from wfimagevae.generate.generator import FlowGenerator

PROMPTS = ("a red circle", "A Blue star?")


def run(model, output, *more):
    return generated(model, output, "--steps", 2, *more)


def draw_again(record, *more):
    """The path of the picture of a record, drawn again: the very same file."""
    folder = record.parents[1] / "again"
    before = set(folder.glob("*.png"))
    command(generate, "--from_json", record, "--output_dir", folder, "--device", "cpu", *more)
    (path,) = set(folder.glob("*.png")) - before
    drawn = record.parents[1] / record.parent.name.removesuffix("-records") / f"{record.stem}.png"
    assert path.read_bytes() == drawn.read_bytes()
    return path


def difference(a, b):
    return abs(a - b).max()


def test_a_record_makes_the_very_picture_again(text_flow, tmp_path):
    options = ("--negative_prompt", "a ring", "--guidance_scale", 1, 3, "--num_images", 2)
    options += ("--seed", 5, "--height", 24, "--width", 16, "--guidance_interval", 0, 0.8)
    run(text_flow, tmp_path / "out", "--prompt", *PROMPTS, *options, "--sampler", "euler_maruyama")
    record = json.loads((tmp_path / "out-records" / "a-blue-star-w3-1.json").read_text())
    assert record["prompt"] == "A Blue star?" and record["negative_prompt"] == "a ring"
    assert (record["seed"], record["index"], record["steps"]) == (5, 1, 2)
    assert record["guidance"]["scale"] == 3 and record["sampler"] == "euler_maruyama"
    assert (record["height"], record["width"]) == (24, 16)
    assert record["model"]["path"] == str(text_flow) and "torch" in record["versions"]
    for name in ("a-blue-star-w3-1", "a-red-circle-w1"):
        again = draw_again(tmp_path / "out-records" / f"{name}.json")
    moved = shutil.copytree(text_flow, tmp_path / "moved")
    second = draw_again(tmp_path / "out-records" / f"{name}.json", "--from_pretrained", moved)
    assert second.stem == f"{again.stem}-1"


def test_batches_and_other_prompts_change_no_picture(text_flow, tmp_path):
    options = ("--num_images", 3, "--guidance_scale", 2, "--steps", 2)
    both = run(text_flow, tmp_path / "a", "--prompt", *PROMPTS, *options)
    single = run(text_flow, tmp_path / "b", "--prompt", PROMPTS[1], *options, "--batch_size", 1)
    assert list(single) == ["a-blue-star", "a-blue-star-1", "a-blue-star-2"]
    assert all(difference(single[name], both[name]) <= 1 for name in single)
    assert difference(both["a-red-circle"], both["a-blue-star"]) > 5


def test_prompt_files_name_their_pictures_and_none_is_replaced(text_flow, tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "sunset.txt").write_text("a red sun\n")
    (tmp_path / "prompts" / "dawn.txt").write_text("a pale sun")
    path = ("--prompts_path", tmp_path / "prompts", "--num_images", 2)
    first = run(text_flow, tmp_path / "out", *path)
    assert list(first) == ["dawn", "dawn-1", "sunset", "sunset-1"]
    second = run(text_flow, tmp_path / "out", *path, "--seed", 1)
    assert list(second)[-4:] == ["sunset", "sunset-1", "sunset-2", "sunset-3"]
    assert all((second[name] == pixels).all() for name, pixels in first.items())
    assert (tmp_path / "out-records" / "grid-1.png").exists()
    (tmp_path / "list").write_text("a red sun\n\na dot\n")
    listed = run(text_flow, tmp_path / "listed", "--prompts_path", tmp_path / "list")
    assert list(listed) == ["a-dot", "a-red-sun"]
    assert difference(listed["a-red-sun"], first["sunset"]) <= 1


def test_classes_and_prompts_go_together(tmp_path):
    flow = export_text(tmp_path / "flow", class_names=["cat", "dog", "ü" * 300])
    prompt = ("--prompt", "x", "--num_images", 2)
    neither = run(flow, tmp_path / "a", *prompt)
    both = run(flow, tmp_path / "b", *prompt, "--class_labels", "dog")
    classes = run(flow, tmp_path / "c", "--num_images", 3)
    record = json.loads((tmp_path / "b-records" / "x-1.json").read_text())
    assert (record["label"], record["class_name"], record["prompt"]) == (1, "dog", "x")
    assert (neither["x"] != both["x"]).any()
    # A name has as many bytes as a file's may have.
    assert list(classes) == ["000000-cat", "000001-dog", f"000002-{'ü' * 109}"]
    assert json.loads((tmp_path / "c-records" / "000001-dog.json").read_text())["prompt"] is None


def test_npz_has_a_picture_a_prompt_and_scale(text_flow, tmp_path):
    words = ["--from_pretrained", text_flow, "--npz", tmp_path / "x.npz", "--steps", 2]
    words += ["--prompt", *PROMPTS, "--guidance_scale", 0, 1, "--device", "cpu"]
    command(generate, *words)
    content = np.load(tmp_path / "x.npz")
    assert content["arr_0"].shape == (4, 16, 16, 3) and list(content) == ["arr_0"]
    first, second = content["arr_0"][:2].astype(int)
    assert difference(first, second) <= 1  # guidance 0 ignores the prompt; the noise is the same


def test_bad_options_are_explained(text_flow, tmp_path):
    for more, words in (
        ("", "give --prompt or --prompts_path"),
        ("--prompt x --height 30", "30 x 16 pixels .* multiples of 4"),
        ("--prompt x --class_labels 1", "without classes"),
        ("--prompt x --text_encoder t5:x", "trained with the text encoder bytes"),
        ("--prompts_path nowhere", "no such folder or file"),
        ("--from_json x.json --prompt x", "leave out --.*prompt"),
    ):
        refused(words, run, text_flow, tmp_path, *more.split())


def test_guidance_that_does_nothing_or_comes_twice_is_no_option(capsys):
    folder = ("--output_dir", "x")
    for script, more in (
        (generate, folder), (evaluate_prompts, folder), (visualize_flow, folder),
        (eval_generation, ()),
    ):  # fmt: skip
        for words, told in (
            ("--negative_prompt x", "acts through guidance"),
            ("--guidance_scale 2 3 2.0", "2 3 2: give 2 once"),
        ):
            if script is visualize_flow and "once" in told:  # which takes one scale
                continue
            with pytest.raises(SystemExit):
                command(script, "--from_pretrained", "x", *more, *words.split())
            assert told in capsys.readouterr().err


def test_bytes_that_are_no_text_are_no_prompt(text_flow, tmp_path, capsys):
    for flag in ("--prompt", "--negative_prompt"):
        with pytest.raises(SystemExit):
            run(text_flow, tmp_path, flag, "a caf\udce9", "--guidance_scale", 2)
        assert f"{flag}: 'a caf\\udce9' is not UTF-8 text" in capsys.readouterr().err


def test_a_record_that_was_edited_is_explained(text_flow, tmp_path):
    run(text_flow, tmp_path / "out", "--prompt", "x")
    path = tmp_path / "out-records" / "x.json"
    record, empty = json.loads(path.read_text()), ("scale", "interval", "rescale", "channels")
    for part, value, words in (
        ("model", {}, r"x\.json is no record .*: no model\.fingerprint, .* model\.vae"),
        ("model", None, "x.json does not say what to draw: .*NoneType"),
        ("model", record["model"] | {"fingerprint": "f" * 64}, "was drawn by weights f{12}, those"),
        ("guidance", {"scale": 2.0}, "no record .*: no interval"),
        ("batch", {"size": 2, "row": 77}, "no sample 77 in a batch of 2"),
        ("guidance", dict.fromkeys(empty), "what to draw"),
        ("size", 7, "what to draw"),
    ):
        path.write_text(json.dumps(record | {part: value}))
        refused(words, draw_again, path)


def test_the_grid_over_scales_that_the_help_shows_can_be_made_again(text_flow, tmp_path):
    """The second and the fourth example of the script."""
    _, second, _, fourth, *_ = generate.__doc__.split("python scripts/generate.py ")[1:]
    (tmp_path / "samples").mkdir()
    words = shlex.split(second.replace("\\\n", " ")) + ["--steps", "2", "--device", "cpu"]
    places = {"results/text": str(text_flow), "samples": str(tmp_path / "samples")}
    generate.main([places.get(word, word) for word in words])
    draw_again(tmp_path / shlex.split(fourth)[1])


def test_an_export_draws_the_same_and_its_card_tells_of_prompts(text_flow, tmp_path):
    command(save_hf_model, "--from_pretrained", text_flow, "--save_dir", tmp_path / "export")
    card = (tmp_path / "export" / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in card and "up to 24 bytes" in card
    assert list(run(tmp_path / "export", tmp_path / "out", "--prompt", "x")) == ["x"]


def test_evaluation_draws_the_captions_of_the_reference(text_flow, tmp_path):
    photos = write_images(tmp_path / "photos", 4)
    for i in range(3):
        (photos / f"{i:03d}.txt").write_text(f"photo {i}")
    output = tmp_path / "out.json"
    words = ["--from_pretrained", text_flow, "--metric", "energy_distance", "--num_images", 6]
    words += ["--steps", 1, "--output_json", output, "--device", "cpu", "--num_workers", 0]
    folder = ["--real_image_dir", photos, "--resolution", 16]
    refused("with --captions, or --dataset shapes", command, eval_generation, *words, *folder)
    assert command(eval_generation, *words, *folder, "--captions", "sidecar") == 0
    sampling = json.loads(output.read_text())["results"][0]["sampling"]
    assert sampling["prompts"] == "balanced, 3" and sampling["labels"] == "none"
    assert sampling["captions"] == {"source": "sidecar", "prefix": ""}
    shapes = ["--dataset", "shapes", "--resolution", 16]
    hashes = {sampling["prompts_hash"]}
    for prefix in ("", "oil"):
        assert command(eval_generation, *words, *shapes, "--fixed_prompt_prefix", prefix) == 0
        sampling = json.loads(output.read_text())["results"][0]["sampling"]
        assert sampling["prompts"] == "balanced, 64"
        assert sampling["captions"] == {"source": "shapes", "prefix": prefix}
        hashes.add(sampling["prompts_hash"])
    assert len(hashes) == 3
    told = "--dataset shapes has its own"
    refused(told, command, eval_generation, *words, *shapes, "--captions", "sidecar")


def test_evaluation_on_shapes_gives_a_class_its_own_captions(tmp_path, monkeypatch):
    shapes = list(SHAPES)
    flow = export_text(tmp_path / "flow", class_names=shapes)
    draw = Mock(side_effect=lambda subjects, options: torch.zeros(len(subjects), 3, 8, 8))
    monkeypatch.setattr(FlowGenerator, "draw", draw)
    words = ["--from_pretrained", flow, "--metric", "energy_distance", "--num_images", 70]
    words += ["--dataset", "shapes", "--resolution", 8, "--device", "cpu"]
    assert command(eval_generation, *words) == 0
    drawn = [subject for call in draw.call_args_list for subject in call.args[0]]
    assert len({subject.prompt for subject in drawn}) == 64
    assert all(subject.prompt.endswith(f" {shapes[subject.label]}") for subject in drawn)


def test_pictures_of_a_text_flow_take_prompts(text_flow, tmp_path):
    words = ["--from_pretrained", text_flow, "--output_dir", tmp_path, "--device", "cpu"]
    words += ["--steps", 2, "--num_rows", 2, "--num_columns", 2]
    refused("give --prompt", command, visualize_flow, *words)
    command(visualize_flow, *words, "--prompt", *PROMPTS)
    assert (tmp_path / "denoising.png").exists() and (tmp_path / "interpolation.gif").exists()
