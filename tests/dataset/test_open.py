import json
import pickle
from collections import Counter

import pytest
import torch

from tests.dataset.reading import read_by
from tests.dataset.shard_files import as_json, png, write_shards, written_shards
from tests.refusals import refused
from wfimagevae.dataset import Mixture, TrainImageDataset, TrainLoader
from wfimagevae.dataset.images.decode import open_rgb
from wfimagevae.dataset.open import build_image_data, open_images
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.flow_space import build_datasets
from wfimagevae.task.vae_options import VaeOptions
from wfimagevae.task.vae_validation import open_held_out


@pytest.fixture
def options(tmp_path):
    """Maker of a flow's options: defaults, but for those given."""

    def make(task="flow", **changes):
        values = {"resolution": 8, "train_crop": "native", "batch_size": 2}
        values |= {"index_cache_dir": str(tmp_path / "index")} | changes
        return VaeOptions(image_path=["x"], **values) if task == "vae" else FlowOptions(**values)

    return make


@pytest.fixture
def build(options):
    """Maker of training data."""

    def make(sources, task="flow", **flags):
        sources = [sources] if isinstance(sources, str) else sources
        return build_image_data(options(task, **flags), sources)

    return make


@pytest.fixture
def folder(tmp_path):
    """Maker of a folder of images whose gray values count up from a first one."""

    def make(name, count, first=0, size=(12, 12)):
        (tmp_path / name).mkdir()
        for i in range(first, first + count):
            (tmp_path / name / f"{i:03d}.png").write_bytes(png(3 * i + 1, *size))
        return str(tmp_path / name)

    return make


@pytest.fixture
def shards(tmp_path):
    """Maker of shards, by `write_shards`; their folder."""

    def make(counts, sample=None, name="shards"):
        write_shards(tmp_path / name, counts, sample)
        return str(tmp_path / name)

    return make


@pytest.fixture
def listed(tmp_path):
    """Maker of a file of JSON lines."""

    def make(*rows):
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return str(tmp_path / "list.jsonl")

    return make


