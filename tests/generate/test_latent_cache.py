import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.dataset.reading import read_by
from tests.refusals import refused
from wfimagevae.dataset import Captions, IndexedImages, Labels, LatentDataset, TrainLoader
from wfimagevae.dataset.images.transforms import resized_center_crop
from wfimagevae.dataset.protocol import to_signed_unit
from wfimagevae.engine.distributed import World
from wfimagevae.generate.autoencoders import Autoencoder
from wfimagevae.generate.latent_cache import LatentCache
from wfimagevae.generate.options import CacheOptions

CPU = torch.device("cpu")
SIZE = 8
PLAIN = {"shard_size": 3, "batch_size": 2, "latent_dtype": "fp32", "num_workers": 0}


@pytest.fixture
def folder(tmp_path):
    """Seven random images of different sizes in two classes."""
    rng = np.random.default_rng(0)
    for i in range(7):
        path = tmp_path / "images" / ("ab"[i % 2]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (10 + i, 20 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


class Averaging(Autoencoder):
    """Encodes 2 x 2 blocks as three averages; log-variance -1, -2, -3; counts its images."""

    def moments(self, images):
        self.network.seen += len(images)
        mean = torch.nn.functional.avg_pool2d(images, 2) * self.network.weight.flatten()
        return mean, torch.zeros_like(mean) - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)


class Picking(Averaging):
    """Encodes by every second pixel, without a posterior."""

    def moments(self, images):
        return images[..., ::2, ::2], None


class Overflowing(Averaging):
    def moments(self, images):
        return (images[..., ::2, ::2] * 1e9,) * 2


def autoencoder(kind=Averaging, multiple=2, **fields):
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1)
    network.seen = 0
    return kind(network, multiple, **fields)


def encode(folder, output, model=None, labels="folder", captions="none", text=None, **options):
    """The record, the unreadable images, and how many images were encoded."""
    model = model or autoencoder()
    images = IndexedImages(folder, SIZE, Labels(labels), Captions(captions))
    cache = LatentCache(model, "here", images, output, CacheOptions(**PLAIN | options), text)
    model.network.seen = 0  # the probe does not count
    return *cache.run(World(0, 1, CPU)), model.network.seen


def expected_means(folder):
    """Averages of each image's 2 x 2 blocks, in sorted order."""
    files = map(Image.open, sorted(folder.rglob("*.png")))
    pixels = np.stack([resized_center_crop(file, SIZE) for file in files])
    images = to_signed_unit(torch.from_numpy(pixels))
    return images.reshape(-1, 3, SIZE // 2, 2, SIZE // 2, 2).mean((3, 5))


def contents(output):
    return {path.name: path.read_bytes() for path in sorted(output.iterdir())}


def shards(output):
    return [load_file(path) for path in sorted(output.glob("*.safetensors"))]


def test_shards_hold_moments_labels_and_names(folder, tmp_path):
    record, unreadable, _ = encode(folder, tmp_path / "out", flip=True)
    parts, means = shards(tmp_path / "out"), expected_means(folder)
    moments, flipped, labels = (
        torch.cat([part[name] for part in parts])
        for name in ("moments", "moments_flipped", "labels")
    )
    torch.testing.assert_close(moments[:, :3], means)
    assert (moments[:, 3:] == torch.tensor([-1.0, -2.0, -3.0]).view(3, 1, 1)).all()
    torch.testing.assert_close(flipped[:, :3], means.flip(-1))
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    lines = (tmp_path / "out" / "latents-00001.jsonl").read_text().splitlines()
    names = ["a/6.png", "b/1.png", "b/3.png"]
    assert [json.loads(line) for line in lines] == [{"name": n, "caption": None} for n in names]
    assert unreadable == [] and record["samples"] == [3, 3, 1]
    assert record["latent_shape"] == [3, 4, 4] and record["class_names"] == ["a", "b"]
    assert record["vae"]["source"] == "here" and record["resolution"] == SIZE


def test_statistics_are_those_of_posterior_samples_and_normalise(folder, tmp_path):
    record, *_ = encode(folder, tmp_path / "out")
    means = expected_means(folder).double()
    mean, std = (torch.tensor(record[name]).double() for name in ("mean", "std"))
    torch.testing.assert_close(mean, means.mean((0, 2, 3)), atol=1e-6, rtol=0)
    variance = means.var((0, 2, 3), correction=0) + torch.tensor([-1.0, -2, -3]).double().exp()
    torch.testing.assert_close(std, variance.sqrt())
    assert record["normalization"] == "statistics" and record["shift"] == record["mean"]
    dataset = LatentDataset(tmp_path / "out")
    loader = TrainLoader(dataset, batch_size=1400, options=read_by(0))  # 200 draws of each image
    latents = next(loader)["latent"]
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(3), atol=0.03, rtol=0)


