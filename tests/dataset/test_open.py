import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from tests.dataset.shard_files import as_json, png, write_shards, written_shards
from tests.refusals import refused
from wfimagevae.dataset import Mixture, TrainImageDataset, TrainLoader
from wfimagevae.dataset.images.decode import open_rgb
from wfimagevae.dataset.open import build_image_data, open_images
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.flow_space import build_datasets
from wfimagevae.task.vae_options import VaeOptions


@pytest.fixture
def options(tmp_path):
    """Maker of a flow's options: defaults, but for those given."""

    def make(task="flow", **changes):
        values = {"resolution": 8, "train_crop": "native", "batch_size": 2}
        values |= {"index_cache_dir": str(tmp_path / "index")} | changes
        return VaeOptions(image_path=["x"], **values) if task == "vae" else FlowOptions(**values)

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


def numbers(dataset, count):
    pixels = dataset.read_batch(list(range(count)))["pixels"]
    return [(int(value) - 1) // 3 for value in pixels[:, 0, 0, 0]]


def test_plain_folder_gives_the_samples_that_it_always_gave(options, folder):
    path = folder("images", 5)
    built = build_image_data(options(), [path])
    plain = TrainImageDataset(path, 8, seed=1234)
    for position in (0, 3, 11):
        ours, theirs = built.read_batch([position]), plain.read_batch([position])
        assert torch.equal(ours["pixels"], theirs["pixels"])
    assert "order" not in TrainLoader(built, 2).state_dict()


def test_shards_without_weights_are_one_set_shuffled_together(options, tmp_path):
    paths = [str(path) for path in write_shards(tmp_path / "shards", [4, 3, 5])]
    together = build_image_data(options(), paths)
    assert sorted(numbers(together, 12)) == list(range(12))
    spec = build_image_data(options(), str(tmp_path / "shards" / "s-{000..002}.tar"))
    assert numbers(together, 24) == numbers(spec, 24)


def test_folders_and_shards_share_a_run_by_size_or_by_weight(options, folder, tmp_path):
    write_shards(tmp_path / "shards", [4, 2])
    sources = [folder("images", 3, first=20), str(tmp_path / "shards")]
    by_size = build_image_data(options(), sources)
    assert isinstance(by_size, Mixture)
    assert sorted(numbers(by_size, 9)) == [0, 1, 2, 3, 4, 5, 20, 21, 22]
    weighted = build_image_data(options(data_weights=[3.0, 1.0]), sources)
    shown = Counter(number >= 20 for number in numbers(weighted, 400))
    assert shown == {True: 300, False: 100}
    refused("2 paths, 1 weights", build_image_data, options(data_weights=[1.0]), sources)


def test_filters_and_keys_reach_the_data(options, tmp_path, caplog):
    caplog.set_level("INFO", "wfimagevae")

    def sample(i):
        return {
            "png": None,
            "pic.png": png(3 * i + 1),
            "json": as_json(similarity=i / 10, t="ab"[i % 2]),
        }

    write_shards(tmp_path / "shards", [4, 4], sample)
    chosen = options(
        wds_image_key="pic.png",
        wds_label_key="json:t",
        labels="manifest",
        text_encoder="bytes",
        min_similarity=0.25,
        skip_words="caption 6,caption 7",
    )
    data = build_image_data(chosen, str(tmp_path / "shards"))
    batch = data.read_batch(list(range(3)))
    shown = numbers(data, 3)
    assert sorted(shown) == [3, 4, 5] and data.class_names == ["a", "b"] and data.has_captions
    assert batch["caption"] == [f"caption {n}" for n in shown]
    assert batch["label"].tolist() == [n % 2 for n in shown]
    assert "left out 5 of 8 images: 3 by min_similarity, 2 by skip_words" in caplog.text


def test_held_out_data_have_the_classes_of_training_and_one_size(options, tmp_path):
    def sample(i):
        return {"png": png(3 * i + 1, 12, 24), "cls": str(i % 3)}

    write_shards(tmp_path / "train", [6], sample)
    write_shards(tmp_path / "eval", [2], sample)  # class 2 is missing
    chosen = options(labels="folder", aspect_buckets=4, data_weights=[1.0])
    train = build_image_data(chosen, [str(tmp_path / "train")])
    held_out = build_image_data(chosen, [str(tmp_path / "eval")], train)
    assert held_out.class_names == ["0", "1", "2"]
    assert train.read_batch([0, 1])["pixels"].shape[1:3] == (12, 4)
    pixels = held_out.read_batch([0, 1, 2])["pixels"]
    assert pixels.shape[1:3] == (8, 8)
    assert torch.equal(pixels, held_out.read_batch([0, 1, 2])["pixels"])


def test_mixed_buckets_deal_whole_batches_of_one_set(options, folder, tmp_path):
    sources = [folder("wide", 5, size=(24, 12)), folder("square", 4, first=30)]
    data = build_image_data(options(aspect_buckets=4, data_weights=[1.0, 2.0]), sources)
    loader = TrainLoader(data, 2, num_workers=2)
    sizes = Counter(tuple(next(loader)["image"].shape[2:]) for _ in range(30))
    state = loader.state_dict()
    loader.close()
    assert sizes == {(4, 12): 10, (8, 8): 20}
    other = build_image_data(
        options(aspect_buckets=4, data_weights=[1.0, 2.0], batch_size=4), sources
    )
    with pytest.raises(ValueError, match="batch_size was 2, is 4"):
        TrainLoader(other, 4).load_state_dict(state)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ({"reduced_min_sizes": [4]}, "--train_crop native never does"),
        ({"use_manifest": True}, "means shards, not a manifest"),
        ({"aspect_buckets": 4, "min_image_size": 99}, "leave none of 3 images"),
        ({"wds_image_key": "tif"}, "set --wds_image_key"),
        ({"wds_shuffle_shards": 0}, "wds_shuffle_shards: 0 is not a whole number of at least 1"),
        ({"wds_cache_gb": float("nan")}, "wds_cache_gb: nan is not a number of at least 0"),
        ({"max_aspect_ratio": 0.5}, r"at least 1, or 0 for any, got 0.5"),
        ({"min_image_size": -3}, "min_image_size: -3 is not a whole number of at least 0"),
    ],
)
def test_options_that_cannot_be_met_are_errors(options, tmp_path, flag, message):
    write_shards(tmp_path / "shards", [3])
    with pytest.raises(ValueError, match=message):
        build_image_data(options("vae", **flag), [str(tmp_path / "shards")])


