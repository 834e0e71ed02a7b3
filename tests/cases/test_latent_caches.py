"""Damaged caches of latents: each message names the file, and no process dies."""

import json
import multiprocessing
import os

import pytest
import torch
from safetensors.torch import save_file

from tests.dataset.latent_files import numbered, write_cache
from tests.refusals import refused
from wfimagevae.dataset import LatentDataset

TEXT = {"kind": "t5", "source": "x", "length": 2, "fingerprint": "f" * 64}
KEYS = {"text_length": 2, "text_width": 3, "pooled_width": 3}
RECORDS = [
    ({"samples": [4, -3]}, r"samples\.1: "),
    ({"samples": "4"}, "samples: "),
    ({"samples": []}, "samples: "),
    ({"shift": [0.0, None]}, r"shift\.1: .* got None"),
    ({"scale": [1.0, float("nan")]}, r"scale\.1: .*finite"),
    ({"shift": [0.0]}, "shift: 1 numbers, expected one a channel, 2"),
    ({"vae": "x"}, "vae: "),
    ({"vae": {"source": "x"}}, r"vae\.fingerprint: Field required"),
    ({"latent_shape": [2, 3]}, "latent_shape: "),
    ({"flip": "no"}, "flip: "),
    ({"posterior": "mean"}, "posterior: "),
    ({"class_names": {"a": 1}}, "class_names: "),
    ({"prefix": 3}, "prefix: "),
    ({"text": TEXT}, r"text\.config_keys: Field required"),
]
LINES = [
    (b'{"name": "a.png", "caption": nul', "not a line of JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b'["a.png"]', "expected"),
    (b'{"name": "a.png"}', "expected"),
    (b'{"name": "a.png", "caption": 5}', "expected"),
    (b'{"name": "a.png", "caption": ["a", null]}', "expected"),
    (b'{"name": 5, "caption": null}', "expected"),
    (b'{"name": "\xe9", "caption": null}', "not UTF-8"),
]


@pytest.fixture
def cache(tmp_path):
    """Seven latents in two shards."""
    return write_cache(tmp_path, [{"moments": numbered(0, 4)}, {"moments": numbered(4, 3)}])


def test_what_a_record_and_lines_of_names_cannot_be_is_named(cache):
    """openai/evals #259: a message of JSON alone tells neither file nor line."""
    path = cache / "latents.json"
    record = json.loads(path.read_text())
    for changes, message in RECORDS:
        path.write_text(json.dumps(record | changes))
        refused(f"latents.json: {message}", LatentDataset, cache)
    path.write_text("[" * 100_000)
    refused("latents.json is not JSON: nested too deeply", LatentDataset, cache)
    path.write_text(json.dumps(record))
    path, good = cache / "latents-00001.jsonl", b'{"name": "a.png", "caption": null}\n'
    for line, message in LINES:
        path.write_bytes(good + line + b"\n" + good)
        refused(rf"latents-00001.jsonl:2: .*{message}", LatentDataset, cache)


def test_what_a_shard_lacks_is_named(cache):
    """Tensors that are missing, of another type or length, or say nothing that can be read."""
    path = cache / "latents-00001.safetensors"
    moments, about = numbered(4, 3), {"latents": '{"plan": "0123"}'}
    for tensors, metadata, message in (
        ({"moments": moments}, {"latents": "{"}, "is no shard of latents"),
        ({"moments": moments}, {"latents": "[1]"}, "is no shard of latents"),
        ({"moments": moments.to(torch.int8)}, about, "is no shard of latents"),
        ({"moments": moments[:2]}, about, "moments has shape"),
        ({"moments": moments}, about, "labels are None, expected 3 numbers"),
        ({"moments": moments, "labels": torch.zeros(2).long()}, about, "expected 3 numbers"),
        ({"moments": moments, "labels": torch.zeros(3)}, about, "expected 3 numbers"),
    ):
        record = json.loads((cache / "latents.json").read_text()) | {"class_names": ["a"]}
        (cache / "latents.json").write_text(json.dumps(record))
        first = {"moments": numbered(0, 4), "labels": torch.zeros(4).long()}
        save_file(first, cache / "latents-00000.safetensors", about)
        save_file(tensors, path, metadata)
        refused(rf"latents-00001.safetensors.* {message}", LatentDataset, cache)


def _read_while_cut(cache):
    """Ends with status 0 where only errors that name the shard come, and some do."""
    path, named = cache / "latents-00000.safetensors", 0
    dataset, whole = LatentDataset(cache), path.read_bytes()
    child = os.fork()
    while child == 0:
        os.truncate(path, 5000)
        with open(path, "r+b") as file:
            file.write(whole)
    try:
        for _ in range(3000):
            try:
                dataset.read_batch(range(8))
            except ValueError as error:
                assert f"{path} was cut short since training started" in str(error)
                named += 1
    finally:
        os.kill(child, 9)
    assert named


def test_a_shard_that_is_cut_at_any_moment_kills_no_process(tmp_path):
    """NVIDIA/TensorRT-LLM #17368: what reads a memory map gets a signal, no error."""
    cache = write_cache(tmp_path, [{"moments": numbered(0, 64, size=64)}])
    process = multiprocessing.get_context("fork").Process(target=_read_while_cut, args=(cache,))
    process.start()
    process.join()
    assert process.exitcode == 0