def test_the_models_own_normalisation_comes_first_unless_told(folder, tmp_path):
    model = autoencoder(normalization=([0.5], [0.25]))
    record, *_ = encode(folder, tmp_path / "out", model)
    assert record["normalization"] == "vae"
    assert (record["shift"], record["scale"]) == ([0.5] * 3, [0.25] * 3)
    again, _, seen = encode(folder, tmp_path / "out", model, normalization="statistics")
    assert again["shift"] == again["mean"] == record["mean"] and seen == 0
    refused("has no shift and scale", encode, folder, tmp_path / "other", normalization="vae")


def test_mode_stores_means_alone(folder, tmp_path):
    model = autoencoder(Picking)
    refused("no posterior to sample: use --posterior mode", encode, folder, tmp_path / "out", model)
    encode(folder, tmp_path / "out", model, posterior="mode", latent_dtype="fp16")
    shard, *_ = shards(tmp_path / "out")
    assert set(shard) == {"latents", "labels"}
    assert shard["latents"].shape == (3, 3, 4, 4) and shard["latents"].dtype == torch.float16
    assert LatentDataset(tmp_path / "out").read_batch([0])["latent"].shape == (1, 3, 4, 4)


@pytest.mark.parametrize("damage", ["gone", "truncated", "no names"])
def test_what_is_missing_or_cut_short_is_encoded_again(folder, tmp_path, damage, caplog):
    output = tmp_path / "out"
    encode(folder, output)
    before = contents(output)
    shard = output / "latents-00001.safetensors"
    if damage == "gone":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-7])
    else:
        shard.with_suffix(".jsonl").unlink()
    (output / ".latents-00001.safetensors.abc.tmp").write_bytes(b"half")
    *_, seen = encode(folder, output)
    assert seen == 3 and contents(output) == before
    assert ("truncated" in caplog.text) == (damage == "truncated")


def test_unreadable_images_are_left_out_and_counted_and_all_are_an_error(folder, tmp_path):
    (folder / "a" / "2.png").write_bytes(b"nothing")
    record, unreadable, _ = encode(folder, tmp_path / "out")
    assert [(path.rsplit("/", 1)[-1]) for path, _ in unreadable] == ["2.png"]
    assert (record["num_samples"], record["num_unreadable"]) == (6, 1)
    assert record["samples"] == [2, 3, 1]
    again, unreadable, _ = encode(folder, tmp_path / "out")
    assert again == record and unreadable == []
    names = [text["name"] for text in LatentDataset(tmp_path / "out").texts(0)]
    assert names == ["a/0.png", "a/4.png"]
    for name in ("a/0.png", "a/4.png"):  # of a whole shard
        (folder / name).write_bytes(b"")
    record, *_ = encode(folder, tmp_path / "empty")
    assert record["samples"] == [0, 3, 1] and len(LatentDataset(tmp_path / "empty")) == 4
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    refused("no image could be encoded", encode, folder, tmp_path / "none")


def test_another_cache_in_the_folder_is_refused(folder, tmp_path):
    encode(folder, tmp_path / "out")
    other = autoencoder()
    other.network.weight.data += 1
    for words, model, change in (
        ("posterior", None, {"posterior": "mode"}),
        ("flip, dtype", None, {"flip": True, "latent_dtype": "fp16"}),
        ("images, class_names", None, {"labels": "none"}),
        ("vae", other, {}),
    ):
        words = f"made with other {words}: give"
        refused(words, encode, folder, tmp_path / "out", model, **change)
    (folder / "a" / "0.png").unlink()
    refused("made with other images", encode, folder, tmp_path / "out")
    (tmp_path / "new").mkdir()
    save_file({"moments": torch.zeros(1)}, tmp_path / "new" / "latents-00000.safetensors")
    refused(r"00000\.safetensors belongs to another cache", encode, folder, tmp_path / "new")


def test_what_cannot_be_encoded_is_refused(folder, tmp_path):
    for words, model in (
        ("resolution 8 is no multiple of 16, which here needs", autoencoder(multiple=16)),
        (r"latents of a/0\.png are not finite, .* as fp16", autoencoder(Overflowing)),
    ):
        refused(words, encode, folder, tmp_path / "out", model, latent_dtype="fp16")
    refused("needs captions", encode, folder, tmp_path / "out", text=object())


def test_captions_and_labels_of_a_manifest_are_kept(folder, tmp_path):
    lines = [{"path": "b/1.png", "label": "tree", "caption": "an old tree"}]
    lines += [{"path": "a/0.png", "label": "dog"}]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    kinds = {"labels": "manifest", "captions": "manifest"}
    encode(folder / "list.jsonl", tmp_path / "out", **kinds)
    dataset = LatentDataset(tmp_path / "out")
    assert dataset.texts(0) == [
        {"name": "a/0.png", "caption": None},
        {"name": "b/1.png", "caption": "an old tree"},
    ]
    assert dataset.class_names == ["dog", "tree"]
    assert shards(tmp_path / "out")[0]["labels"].tolist() == [0, 1]
    (folder / "list.jsonl").write_text(json.dumps(lines[0] | {"caption": 3}))
    words = "none of 1 images has a caption"
    refused(words, encode, folder / "list.jsonl", tmp_path / "out", **kinds)