def test_better_captions_need_a_name_in_one_of_the_sources(options, folder, tmp_path):
    write_shards(tmp_path / "shards", [3])
    better = tmp_path / "better.jsonl"
    better.write_text('{"key": "00001", "caption": "better"}\n')
    chosen = options(better_captions=str(better), text_encoder="bytes")
    train = build_image_data(chosen, [folder("images", 3, first=9), str(tmp_path / "shards")])
    shown = dict(zip(numbers(train, 6), train.read_batch(list(range(6)))["caption"], strict=True))
    expected = {0: "caption 0", 1: "better", 2: "caption 2", 9: "", 10: "", 11: ""}
    assert shown == expected
    write_shards(tmp_path / "eval", [1])
    build_image_data(chosen, [str(tmp_path / "eval")], train)  # held-out images need none
    with pytest.raises(ValueError, match=r"has no caption for any image; its names are 00001"):
        build_image_data(chosen, [str(tmp_path / "images")])


def test_image_flags_are_refused_for_other_data(options):
    with pytest.raises(ValueError, match="--aspect_buckets is for --dataset images"):
        build_datasets(options(dataset="shapes", aspect_buckets=8))


def test_data_travel_to_workers_that_are_not_forked(options, folder):
    chosen = options(aspect_buckets=4, train_crop="resized", reduced_min_sizes=[4])
    data = build_image_data(chosen, [folder("a", 4), folder("b", 3)])
    copy = pickle.loads(pickle.dumps(data))
    for block in range(5):
        positions = [2 * block, 2 * block + 1]
        ours, theirs = data.read_batch(positions), copy.read_batch(positions)
        assert torch.equal(ours["pixels"], theirs["pixels"])


def test_vae_reads_shards_without_captions_and_filters_by_them(options, tmp_path):
    write_shards(tmp_path / "shards", [4])
    chosen = options("vae", skip_words="caption 2", train_crop="resized")
    data = build_image_data(chosen, [str(tmp_path / "shards")])
    assert set(data.read_batch([0])) == {"pixels", "unreadable"}
    assert sorted(numbers(data, 3)) == [0, 1, 3]


