"""Embeddings of captions beside latents."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.dataset.conftest import draw
from tests.dataset.latent_files import numbered, write_cache
from tests.dataset.reading import read_by
from tests.refusals import refused
from wfimagevae.dataset import DataError, LatentDataset, TrainLoader
from wfimagevae.dataset.latents.record import compact, text_tensors

LENGTH, WIDTH = 6, 4
ENCODER = {"kind": "t5", "source": "here", "length": LENGTH, "fingerprint": "a" * 64}
KEYS = {"text_length": LENGTH, "text_width": WIDTH, "pooled_width": 3}
RECORD = ENCODER | {"config_keys": KEYS}
CAPTIONS = ["1", ["20", "200", "2000"], None, "30", None]


def embedding(texts):
    """A caption is a number; it has as many tokens as digits, and both are made of it."""
    mask = torch.tensor([[i < len(text) for i in range(LENGTH)] for text in texts])
    values = torch.tensor([float(text) for text in texts])
    tokens = values.view(-1, 1, 1).expand(-1, LENGTH, WIDTH) * mask[..., None]
    return {"tokens": tokens, "mask": mask, "pooled": values[:, None].repeat(1, 3)}


@pytest.fixture
def cache(tmp_path):
    """Latents 0 to 4 in two shards, with the captions above."""
    shards = []
    nothing = {name: value[:0] for name, value in embedding(["0"]).items()}
    for first, rows in ((0, CAPTIONS[:2]), (2, CAPTIONS[2:])):
        captions = [c if isinstance(c, list) else [c] * (c is not None) for c in rows]
        parts = [nothing, *(embedding([text]) for texts in captions for text in texts)]
        tensors = text_tensors([compact(part) for part in parts], [len(c) for c in captions])
        shards.append({"moments": numbered(first, len(rows))} | tensors)
    folder = write_cache(tmp_path / "cache", shards, text=RECORD)
    for i, rows in enumerate((CAPTIONS[:2], CAPTIONS[2:])):
        lines = [json.dumps({"name": "x.png", "caption": caption}) for caption in rows]
        (folder / f"latents-{i:05d}.jsonl").write_text("\n".join(lines))
    return folder


def test_embeddings_are_those_of_the_caption_that_stands_beside_them(cache):
    dataset = LatentDataset(cache, text="embeddings")
    batch = dataset.read_batch(list(range(50)))
    assert batch["tokens"].shape == (50, LENGTH, WIDTH) and batch["tokens"].dtype == torch.float16
    seen = set()
    for row, caption in enumerate(batch["caption"]):
        latent = round(batch["latent"][row, 0, 0, 0].item())
        known = CAPTIONS[latent]
        assert caption in (known or "")
        expected = embedding([caption or "0"])
        if not caption:
            expected = {name: torch.zeros_like(value) for name, value in expected.items()}
        for name, value in expected.items():
            assert torch.equal(batch[name][row].float(), value[0].float())
        seen.add(caption)
    assert seen == {"1", "20", "200", "2000", "30", ""}


def test_a_shard_is_as_wide_as_its_longest_caption(cache):
    shards = [load_file(path) for path in sorted(cache.glob("*.safetensors"))]
    assert [s["text_tokens"].shape for s in shards] == [(4, 4, WIDTH), (1, 2, WIDTH)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_embeddings_reach_the_objective_as_float32(cache, num_workers):
    dataset = LatentDataset(cache, text="embeddings")
    (batch,) = draw(TrainLoader(dataset, 5, read_by(num_workers)))
    assert batch["tokens"].dtype == batch["pooled"].dtype == torch.float32
    assert batch["mask"].dtype == torch.bool and len(batch["caption"]) == 5
    digits = torch.tensor([len(caption) for caption in batch["caption"]])
    assert torch.equal(batch["mask"].sum(1), digits)


def test_captions_alone_are_read_without_their_embeddings(cache):
    dataset = LatentDataset(cache, prefix="no.")
    batch = dataset.read_batch([0, 1, 2, 3, 4])
    assert "tokens" not in batch and dataset.has_captions and dataset.text_facts is None
    without = LatentDataset(cache, text="none")
    assert not without.has_captions and without.read_batch([0]).keys() == {"latent"}
    assert sorted(batch["caption"])[2:] in (
        ["no.. 1", f"no.. {n}", "no.. 30"] for n in (20, 200, 2000)
    )


def test_what_does_not_fit_is_refused(cache, tmp_path):
    words = {"text": "embeddings", "error": DataError}
    refused("leave out the prefix 'x'", LatentDataset, cache, prefix="x", **words)
    other = write_cache(tmp_path / "other", [{"moments": numbered(0, 2)}], prefix="oil")
    refused("begin with 'oil' already", LatentDataset, other, error=DataError, prefix="x")
    refused("holds no embeddings", LatentDataset, other, **words)
    like = LatentDataset(cache).record
    moved = {"text": like["text"] | {"source": "there"}}
    LatentDataset(cache, like=like | moved, text="embeddings")
    changed = {"text": like["text"] | {"fingerprint": "b" * 64}}
    message = r"has text encoder .*aaaa.*, the training latents .*bbbb.*: encode both alike"
    refused(message, LatentDataset, cache, like=like | changed, **words)
    (cache / "latents-00001.jsonl").write_text("")
    refused(r"00001\.jsonl has .* of 0 samples, its shard 3", LatentDataset, cache, error=DataError)
    part = embedding(["1"])
    refused("beyond the range of float16", compact, part | {"pooled": part["pooled"] * 1e6})
