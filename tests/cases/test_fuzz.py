"""Files that broke, or that somebody broke: an error that names them, and no traceback or hang.

Each kind of file is read by what commands read it with; every input is made from the seed alone.
"""

import contextlib
import functools
import io
import json
import random
import signal

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from tests.dataset.latent_files import numbered, write_cache
from tests.dataset.shard_files import as_json, open_set, png, write_tar
from tests.images import TINY_MODEL, smooth_image
from wfimagevae.command_line import parse
from wfimagevae.dataset import LatentDataset, TrainImageDataset
from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb
from wfimagevae.dataset.images.image_sets import ImageParts, open_folder
from wfimagevae.dataset.images.labels import Labels
from wfimagevae.dataset.options import StreamOptions, VaeDataOptions
from wfimagevae.dataset.text.captions import Captions
from wfimagevae.dataset.text.filters import filtered
from wfimagevae.engine.checkpoint import read_checkpoint
from wfimagevae.model import WFVAE2ImageModel
from wfimagevae.options import option
from wfimagevae.pipeline.checks import load_pipeline

SEED, INPUTS, SECONDS = 1234, 200, 5
# What stands in place of a value, or is put between bytes.
ODD = [None, True, -1, 0, 1e999, float("nan"), 10**30, 1.5, "", "\0", "\ud800", "0x1F", "x" * 9999]
ODD += [[], {}, [None], {"a": 1}, [[[]]], "../..", "pipe:false", "::"]
BYTES = [b"\0", b"\xff", b"\xff\xfe", b"[" * 5000, b"{", b'"', b"\n", b"\t", b"- ", b": ", b"&a "]
BYTES += [b"*a", b"<<: ", b"!!int ", b"1" * 5000, b"1e999", b"\xe9", b"null", b"? ", b"\\u0000"]


def rotted(content, rng):
    """Bytes of which a few changed, came, went, or all from some place on."""
    for _ in range(rng.choice((1, 1, 1, 8))):
        at, size = rng.randrange(len(content) + 1), rng.choice((1, 4, 64, 512))
        content = (
            content[:at],
            content[:at] + content[at + size :],
            content[:at] + rng.choice(BYTES) + content[at:],
            content[:at] + rng.randbytes(size) + content[at + size :],
            content[:at] + bytes(size) + content[at + size :],
            content[: at + size] + content[at:],
        )[rng.randrange(6)]
    return content


def odd(value, rng):
    """A copy of which one value, anywhere, is another one, or missing."""
    if not isinstance(value, list | dict) or not value or rng.random() < 0.15:
        return rng.choice(ODD)
    value = value.copy()
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if rng.random() < 0.2:
        del value[key]
    else:
        value[key] = odd(value[key], rng)
    return value


def broken(value, rng, dump=json.dumps):
    """The bytes of a structure that is odd, or whose bytes are rotten."""
    if rng.random() < 0.5:
        return dump(odd(value, rng)).encode("utf-8", "surrogatepass")
    return rotted(dump(value).encode(), rng)


def images(folder, rng):
    kind = rng.choice(("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"))
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    Image.fromarray(smooth_image(40, 48, 1)).save(file, kind, exif=exif)
    path = folder / "images" / "bad.png"
    path.write_bytes(rotted(file.getvalue(), rng))
    for batch in (TrainImageDataset(path.parent, 16).read_batch(range(4)),):
        assert all(str(path) == bad and reason for bad, reason in batch["unreadable"])


def manifests(folder, rng):
    path, good = folder / "list.jsonl", {"image_path": "a.png", "caption": ["x", "y"], "label": "b"}
    good |= {"similarity": 0.5, "nsfw": False, "language": "en"}
    lines = [json.dumps(good).encode(), broken(good, rng), json.dumps(good).encode()]
    path.write_bytes(b"\n".join(lines))
    wanted = ImageParts(Labels("manifest"), Captions("manifest"), records=True)
    options = StreamOptions(min_similarity=0.1, skip_nsfw=True, languages=["en"], skip_words="zz")
    filtered(open_folder(path, wanted), options, str(path))


PIPELINE = """\
model: {vae: {config: {latent_dim: 4}}, flow: {name: FlowDiT-S/2}, text_encoder: bytes}
data: {data_path: ., img_size: 32}
training:
  batch_size: 2
  lr: 1.0e-3
  options: {eval_steps: 0, disc_num_layers: 1}
  pipeline:
    defaults: &shared {kl_beta: 1.0e-4}
    datasets: {near: {image_folder: ., fixed_prompt_prefix: a}}
    steps:
      - {<<: *shared, name: warmup, steps: 5, train_vae: true}
      - name: gan
        n_epochs: 6
        gan_training: true
        train_vae: decoder
        optimization: {optimizers: {discriminator: {type: AdamW, lr: 1e-4, betas: [0.5, 0.9]}}}
        transition_on: {mode: loss_threshold, metric: vae_loss, threshold: 1, max_epochs: 2}
      - {name: flow, steps: 6, train_diff: true, cfg_dropout_prob: 0.2, dataset: near}
output: {sample_captions: [a red cloud], sample_sizes: [64, [32, 64]]}
"""
CONTENT = yaml.safe_load(PIPELINE)


def pipelines(folder, rng):
    path = folder / "pipeline.yaml"
    is_odd = rng.random() < 0.5
    text = yaml.safe_dump(odd(CONTENT, rng), allow_unicode=True) if is_odd else ""
    content = text.encode("utf-8", "surrogatepass") or rotted(PIPELINE.encode(), rng)
    path.write_bytes(content)
    load_pipeline(path)


class Flags(VaeDataOptions, StreamOptions):
    """flags"""

    config: str | None = option(None, "YAML file")


