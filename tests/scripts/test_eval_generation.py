import json

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import eval_generation
from tests.model.text.tiny_encoders import write_clip
from tests.refusals import refused
from tests.scripts.flow_exports import command
from wfimagevae.eval.set_metrics import energy_distance

NO_WORKERS = ("--num_workers", 0, "--device", "cpu")


def evaluate(*words):
    return command(eval_generation, *words, *NO_WORKERS)


def content_of(path):
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def results(path, *arguments):
    """The results in the JSON of an evaluation without problems."""
    assert evaluate(*arguments, "--output_json", path) == 0
    return content_of(path)["results"]


@pytest.fixture(scope="module")
def arrays():
    """Two sets of ten images."""
    shape = (10, 16, 16, 3)
    return [np.random.default_rng(i).integers(0, 256 - 60 * i, shape, np.uint8) for i in range(2)]


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory):
    """Flags that name the sets in two folders; the second is an .npz, too."""
    root = tmp_path_factory.mktemp("images")
    for name, images in zip(("real", "fake"), arrays, strict=True):
        (root / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(root / name / f"{i}.png")
    np.savez(root / "fake.npz", arrays[1])
    return ("--real_image_dir", root / "real", "--generated_image_dir", root / "fake")


@pytest.mark.parametrize("fake", ["fake", "fake.npz"])
def test_energy_distance_of_files_needs_no_network(fake, files, arrays, tmp_path, capsys):
    a, b = (torch.from_numpy(array) / 127.5 - 1 for array in arrays)
    root = files[1].parent
    files = (*files[:3], root / fake)
    (result,) = results(tmp_path / "m.json", *files, "--metric", "energy_distance")
    assert result["energy_distance"] == pytest.approx(energy_distance(a, b), rel=1e-5)
    assert result["sampling"]["source"] == str(root / fake)
    protocol = result["protocol"]
    assert protocol["reference"]["source"] == str(root / "real")
    assert protocol["real_count"] == protocol["generated_count"] == 10
    assert "raw pixels" in protocol["energy_distance"]["vectors"]
    assert "torch" in protocol["versions"] and "torch-fidelity" not in protocol["versions"]
    assert "| 10 samples |" in capsys.readouterr().out


@pytest.mark.slow  # eigenvalues of a 2048 x 2048 matrix
def test_all_metrics_of_files(files, tmp_path, inception_weights, capsys):
    options = ("--inception_weights", inception_weights, "--kid_num_subsets", 3)
    (result,) = results(tmp_path / "m.json", *files, *options)
    assert result["fid"] > 0 and 0 <= result["precision"] <= 1 and 0 <= result["recall"] <= 1
    assert result["kid_std"] >= 0 and result["energy_distance"] > 0
    assert result["protocol"]["kid"]["num_subsets"] == 3
    assert result["protocol"]["features"]["features"] == "torch-fidelity InceptionV3, 2048"
    assert "torch-fidelity" in result["protocol"]["versions"]
    assert "fewer than the 2048 features" in capsys.readouterr().out


def test_missing_weights_are_reported_and_the_rest_is_measured(
    files, tmp_path, no_downloads, capsys
):
    assert evaluate(*files, "--output_json", tmp_path / "m.json") == 3
    content = content_of(tmp_path / "m.json")
    assert content["results"][0]["energy_distance"] > 0 and "fid" not in content["results"][0]
    assert content["unavailable"].keys() == {"fid", "kid", "precision_recall"}
    assert "--inception_weights" in capsys.readouterr().out


def test_a_run_is_measured_for_every_combination(pixels, tmp_path, capsys):
    rows = results(
        tmp_path / "m.json",
        *("--from_pretrained", pixels, "--dataset", "shapes", "--resolution", 16),
        *("--sampler", "euler", "heun", "--steps", 2, 3, "--guidance_scale", 1, 2),
        *("--num_images", 12, "--batch_size", 5, "--metric", "energy_distance"),
    )
    sampled = [row["sampling"] for row in rows]
    assert [(s["sampler"], s["steps"], s["guidance"]["scale"]) for s in sampled] == [
        (s, n, w) for s in ("euler", "heun") for n in (2, 3) for w in (1.0, 2.0)
    ]
    assert [s["nfe"] for s in sampled] == [2, 4, 3, 6, 4, 8, 6, 12]
    assert all(s["labels"] == "balanced" for s in sampled)
    assert len({row["energy_distance"] for row in rows}) == 8
    assert len({row["protocol_hash"] for row in rows}) == 1
    table = capsys.readouterr().out
    assert "| sampler | steps | NFE | guidance | energy distance of pixels |" in table
    assert "| heun    |     3 |  12 |        2 |" in table


def test_points_are_measured_against_fresh_ones(points, tmp_path):
    options = ("--dataset", "moons", "--num_images", 200, "--steps", 4)
    (result,) = results(tmp_path / "m.json", "--from_pretrained", points, *options)
    assert result["energy_distance"] > 0.01
    assert result["protocol"]["reference"]["source"] == "moons"
    assert result["sampling"]["labels"] == "none" and result["sampling"]["nfe"] == 8


def test_bad_combinations_are_told_before_anything_is_drawn(points, pixels):
    for arguments, message in (
        ("--dataset moons", "either --generated_image_dir or --from_pretrained"),
        ("--generated_image_dir here", "either --real_image_dir or --dataset"),
        ("--from_pretrained {points} --dataset shapes", "generates points.*five_gaussians"),
        ("--from_pretrained {pixels} --dataset moons", "generates pixels.*set of images"),
        ("--from_pretrained {points} --dataset moons --metric fid", "no image features"),
        ("--from_pretrained {points} --dataset moons --sampler mean_flow", "mean_flow"),
        ("--from_pretrained {points} --dataset moons --guidance_scale 1 2", "unconditional"),
        ("--from_pretrained {pixels} --dataset cifar10", "--data_path"),
        ("--from_pretrained {pixels} --dataset shapes --num_images 3", "too few"),
        ("--from_pretrained {pixels} --dataset shapes --fixed_prompt_prefix x", "takes no text"),
        ("--generated_image_dir {pixels} --dataset shapes --captions sidecar", "as they are"),
    ):
        words = arguments.format(points=points, pixels=pixels).split()
        refused(message, evaluate, *words)


def test_clip_scores_a_text_flow_and_files_with_captions(
    files, text_flow, pixels, tmp_path, monkeypatch, capsys
):
    clip = write_clip(tmp_path / "clips")
    metric = ("--metric", "clip_score", "energy_distance", "--clip_model")
    shapes = ("--dataset", "shapes", "--resolution", 16, *metric)
    flow = ("--from_pretrained", text_flow, *shapes)
    words = ("--steps", 2, "--num_images", 70, "--guidance_scale", 1, 4)
    rows = results(tmp_path / "m.json", *flow, clip, *words)
    scores = [row["clip_score"] for row in rows]
    assert all(-1 <= score <= 1 for score in scores) and scores[0] != scores[1]
    assert [*rows[0]["protocol"]["clip_score"]] == ["model", "weights", "average"]
    assert "transformers" in rows[0]["protocol"]["versions"]
    assert "| energy distance of pixels | clip_score |" in capsys.readouterr().out
    # Weights that cannot be had are told of, and the rest is measured; a wrong name is an error.
    monkeypatch.setattr("wfimagevae.model.clip.hub_answers", lambda name: False)
    assert evaluate(*flow, "ViT-B-32", *words, "--output_json", tmp_path / "m.json") == 3
    content = content_of(tmp_path / "m.json")
    assert "clip_score" not in content["results"][0] and content["results"][0]["energy_distance"]
    assert "neither cached nor downloadable" in content["unavailable"]["clip_score"]
    refused("did you mean ViT-L-1", evaluate, *flow, "ViT-L-15", *words)
    # Files need captions, each image its own.
    for number in range(9):
        (files[3] / f"{number}.txt").write_text("a red circle")
    captions = ("--captions", "sidecar")
    refused("some images have none", evaluate, *files, *metric, clip, *captions)
    (files[3] / "9.txt").write_text("the big square")
    (result,) = results(tmp_path / "m.json", *files, *metric, clip, *captions)
    assert -1 <= result["clip_score"] <= 1
    npz = (*files[:3], files[3].parent / "fake.npz")
    for words in (files, npz, ("--from_pretrained", pixels, "--dataset", "shapes")):
        refused("compares images with texts", evaluate, *words, *metric, clip)
    refused("as they are", evaluate, *npz, *metric, clip, *captions)
