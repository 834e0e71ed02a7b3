"""Captions encoded once, beside latents, and what training makes of them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from scripts import cache_latents, generate, save_hf_model
from tests.images import write_images
from tests.model.text.tiny_encoders import write_encoder
from tests.refusals import refused
from tests.scripts.flow_exports import command
from tests.task.training import FlowPlace
from wfimagevae.dataset import LatentDataset
from wfimagevae.model.text import open_text_encoder

CAPTIONS = ["a red circle\nthe red circle", "a blue square", "", "big on the left of a circle"]


@pytest.fixture(scope="module")
def caches(tiny_vae, tmp_path_factory):
    """A folder with captioned images, encoders, and caches with and without embeddings."""
    folder = tmp_path_factory.mktemp("texts")
    vae = shutil.copytree(tiny_vae, folder / "vae")
    write_encoder(folder, "t5")
    for i, path in enumerate(sorted(write_images(folder / "images", 4, 32).iterdir())):
        if CAPTIONS[i]:
            path.with_suffix(".txt").write_text(CAPTIONS[i])
    for name, more in (("plain", ()), ("encoded", ("--text_encoder", f"t5:{folder / 't5'}"))):
        assert cache(folder, name, "--vae", f"WFVAE2Image:{vae}", *more) == 0
    return folder


def cache(folder, name, *more):
    words = ("--image_path", folder / "images", "--output_dir", folder / name, "--resolution", 32)
    words += ("--captions", "sidecar", "--posterior", "mode", "--device", "cpu", "--num_workers", 0)
    words += ("--shard_size", 1)
    length = ("--text_length", 12) if "--text_encoder" in more else ()
    return command(cache_latents, *words, *more, *length)


def train(place, name, cache, **options):
    data = {"dataset": "latents", "data_path": cache, "eval_data_path": cache, "resolution": None}
    return place.train(name, 2, **data | options)


def losses(run):
    return [json.loads(line)["train/loss"] for line in (run / "metrics.jsonl").open()]


def test_stored_embeddings_are_the_encoders_to_float16(caches):
    dataset = LatentDataset(caches / "encoded", text="embeddings")
    assert dataset.record["text"]["source"] == str(caches / "t5")
    batch = dataset.to_inputs(dataset.read_batch(list(range(12))), torch.device("cpu"))
    fresh = open_text_encoder(f"t5:{caches / 't5'}", "cpu", 12)(batch["caption"])
    assert {"the red circle", "a red circle", ""} < set(batch["caption"])
    assert torch.equal(batch["mask"], fresh["mask"])
    for name in ("tokens", "pooled"):
        torch.testing.assert_close(batch[name], fresh[name], atol=2e-3, rtol=1e-3)
    shards = sorted((caches / "encoded").glob("*.safetensors"))
    assert [load_file(path)["text_ends"].tolist() for path in shards] == [[2], [1], [0], [1]]
    spec = f"WFVAE2Image:{caches / 'vae'}"
    refused("made with other text", cache, caches, "encoded", "--vae", spec)


def test_training_on_stored_embeddings_equals_encoding_while_training(caches, tmp_path):
    options = {"text_encoder": f"t5:{caches / 't5'}", "eval_steps": 2, "eval_num_samples": 4}
    options |= {"log_steps": 1, "lr": 0.1, "optimizer": "sgd"}
    place = FlowPlace(tmp_path)
    stored = train(place, "stored", caches / "encoded", **options)
    fly = train(place, "fly", caches / "plain", text_length=12, **options)
    assert losses(stored) == pytest.approx(losses(fly), rel=1e-4)
    assert len(losses(stored)) == 2 and stored.name.endswith("-rs32")

    exported, record = tmp_path / "export", tmp_path / "run-records" / "a-red-circle.json"
    command(save_hf_model, "--from_pretrained", stored, "--save_dir", exported)
    card = (exported / "README.md").read_text()
    assert "frozen text encoder t5:t5, which is not in this folder" in card
    prompt, pictures = ("--steps", 2, "--prompt", "a red circle"), []
    for name, words in (
        ("run", ("--from_pretrained", stored, *prompt)),
        ("exported", ("--from_pretrained", exported, *prompt)),
        ("again", ("--from_json", record)),
    ):
        command(generate, *words, "--output_dir", tmp_path / name, "--device", "cpu")
        pictures.append((tmp_path / name / "a-red-circle.png").read_bytes())
    assert len(set(pictures)) == 1


def test_bytes_need_no_cache_and_take_the_captions(caches, tmp_path):
    train(FlowPlace(tmp_path), "bytes", caches / "encoded", text_encoder="bytes")
    for encoder, captions, words in (
        ("bytes", "sidecar", "bytes need no cache"),
        ("t5:x", "none", "--text_encoder is for captions: give --captions"),
    ):
        more = ("--vae", "WFVAE2Image:x", "--text_encoder", encoder, "--captions", captions)
        refused(words, cache, caches, "x", *more)


def test_another_encoder_or_resolution_than_the_caches_is_refused(caches, tmp_path):
    place, data = FlowPlace(tmp_path), caches / "encoded"
    other = write_encoder(tmp_path, "bert")
    same = f"t5:{caches / 't5'}"
    for words, encoder, options in (
        (r"another kind and fingerprint than .* embeddings are", f"bert:{other}", {}),
        ("another length than", same, {"text_length": 8}),
        ("encode anew with it", same, {"fixed_prompt_prefix": "oil"}),
    ):
        refused(words, train, place, "a", data, text_encoder=encoder, **options)
    refused(r"--resolution 64: .* 32 px", train, place, "x", caches / "plain", resolution=64)


def test_held_out_latents_are_of_the_same_encoder_and_have_captions(caches, tmp_path):
    place, data = FlowPlace(tmp_path), caches / "plain"
    other = f"bert:{write_encoder(tmp_path, 'bert')}"
    options = {"eval_data_path": caches / "encoded", "eval_steps": 2, "text_encoder": other}
    words = "cached with the held-out data"
    for length in (12, 8):
        refused(words, train, place, f"a{length}", data, text_length=length, **options)
    options |= {"text_encoder": f"t5:{caches / 't5'}", "eval_num_samples": 4}
    refused(f"another length .* {words[7:]}", train, place, "b", data, text_length=8, **options)
    train(place, "c", data, **options)  # the length is that of the cache
    bare = shutil.copytree(data, tmp_path / "bare")
    for path in bare.glob("*.jsonl"):
        lines = [json.loads(line) | {"caption": None} for line in path.open()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options["eval_data_path"] = bare
    refused("captions, which the held-out data does not have", train, place, "d", data, **options)