def configs_of_flags(folder, rng):
    path = folder / "flags.yaml"
    good = {"image_path": ["a", "b"], "resolution": 64, "data_weights": [0.5, 1], "skip_nsfw": True}
    path.write_bytes(broken(good, rng, yaml.safe_dump))
    try:
        parse(Flags, ["--config", str(path)])
    except SystemExit as end:
        assert end.code == 2
        raise ValueError(f"{path}") from None  # the message is on the terminal


def shards(folder, rng):
    members = {}
    for i in range(3):
        members |= {f"{i}.png": png(i), f"{i}.txt": b"a\nb", f"{i}.cls": b"1"}
        members |= {f"{i}.json": as_json(prompt=["x"], label="a")}
    name = rng.choice(list(members))
    if rng.random() < 0.5:
        members[name] = rotted(members[name], rng)
    write_tar(folder / "s.tar", members)
    if rng.random() < 0.5:
        (folder / "s.tar").write_bytes(rotted((folder / "s.tar").read_bytes(), rng))
    for keys in ({}, {"caption_key": "json:prompt", "label_key": "json:label"}):
        found = open_set(str(folder / "s.tar"), True, True, True, index_cache_dir=folder, **keys)
        for i in range(len(found)):
            with contextlib.suppress(UnreadableImage):  # the loader counts and names it
                open_rgb(found.images.file(i))


def caches(folder, rng):
    tensors = {"moments": numbered(0, 3), "labels": torch.arange(3)}
    tensors |= {"text_tokens": torch.ones(3, 2, 3).half(), "text_mask": torch.ones(3, 2).bool()}
    tensors |= {"text_pooled": torch.ones(3, 3).half(), "text_ends": torch.arange(1, 4)}
    text = {"kind": "t5", "source": "x", "length": 2, "fingerprint": "f" * 64}
    text |= {"config_keys": {"text_length": 2, "text_width": 3, "pooled_width": 3}}
    write_cache(folder, [tensors], class_names=["a", "b", "c"], text=text)
    lines = [{"name": "a.png", "caption": "x"}] * 3
    (folder / "latents-00000.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    path = folder / rng.choice(("latents.json", "latents-00000.jsonl", "latents-00000.safetensors"))
    if path.suffix == ".json":
        path.write_bytes(broken(json.loads(path.read_bytes()), rng))
    elif path.suffix == ".jsonl":
        path.write_bytes(b"\n".join([broken(lines[0], rng), *path.read_bytes().split(b"\n")[1:]]))
    else:
        path.write_bytes(rotted(path.read_bytes(), rng))
    LatentDataset(folder, text="embeddings").read_batch(range(6))


def captions(folder, rng):
    path = folder / "list.tsv"
    path.write_bytes(rotted("images/good\tun café\nb\ttwo\n".encode() * 4, rng))
    (folder / "images" / "good.txt").write_bytes(rotted("un café\ntwo\n".encode() * 9, rng))
    for kind in ("sidecar", str(path)):
        try:
            open_folder(folder / "images", ImageParts(captions=Captions(kind)))
        except ValueError as error:
            assert "none of 1 images" in str(error) or path.name in str(error)


@functools.cache
def content_of_checkpoint():
    """What a training of a tiny autoencoder saves, about."""
    state = WFVAE2ImageModel.from_config(TINY_MODEL).state_dict()
    weights = {key: value.contiguous() for key, value in state.items()}
    facts = {"step": 3, "epoch": 1, "rng": [1, 2], "config": TINY_MODEL}
    return {"state_dict": {"gen_model": weights}, "ema_state_dict": dict(weights)} | facts


def checkpoints(folder, rng):
    path, file = folder / "checkpoint-3.ckpt", io.BytesIO()
    content = content_of_checkpoint()
    is_odd = rng.random() < 0.3
    torch.save(odd(content, rng) if is_odd else content, file)
    path.write_bytes(file.getvalue() if is_odd else rotted(file.getvalue(), rng))
    try:
        read_checkpoint(path)
    finally:
        WFVAE2ImageModel.from_pretrained(path)


def safetensors_of_models(folder, rng):
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = content_of_checkpoint()["ema_state_dict"]
    if rng.random() < 0.2 and isinstance(found := odd(weights, rng), dict):
        weights = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)}
    (folder / "config.json").write_text(json.dumps(TINY_MODEL))
    content = save(weights)
    head = int.from_bytes(content[:8], "little") + 8  # where most that can break is
    cut = head if rng.random() < 0.7 else len(content)
    path.write_bytes(rotted(content[:cut], rng) + content[cut:])
    WFVAE2ImageModel.from_pretrained(folder)


def configs_of_models(folder, rng):
    path = folder / "config.json"
    path.write_bytes(broken(TINY_MODEL | {"spade": False}, rng))
    with torch.device("meta"):
        WFVAE2ImageModel.from_config(path)


KINDS = [images, manifests, pipelines, configs_of_flags, shards, caches, captions, checkpoints]
KINDS += [safetensors_of_models, configs_of_models]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_broken_is_read_or_named(tmp_path, monkeypatch, kind):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "good.png").write_bytes(png(9, 40, 40))
    monkeypatch.chdir(tmp_path / "images")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(INPUTS):
        signal.alarm(SECONDS)  # without a handler, it ends the process
        try:
            kind(tmp_path, random.Random(f"{SEED} {kind.__name__} {number}"))
        except (ValueError, OSError) as error:
            # The folder that was given, or the file that is broken.
            names = [f"{tmp_path}: ", *(p.name for p in tmp_path.iterdir() if p.is_file())]
            assert any(name in str(error) for name in names), (number, repr(error)[:2000])
        finally:
            signal.alarm(0)