def numbers(dataset, count):
    pixels = dataset.read_batch(list(range(count)))["pixels"]
    return [(int(value) - 1) // 3 for value in pixels[:, 0, 0, 0]]


def captions(dataset):
    """The caption under which each image is shown, by its number."""
    count = len(dataset)
    shown = dataset.read_batch(list(range(count)))["caption"]
    return dict(zip(numbers(dataset, count), shown, strict=True))


def test_plain_folder_gives_the_samples_that_it_always_gave(build, folder):
    path = folder("images", 5)
    built, plain = build([path]), TrainImageDataset(path, 8, seed=1234)
    for position in (0, 3, 11):
        ours, theirs = built.read_batch([position]), plain.read_batch([position])
        assert torch.equal(ours["pixels"], theirs["pixels"])
    assert "order" not in TrainLoader(built, 2, read_by(0)).state_dict()


def test_shards_without_weights_are_one_set_shuffled_together(build, tmp_path):
    paths = [str(path) for path in write_shards(tmp_path / "shards", [4, 3, 5])]
    together = build(paths)
    assert sorted(numbers(together, 12)) == list(range(12))
    spec = build(str(tmp_path / "shards" / "s-{000..002}.tar"))
    assert numbers(together, 24) == numbers(spec, 24)


def test_folders_and_shards_share_a_run_by_size_or_by_weight(build, folder, shards):
    sources = [folder("images", 3, first=20), shards([4, 2])]
    by_size = build(sources)
    assert isinstance(by_size, Mixture)
    assert sorted(numbers(by_size, 9)) == [0, 1, 2, 3, 4, 5, 20, 21, 22]
    weighted = build(sources, data_weights=[3.0, 1.0])
    shown = Counter(number >= 20 for number in numbers(weighted, 400))
    assert shown == {True: 300, False: 100}
    refused("2 paths, 1 weights", build, sources, data_weights=[1.0])


def test_filters_and_keys_reach_the_data(build, shards, caplog):
    caplog.set_level("INFO", "wfimagevae")

    def sample(i):
        fields = as_json(similarity=i / 10, t="ab"[i % 2])
        return {"png": None, "pic.png": png(3 * i + 1), "meta.json": fields}

    keys = {"wds_image_key": "pic.png", "wds_json_key": "meta.json"}
    flags = keys | {"min_similarity": 0.25, "skip_words": "caption 6,caption 7"}
    classes = {"wds_label_key": "meta.json:t", "labels": "manifest", "text_encoder": "bytes"}
    path = shards([4, 4], sample)
    data = build(path, **flags, **classes)
    shown = numbers(data, 3)
    assert sorted(shown) == [3, 4, 5] and data.class_names == ["a", "b"] and data.has_captions
    assert captions(data) == {n: f"caption {n}" for n in shown}
    assert data.read_batch([0, 1, 2])["label"].tolist() == [n % 2 for n in shown]
    assert "left out 5 of 8 images: 3 by min_similarity, 2 by skip_words" in caplog.text
    # An autoencoder reads captions for the filter alone.
    data = build(path, "vae", train_crop="resized", **flags)
    assert sorted(numbers(data, 3)) == [3, 4, 5]
    assert set(data.read_batch([0])) == {"pixels", "unreadable"}
    message = "no image of .* has a field similarity"
    refused(message, build, path, "vae", **flags | {"wds_json_key": "meta"})


def test_held_out_data_have_the_classes_of_training_and_one_size(options, shards):
    def sample(i):
        return {"png": png(3 * i + 1, 12, 24), "cls": str(i % 3)}

    chosen = options(labels="folder", aspect_buckets=4, data_weights=[1.0])
    train = build_image_data(chosen, [shards([6], sample)])
    held_out = build_image_data(chosen, [shards([2], sample, "eval")], train)  # without class 2
    assert held_out.class_names == ["0", "1", "2"]
    assert train.read_batch([0, 1])["pixels"].shape[1:3] == (12, 4)
    pixels = held_out.read_batch([0, 1, 2])["pixels"]
    assert pixels.shape[1:3] == (8, 8)
    assert torch.equal(pixels, held_out.read_batch([0, 1, 2])["pixels"])


def test_mixed_buckets_deal_whole_batches_of_one_set(build, folder):
    sources = [folder("wide", 5, size=(24, 12)), folder("square", 4, first=30)]
    flags = {"aspect_buckets": 4, "data_weights": [1.0, 2.0]}
    loader = TrainLoader(build(sources, **flags), 2, read_by(2))
    sizes = Counter(tuple(next(loader)["image"].shape[2:]) for _ in range(30))
    state = loader.state_dict()
    loader.close()
    assert sizes == {(4, 12): 10, (8, 8): 20}
    other = TrainLoader(build(sources, batch_size=4, **flags), 4, read_by(0))
    refused("batch_size was 2, is 4", other.load_state_dict, state)


def test_options_that_cannot_be_met_are_errors(options, build, shards):
    shapes = options(dataset="shapes", aspect_buckets=8)
    refused("--aspect_buckets is for --dataset images", build_datasets, shapes)
    sources = [shards([3])]
    for flag, message in (
        ({"reduced_min_sizes": [4]}, "--train_crop native never does"),
        ({"use_manifest": True}, "is no file; drop the flag"),
        ({"aspect_buckets": 4, "min_image_size": 99}, "leave none of 3 images"),
        ({"wds_image_key": "tif"}, "set --wds_image_key"),
        ({"wds_shuffle_shards": 0}, "wds_shuffle_shards: 0 is not a whole number of at least 1"),
        ({"wds_cache_gb": float("nan")}, "wds_cache_gb: nan is not a number of at least 0"),
        ({"max_aspect_ratio": 0.5}, r"at least 1, or 0 for any, got 0.5"),
        ({"min_image_size": -3}, "min_image_size: -3 is not a whole number of at least 0"),
    ):
        refused(message, build, sources, "vae", **flag)


def test_data_travel_to_workers_that_are_not_forked(build, folder):
    buckets = {"aspect_buckets": 4, "train_crop": "resized", "reduced_min_sizes": [4]}
    data = build([folder("a", 4), folder("b", 3)], **buckets)
    copy = pickle.loads(pickle.dumps(data))
    for block in range(5):
        positions = [2 * block, 2 * block + 1]
        ours, theirs = data.read_batch(positions), copy.read_batch(positions)
        assert torch.equal(ours["pixels"], theirs["pixels"])


def test_images_to_validate_on_come_from_all_sources_in_order(options, folder, shards, tmp_path):
    sources = open_images(options("vae"), [folder("images", 2, first=7), shards([2, 1])])
    files = [source.file(i) for source in sources for i in range(len(source))]
    assert [(open_rgb(f).getpixel((0, 0))[0] - 1) // 3 for f in files] == [7, 8, 0, 1, 2]
    assert sources[0].relative(0) == "007.png" and sources[1].relative(2) == "s-001/00002.png"
    flags = {"eval_image_path": [str(tmp_path / name) for name in ("images", "shards")]}
    flags |= {"eval_resolution": 8, "eval_crop_size": 8, "eval_subset_size": 3}
    some = open_held_out(options("vae", **flags))
    shown = [round((float(sample["image"].mean() + 1) * 127.5 - 1) / 3) for sample in some]
    assert shown == [7, 8, 1]  # evenly spaced over all


# Classes


def test_classes_of_written_shards_are_known_by_name(options, tmp_path, shards):
    grays = {"ant": 10, "bee": 100, "cat": 200}

    def class_folders(home, *names):
        for name in names:
            (tmp_path / home / name).mkdir(parents=True)
            for i in range(2):
                (tmp_path / home / name / f"{i}.png").write_bytes(png(grays[name] + i))
        return str(tmp_path / home)

    def shown(dataset):
        """Class names by the gray values that are shown under them."""
        batch = dataset.read_batch(list(range(len(dataset))))
        values = [int(value) // 10 * 10 for value in batch["pixels"][:, 0, 0, 0]]
        return set(zip([dataset.class_names[i] for i in batch["label"]], values, strict=True))

    train = class_folders("train", "ant", "bee", "cat")
    few = class_folders("few", "ant", "cat")  # their numbers are 0 and 1
    train_shards = written_shards(train, tmp_path / "train_shards", labels="folder")
    few_shards = written_shards(few, tmp_path / "few_shards", labels="folder")
    chosen = options(labels="folder")
    for source in (train, train_shards):
        data = build_image_data(chosen, [source])
        held_out = build_image_data(chosen, [few_shards], data)
        assert data.class_names == held_out.class_names == ["ant", "bee", "cat"]
        assert shown(held_out) == {("ant", 10), ("cat", 200)}
    for weights in (None, [1.0, 1.0]):
        both = chosen.changed(data_weights=weights)
        assert shown(build_image_data(both, [train_shards, few_shards])) == set(grays.items())
    fewer = build_image_data(chosen, [few_shards])
    message = "label 'bee' is out of range: the classes are ant, cat"
    refused(message, build_image_data, chosen, [train_shards], fewer)
    numbered = [few_shards, shards([3], name="numbered")]
    refused(r"label 0 is a number, that of .* is not", build_image_data, chosen, numbered)


def test_numbered_classes_of_written_shards_keep_their_numbers(build, folder, listed, tmp_path):
    folder("images", 12)
    file = listed(*({"path": f"images/{i:03d}.png", "label": i} for i in range(12)))
    data = build([written_shards(file, tmp_path / "shards", labels="manifest")], labels="manifest")
    assert data.class_names == [str(i) for i in range(12)]
    assert data.read_batch(list(range(12)))["label"].tolist() == numbers(data, 12)


def test_filters_of_a_manifest_leave_its_classes_as_they_are(build, listed, tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(3 * i + 1, 12 + 6 * i, 12))
    file = listed(*({"path": f"{i}.png", "label": "abcd"[i]} for i in range(4)))
    data = build([file], labels="manifest", max_aspect_ratio=1.6)
    assert len(data) == 2 and data.class_names == ["a", "b", "c", "d"]
    assert data.read_batch([0, 1])["label"].tolist() == numbers(data, 2)


# Captions


def test_better_captions_need_a_name_in_one_of_the_sources(options, folder, shards, listed):
    better = listed({"key": "00001", "caption": "better"})
    chosen = options(better_captions=better, text_encoder="bytes")
    images = folder("images", 3, first=9)
    train = build_image_data(chosen, [images, shards([3])])
    expected = {0: "caption 0", 1: "better", 2: "caption 2", 9: "", 10: "", 11: ""}
    assert captions(train) == expected
    build_image_data(chosen, [shards([1], name="eval")], train)  # held-out images need none
    message = "has no caption for any image; its names are 00001"
    refused(message, build_image_data, chosen, [images])


def test_better_captions_name_written_shards_by_the_paths_of_their_images(
    build, folder, listed, tmp_path
):
    path = written_shards(folder("images", 3), tmp_path / "shards")  # without captions
    better = listed({"name": "001.png", "caption": "B"}, {"key": "002", "caption": "C"})
    flags = {"better_captions": better, "text_encoder": "bytes", "captions": "sidecar"}
    assert captions(build([path], **flags)) == {0: "", 1: "B", 2: "C"}
    listed({"key": "other", "caption": "B"})
    refused("none of 3 images has a caption", build, [path], **flags)


@pytest.mark.parametrize("weights", [None, [1.0, 1.0]])
def test_better_captions_that_fit_images_of_several_sets_are_refused(
    build, folder, listed, tmp_path, weights
):
    sets = [written_shards(folder(name, 2), tmp_path / f"{name}s") for name in ("a", "b")]
    better = listed({"key": "000000001", "caption": "B"})  # a number that every set has
    flags = {"better_captions": better, "text_encoder": "bytes", "data_weights": weights}
    refused(r"'000000001' fits several images, .*as/.* and .*bs/", build, sets, **flags)


@pytest.mark.parametrize("kept_in", ["folders", "shards"])
def test_better_captions_that_fit_training_and_held_out_images_need_full_names(
    options, folder, listed, tmp_path, kept_in
):
    key, places = "000", [folder("train", 2), folder("held_out", 2)]
    names = [f"{place}/000.png" for place in places]
    if kept_in == "shards":
        key = "000000000"
        places = [written_shards(place, tmp_path / f"{place}_shards") for place in places]
        names = [f"{place}/shard-000000.tar::{key}" for place in places]
    better = listed({"key": key, "caption": "B"})
    paths = {"dataset": "images", "data_path": places[:1], "eval_data_path": places[1:]}
    chosen = options(better_captions=better, text_encoder="bytes", eval_steps=1, **paths)
    message = f"'{key}' fits several images, {names[0]} and {names[1]}; name each in full"
    refused(message, build_datasets, chosen)
    same = build_datasets(chosen.changed(eval_data_path=places[:1]))  # one image, read twice
    assert all("B" in captions(dataset).values() for dataset in same)
    listed(*({"key": name, "caption": f"set {i}"} for i, name in enumerate(names)))
    for i, dataset in enumerate(build_datasets(chosen)):
        assert captions(dataset) == {0: f"set {i}", 1: ""}


def test_captions_of_a_file_are_refused_for_shards_alone(build, folder, shards, tmp_path):
    path, file = shards([3]), tmp_path / "list.tsv"
    file.write_text("000.png\tmine\n001.png\tmine\n")
    flags = {"text_encoder": "bytes", "captions": str(file)}
    refused(r"list.tsv is for folders, and shards have their own", build, [path], **flags)
    refused("filename is for folders", build, [path], **flags | {"captions": "filename"})
    both = build([folder("images", 2), path], **flags)
    assert "mine" in both.read_batch(list(range(5)))["caption"]
    flags["captions"] = "sidecarz"
    refused("captions 'sidecarz': there is no such file", build, [path], **flags)
