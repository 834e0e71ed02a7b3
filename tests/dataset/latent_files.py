"""Caches of latents for tests, written by the format's own library."""

import json

import torch
from safetensors.torch import save_file

RECORD = {
    "version": 1,
    "complete": True,
    "plan": "0123",
    "vae": {"source": "WFVAE2Image:somewhere", "fingerprint": "f" * 64},
    "resolution": 32,
    "posterior": "sample",
    "flip": False,
    "class_names": [],
    "shift": [0.0, 0.0],
    "scale": [1.0, 1.0],
}


def write_cache(folder, shards, **facts):
    """Writes shards, each a dict of tensors (N, ...), and a record that fits them."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "latents" if facts.get("posterior") == "mode" else "moments"
    shape = list(shards[0][name].shape[1:])
    shape[0] //= 1 if name == "latents" else 2
    for i, tensors in enumerate(shards):
        metadata = {"latents": json.dumps({"plan": "0123"})}
        save_file(tensors, folder / f"latents-{i:05d}.safetensors", metadata)
        texts = [{"name": f"{i}/{row}.png", "caption": None} for row in range(len(tensors[name]))]
        lines = "".join(json.dumps(text) + "\n" for text in texts)
        (folder / f"latents-{i:05d}.jsonl").write_text(lines)
    counts = [len(tensors[name]) for tensors in shards]
    record = RECORD | {"latent_shape": shape, "samples": counts} | facts
    (folder / "latents.json").write_text(json.dumps(record))
    return folder


def numbered(first, count, channels=2, size=3, dtype=torch.float32, logvar=-30.0):
    """Moments of latents that are all equal to their number."""
    mean = torch.arange(first, first + count).float().view(-1, 1, 1, 1)
    mean = mean.expand(count, channels, size, size)
    return torch.cat([mean, torch.full_like(mean, logvar)], dim=1).to(dtype).contiguous()