def test_filters_of_a_manifest_leave_its_classes_as_they_are(options, tmp_path):
    for i in range(4):
        Image.fromarray(np.full((12, 12 + 6 * i, 3), 3 * i + 1, np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    lines = [json.dumps({"path": f"{i}.png", "label": "abcd"[i]}) + "\n" for i in range(4)]
    (tmp_path / "list.jsonl").write_text("".join(lines))
    chosen = options(labels="manifest", max_aspect_ratio=1.6)
    data = build_image_data(chosen, [str(tmp_path / "list.jsonl")])
    assert len(data) == 2 and data.class_names == ["a", "b", "c", "d"]
    batch = data.read_batch([0, 1])
    assert batch["label"].tolist() == numbers(data, 2)


def test_images_to_validate_on_come_from_all_sources_in_order(options, folder, tmp_path):
    write_shards(tmp_path / "shards", [2, 1])
    images = open_images(options("vae"), [folder("images", 2, first=7), str(tmp_path / "shards")])
    shown = [(open_rgb(images.file(i)).getpixel((0, 0))[0] - 1) // 3 for i in range(5)]
    assert shown == [7, 8, 0, 1, 2]
    assert images.relative(0) == "0/007.png" and images.relative(4) == "1/s-001/00002.png"


GRAYS = {"ant": 10, "bee": 100, "cat": 200}


def class_folders(home, names):
    for name in names:
        (home / name).mkdir(parents=True)
        for i in range(2):
            (home / name / f"{i}.png").write_bytes(png(GRAYS[name] + i))
    return str(home)


def shown_classes(dataset):
    """Class names by the gray values that are shown under them."""
    batch = dataset.read_batch(list(range(len(dataset))))
    grays = [int(value) // 10 * 10 for value in batch["pixels"][:, 0, 0, 0]]
    return {
        (dataset.class_names[label], gray)
        for label, gray in zip(batch["label"].tolist(), grays, strict=True)
    }


def test_classes_of_written_shards_are_known_by_name(options, tmp_path):
    train = class_folders(tmp_path / "train", ["ant", "bee", "cat"])
    few = class_folders(tmp_path / "few", ["ant", "cat"])  # their numbers are 0 and 1
    train_shards = written_shards(train, tmp_path / "train_shards", labels="folder")
    few_shards = written_shards(few, tmp_path / "few_shards", labels="folder")
    chosen = options(labels="folder")
    for source in (train, train_shards):
        data = build_image_data(chosen, [source])
        assert data.class_names == ["ant", "bee", "cat"]
        held_out = build_image_data(chosen, [few_shards], data)
        assert held_out.class_names == ["ant", "bee", "cat"]
        assert shown_classes(held_out) == {("ant", 10), ("cat", 200)}
    for weights in (None, [1.0, 1.0]):
        both = build_image_data(
            options(labels="folder", data_weights=weights), [train_shards, few_shards]
        )
        assert shown_classes(both) == set(GRAYS.items())
    with pytest.raises(ValueError, match="label 'bee' is out of range: the classes are ant, cat"):
        build_image_data(chosen, [train_shards], build_image_data(chosen, [few_shards]))
    write_shards(tmp_path / "numbered", [3])
    with pytest.raises(ValueError, match=r"label 0 is a number, that of .* is not"):
        build_image_data(chosen, [few_shards, str(tmp_path / "numbered")])


def test_numbered_classes_of_written_shards_keep_their_numbers(options, folder, tmp_path):
    folder("images", 12)
    lines = [json.dumps({"path": f"images/{i:03d}.png", "label": i}) + "\n" for i in range(12)]
    (tmp_path / "list.jsonl").write_text("".join(lines))
    shards = written_shards(tmp_path / "list.jsonl", tmp_path / "shards", labels="manifest")
    data = build_image_data(options(labels="manifest"), [shards])
    assert data.class_names == [str(i) for i in range(12)]
    batch = data.read_batch(list(range(12)))
    assert batch["label"].tolist() == numbers(data, 12)


def test_better_captions_name_written_shards_by_the_paths_of_their_images(
    options, folder, tmp_path
):
    shards = written_shards(folder("images", 3), tmp_path / "shards")  # without captions
    better = tmp_path / "better.jsonl"
    better.write_text('{"name": "001.png", "caption": "B"}\n{"key": "002", "caption": "C"}\n')
    chosen = options(better_captions=str(better), text_encoder="bytes", captions="sidecar")
    data = build_image_data(chosen, [shards])
    shown = dict(zip(numbers(data, 3), data.read_batch([0, 1, 2])["caption"], strict=True))
    assert shown == {0: "", 1: "B", 2: "C"}
    better.write_text('{"key": "other", "caption": "B"}\n')
    refused("none of 3 images has a caption", build_image_data, chosen, [shards])


@pytest.mark.parametrize("weights", [None, [1.0, 1.0]])
def test_better_captions_that_fit_images_of_several_sets_are_refused(
    options, folder, tmp_path, weights
):
    sets = [written_shards(folder(name, 2), tmp_path / f"{name}s") for name in ("a", "b")]
    better = tmp_path / "better.jsonl"
    better.write_text('{"key": "000000001", "caption": "B"}\n')  # a number that every set has
    chosen = options(better_captions=str(better), text_encoder="bytes", data_weights=weights)
    refused(r"'000000001' fits several images, .*as/.* and .*bs/", build_image_data, chosen, sets)


@pytest.mark.parametrize("kept_in", ["folders", "shards"])
def test_better_captions_that_fit_training_and_held_out_images_need_full_names(
    options, folder, tmp_path, kept_in
):
    key, train, held_out = "000", folder("train", 2), folder("held_out", 2)
    names = [f"{train}/000.png", f"{held_out}/000.png"]
    if kept_in == "shards":
        key = "000000000"
        train, held_out = (
            written_shards(source, tmp_path / f"{source}_shards") for source in (train, held_out)
        )
        names = [f"{place}/shard-000000.tar::{key}" for place in (train, held_out)]
    better = tmp_path / "better.jsonl"
    better.write_text(json.dumps({"key": key, "caption": "B"}) + "\n")
    paths = {"dataset": "images", "data_path": [train], "eval_data_path": [held_out]}
    chosen = options(better_captions=str(better), text_encoder="bytes", eval_steps=1, **paths)
    with pytest.raises(ValueError, match=f"'{key}' fits several images, ") as raised:
        build_datasets(chosen)
    assert f"{names[0]} and {names[1]}; name each in full" in str(raised.value)

    lines = (json.dumps({"key": names[i], "caption": f"set {i}"}) for i in range(2))
    better.write_text("\n".join(lines))
    for i, dataset in enumerate(build_datasets(chosen)):
        shown = dict(zip(numbers(dataset, 2), dataset.read_batch([0, 1])["caption"], strict=True))
        assert shown == {0: f"set {i}", 1: ""}

    better.write_text(json.dumps({"key": key, "caption": "B"}))
    same = build_datasets(chosen.changed(eval_data_path=[train]))  # one image, read twice
    assert all("B" in dataset.read_batch([0, 1])["caption"] for dataset in same)


def test_captions_of_a_file_are_refused_for_shards_alone(options, folder, tmp_path):
    write_shards(tmp_path / "shards", [3])
    shards = str(tmp_path / "shards")
    (tmp_path / "list.tsv").write_text("000.png\tmine\n001.png\tmine\n")
    listed = options(text_encoder="bytes", captions=str(tmp_path / "list.tsv"))
    with pytest.raises(ValueError, match=r"list.tsv: a file of names and captions is for folders"):
        build_image_data(listed, [shards])
    both = build_image_data(listed, [folder("images", 2, first=0), shards])
    assert "mine" in both.read_batch(list(range(5)))["caption"]
    with pytest.raises(ValueError, match=r"captions 'sidecarz': there is no such file"):
        build_image_data(options(text_encoder="bytes", captions="sidecarz"), [shards])


def test_fields_come_from_the_member_that_is_named(options, tmp_path):
    write_shards(tmp_path / "shards", [4], lambda i: {"meta.json": as_json(similarity=i / 4)})
    chosen = options("vae", wds_json_key="meta.json", min_similarity=0.5)
    assert sorted(numbers(build_image_data(chosen, [str(tmp_path / "shards")]), 2)) == [2, 3]
    chosen = options("vae", wds_json_key="meta", min_similarity=0.5)
    with pytest.raises(ValueError, match=r"no image of .* has a field similarity"):
        build_image_data(chosen, [str(tmp_path / "shards")])
