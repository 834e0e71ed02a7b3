"""Images of prompts: drawn in batches, ranked by CLIP, resumed bit for bit, measured."""

import json
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts import eval_generation, evaluate_prompts
from tests.model.text.tiny_encoders import write_clip
from tests.refusals import refused
from tests.scripts.flow_exports import command
from wfimagevae.eval.clip_score import clip_scores
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.model.clip import load_clip

PROMPTS = "a red circle|the big blue square|small circle"
RERANK = ("--use_clip_rerank", "--clip_candidates", 6, "--clip_top_k", 2, "--batch_size", 4)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips"))


def evaluate(flow, clip, output, *more, prompts=("--prompts", PROMPTS)):
    words = ("--from_pretrained", flow, "--output_dir", output, *prompts, "--clip_model", clip)
    steps = () if "--steps" in more else ("--steps", 2)
    return command(evaluate_prompts, *words, *steps, "--device", "cpu", *more)


def read(path):
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def contents(folder):
    """The bytes of all files but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pixels_of(path):
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)


@pytest.fixture(scope="module")
def ranked(text_flow, clip, tmp_path_factory):
    """A whole evaluation with re-ranking."""
    folder = tmp_path_factory.mktemp("ranked") / "out"
    assert evaluate(text_flow, clip, folder, *RERANK) == 0
    return folder


def test_a_rehearsal_draws_nothing_and_a_tracker_gets_figures_and_sheets(
    text_flow, clip, tmp_path, capsys, monkeypatch
):
    out, scales = tmp_path / "out", ("--guidance_scale", 1, 2)
    assert evaluate(text_flow, clip, out, *scales, "--dry_run") == 0
    told = "would draw 1 images of each of 3 prompts by heun-2-w1, heun-2-w2"
    assert told in capsys.readouterr().out and not out.exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("pip install trackio", evaluate, text_flow, clip, out, "--tracker", "trackio")
    assert not out.exists()
    monkeypatch.undo()
    assert evaluate(text_flow, clip, out, *scales, "--tracker", "tensorboard") == 0
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    results = read(out / "metadata.json")["results"]
    for row, name in zip(results, ("heun-2-w1", "heun-2-w2"), strict=True):
        (event,) = events.Scalars(f"{name}/clip_score")
        assert event.value == pytest.approx(row["clip_score"])
    images = ["contact_sheet", "heun-2-w1/contact_sheet", "heun-2-w2/contact_sheet"]
    assert sorted(events.Tags()["images"]) == images


def test_the_best_candidates_are_kept_in_order_with_their_scores_and_seeds(
    ranked, clip, text_flow, tmp_path
):
    network = load_clip(str(clip))
    assert evaluate(text_flow, clip, tmp_path / "all", "--num_images", 6, "--batch_size", 4) == 0
    for number, prompt in enumerate(PROMPTS.split("|")):
        folder, everything = ranked / f"prompt_{number:03d}", tmp_path / "all"
        metadata = read(folder / "metadata.json")
        assert (metadata["prompt"], metadata["prompt_idx"]) == (prompt, number)
        assert metadata["num_candidates"] == 6 and metadata["sampling"]["steps"] == 2
        names = [image["filename"] for image in metadata["images"]]
        assert names == ["image_rank_001.png", "image_rank_002.png"]
        assert {path.name for path in folder.iterdir()} == {*names, "metadata.json"}
        # The scores are those of the files, and the best of all candidates.
        pixels = torch.stack([pixels_of(folder / name) for name in names])
        scores = [image["clip_score"] for image in metadata["images"]]
        assert scores == pytest.approx(clip_scores(network, pixels, [prompt] * 2, 2).tolist())
        assert scores == sorted(metadata["candidate_scores"])[:-3:-1]
        assert len({*metadata["candidate_scores"]}) == 6
        # Candidate i is sample i of the seed, as without re-ranking.
        drawn = read(everything / f"prompt_{number:03d}" / "metadata.json")["images"]
        files = {image["index"]: image["filename"] for image in drawn}
        for image, candidate in zip(metadata["images"], pixels, strict=True):
            other = pixels_of(everything / f"prompt_{number:03d}" / files[image["index"]])
            assert image["seed"] == 0 and (other.int() - candidate.int()).abs().max() <= 1


def test_a_resumed_evaluation_draws_what_is_missing_and_equals_a_whole_one(
    ranked, text_flow, clip, tmp_path, monkeypatch, capsys
):
    whole, folder = contents(ranked), tmp_path / "out"
    draw, calls = FlowGenerator.draw, []

    def counted(self, subjects, *more):
        calls.append([subject.prompt for subject in subjects])
        if len(calls) == 3 and stops:
            raise KeyboardInterrupt
        return draw(self, subjects, *more)

    monkeypatch.setattr(FlowGenerator, "draw", counted)
    stops = True
    with pytest.raises(KeyboardInterrupt):
        evaluate(text_flow, clip, folder, *RERANK)
    assert (folder / "prompt_000" / "metadata.json").exists()
    refused("give --resume, or another", evaluate, text_flow, clip, folder, *RERANK)
    stops = False
    calls.clear()
    assert evaluate(text_flow, clip, folder, *RERANK, "--resume") == 0
    assert len(calls) == 4 and not any("a red circle" in call for call in calls)
    assert "3 prompts, 2 of them drawn now" in capsys.readouterr().out
    assert contents(folder) == whole
    # What is whole is not drawn at all; an image that was lost is.
    calls.clear()
    assert evaluate(text_flow, clip, folder, *RERANK, "--resume") == 0
    assert not calls
    (folder / "prompt_001" / "image_rank_002.png").unlink()
    assert evaluate(text_flow, clip, folder, *RERANK, "--resume") == 0
    assert len(calls) == 2 and contents(folder) == whole
    for more in (("--seed", 1), ("--steps", 3), ("--clip_top_k", 3), ("--guidance_scale", 2)):
        again = (evaluate, text_flow, clip, folder, *RERANK, *more, "--resume")
        refused("was begun with other (sampling|kept)", *again)
    assert contents(folder) == whole


def test_prompts_share_batches_and_resume_all_the_same(text_flow, clip, tmp_path):
    more = ("--num_images", 2, "--batch_size", 4, "--sampler", "euler_maruyama")
    (tmp_path / "a").mkdir()  # where another plan failed before its first image
    (tmp_path / "a" / "metadata.json").write_text('{"plan": {"model": "another"}}')
    assert evaluate(text_flow, clip, tmp_path / "a", *more) == 0
    whole = contents(tmp_path / "a")
    (tmp_path / "a" / "prompt_001" / "metadata.json").unlink()
    (tmp_path / "a" / "prompt_002" / "image_rank_001.png").unlink()
    assert evaluate(text_flow, clip, tmp_path / "a", *more, "--resume") == 0
    assert contents(tmp_path / "a") == whole


@pytest.mark.slow  # processes that import torch
def test_two_processes_draw_what_one_draws(ranked, text_flow, clip, tmp_path, run_script):
    words = ("--from_pretrained", text_flow, "--clip_model", clip, "--prompts", PROMPTS)
    words += ("--steps", 2, "--device", "cpu", *RERANK, "--output_dir", tmp_path / "out")
    run_script("evaluate_prompts.py", *words, cwd=tmp_path, processes=2)
    assert contents(tmp_path / "out") == contents(ranked)


def test_every_combination_has_a_folder_a_row_and_a_sheet(text_flow, clip, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red circle\n\nthe big blue square\n")
    more = ("--sampler", "euler", "heun", "--steps", 1, 2, "--guidance_scale", 1, 3)
    more += ("--output_format", "jpg", "--num_images", 2)
    prompts = ("--prompts_path", tmp_path / "prompts.txt")
    assert evaluate(text_flow, clip, tmp_path / "out", *more, prompts=prompts) == 0
    names = [f"{s}-{n}-w{w}" for s in ("euler", "heun") for n in (1, 2) for w in (1, 3)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == names
    results = read(tmp_path / "out" / "metadata.json")["results"]
    assert len({result["clip_score"] for result in results}) > 4
    for name, result in zip(names, results, strict=True):
        folder = tmp_path / "out" / name
        scores = [
            read(folder / f"prompt_00{n}" / "metadata.json")["candidate_scores"] for n in (0, 1)
        ]
        assert result["clip_score"] == pytest.approx(np.mean(scores))
        assert result["clip_score_best"] == pytest.approx(np.mean(np.max(scores, 1)))
        assert Image.open(folder / "prompt_001" / "image_rank_002.jpg").format == "JPEG"
        assert (folder / "contact_sheet.png").exists()
    table = capsys.readouterr().out
    assert "| sampler | steps | guidance | clip_score | clip_score_best |" in table
    assert "| heun    |     2 |        3 |" in table
    best, one = (
        Image.open(path / "contact_sheet.png")
        for path in (tmp_path / "out", tmp_path / "out" / name)
    )
    assert best.width > 3 * one.width - 400 and best.height >= one.height


def test_sheets_lose_no_image(text_flow, tmp_path):
    prompts = ("--prompts", "|".join(f"shape {n}" for n in range(33)))
    more = ("--num_images", 2, "--steps", 1, "--batch_size", 64)
    assert evaluate(text_flow, "none", tmp_path / "out", *more, prompts=prompts) == 0
    sheets = sorted((tmp_path / "out").glob("*.png"))
    assert [sheet.name for sheet in sheets] == ["contact_sheet_001.png", "contact_sheet_002.png"]
    heights = [Image.open(sheet).height for sheet in sheets]
    assert heights[0] > 32 * 96 and 96 < heights[1] < 2 * 96  # 32 rows, and 1
    metadata = read(tmp_path / "out" / "prompt_032" / "metadata.json")
    assert metadata["candidate_scores"] is None and metadata["images"][1]["clip_score"] is None
    assert "clip_score" not in read(tmp_path / "out" / "metadata.json")["results"][0]


@pytest.mark.slow  # eigenvalues of a 2048 x 2048 matrix
def test_fid_and_kid_come_from_the_evaluator(text_flow, clip, tmp_path, inception_weights):
    prompts = ("--prompts", "|".join(f"shape {n}" for n in range(5)))
    more = ("--dataset", "shapes", "--resolution", 16, "--inception_weights", inception_weights)
    more += ("--metric", "fid", "kid", "--kid_num_subsets", 2)
    assert evaluate(text_flow, clip, tmp_path / "out", *more, prompts=prompts) == 0
    (result,) = read(tmp_path / "out" / "metadata.json")["results"]
    assert result["fid"] > 0 and result["kid_std"] >= 0
    assert result["protocol"]["generated_count"] == result["protocol"]["real_count"] == 5


def test_the_manifest_is_measured_by_eval_generation(ranked, clip, tmp_path):
    words = ("--generated_image_dir", ranked / "images.jsonl", "--captions", "manifest")
    words += ("--dataset", "shapes", "--resolution", 16, "--clip_model", clip, "--device", "cpu")
    words += ("--metric", "clip_score", "energy_distance", "--num_workers", 0)
    assert command(eval_generation, *words, "--output_json", tmp_path / "m.json") == 0
    (result,) = read(tmp_path / "m.json")["results"]
    kept = [read(ranked / f"prompt_00{n}" / "metadata.json")["images"] for n in range(3)]
    scores = [image["clip_score"] for images in kept for image in images]
    assert result["clip_score"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert result["energy_distance"] > 0 and result["protocol"]["generated_count"] == 6
    assert result["protocol"]["clip_score"]["model"] == f"clip:{clip}"


def test_bad_input_is_told_before_anything_is_drawn(
    text_flow, pixels, points, clip, tmp_path, monkeypatch
):
    monkeypatch.setattr(FlowGenerator, "draw", Mock(side_effect=AssertionError("drawn")))
    (tmp_path / "empty.txt").write_text("\n \n")
    for flow, network, arguments, message in (
        (text_flow, "ViT-L-15", "--prompts a", "did you mean ViT-L-1"),
        (text_flow, "ViT-L-14/laion", "--prompts a", "there is openai, laion400m"),
        (text_flow, clip, "", "either --prompts or --prompts_path"),
        (text_flow, clip, "--prompts a --prompts_path x", "either --prompts or --prompts_path"),
        (
            text_flow,
            clip,
            f"--prompts_path {tmp_path}/empty.txt",
            "no prompts; looked for a prompt",
        ),
        (text_flow, clip, f"--prompts_path {tmp_path}/none.txt", "no such folder or file"),
        (text_flow, clip, "--prompts a||b", "a prompt is empty"),
        (text_flow, clip, "--prompts a --clip_top_k 2", "--use_clip_rerank must be given"),
        (text_flow, clip, "--prompts a --use_clip_rerank --num_images 2", "in place of --num_im"),
        (text_flow, clip, "--prompts a --use_clip_rerank --clip_candidates 4", "at most as many"),
        (text_flow, "none", "--prompts a --use_clip_rerank", "needs a --clip_model"),
        (text_flow, clip, "--prompts a --steps 2 2", "is asked for twice"),
        (text_flow, clip, "--prompts a --metric fid", "give --real_image_dir or --dataset"),
        (text_flow, clip, "--prompts a --dataset shapes --real_image_dir x", "either"),
        (text_flow, clip, "--prompts a --dataset moons", "images as the reference"),
        (pixels, clip, "--prompts a", "takes no text: draw from it with"),
        (points, clip, "--prompts a", "takes no text"),
        (text_flow, clip, "--prompts a --sampler mean_flow", "mean_flow"),
        (tmp_path / "none", clip, "--prompts a", "none does not exist"),
    ):
        words = ("--from_pretrained", flow, "--clip_model", network, *arguments.split())
        words += ("--output_dir", tmp_path / "out", "--device", "cpu")
        refused(message, command, evaluate_prompts, *words, error=(ValueError, OSError))
    assert not (tmp_path / "out").exists()
