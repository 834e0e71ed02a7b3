"""Presets of public sets of captioned images: what they keep, and under which caption."""

import io
import json

import pytest
from PIL import Image

from tests.dataset.shard_files import as_json, png, write_shards
from tests.refusals import refused
from wfimagevae.command_line import parse
from wfimagevae.dataset.open import build_image_data
from wfimagevae.dataset.options import PRESETS, StreamOptions
from wfimagevae.options import option
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.flow_space import build_datasets
from wfimagevae.task.glide_options import GlideOptions


class Flags(StreamOptions):
    """options of a command that takes a file"""

    config: str | None = option(None, "the file")


def encoded(kind):
    file = io.BytesIO()
    Image.new("RGB", (12, 12), (40,) * 3).save(file, kind)
    return file.getvalue()


@pytest.fixture
def shown(tmp_path):
    """The caption of each sample that training takes, by its number, of samples like these."""

    def make(preset, *samples, **flags):
        write_shards(tmp_path / "shards", [len(samples)], samples.__getitem__)
        values = {"resolution": 8, "train_crop": "native", "text_encoder": "bytes"}
        values |= {"index_cache_dir": str(tmp_path / "cache"), "dataset_preset": preset}
        data = build_image_data(FlowOptions(**values | flags), [tmp_path / "shards"])
        texts = data.read_batch(list(range(len(data))))["caption"]
        numbers = [int(data.images.key(data._order.index(i))) for i in range(len(data))]
        return dict(sorted(zip(numbers, texts, strict=True)))

    return make


@pytest.fixture
def listed(tmp_path):
    """A file of these lines of better captions."""

    def make(*lines):
        (tmp_path / "better.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return str(tmp_path / "better.jsonl")

    return make


def laion(width=400, height=300, **more):
    """A sample of which the set's json tells the size that its picture once had."""
    fields = {"original_width": width, "original_height": height, "similarity": 0.3}
    return {"json": as_json(**fields | more)}


def test_laion_looks_at_original_sizes_safety_and_captions(shown):
    samples = (
        laion(NSFW="UNLIKELY"),
        laion(NSFW="NSFW"),
        laion(NSFW="LIKELY"),
        laion(NSFW=None),
        laion(255, 300),
        laion(513, 256),
        laion(256, 512),
        laion() | {"txt": " \n"},
        laion() | {"txt": None},
        {"json": as_json(NSFW="UNSURE"), "png": png(1, 256, 300)},  # counts by its own size
        {"json": as_json(NSFW="UNSURE")},
    )
    kept = {n: f"caption {n}" for n in (0, 3, 6, 9)}
    assert shown("laion", *samples) == kept
    # What is given beside a preset wins; words come on top.
    assert shown("laion", *samples, min_image_size=0).keys() == {0, 3, 4, 6, 9, 10}
    assert shown("laion", *samples, skip_nsfw=False).keys() == {0, 1, 2, 3, 6, 9}
    assert shown("laion", *samples, require_caption="no").keys() == {0, 3, 6, 7, 8, 9}
    assert shown("laion", *samples, skip_words="caption 6").keys() == {0, 3, 9}
    assert shown("laion", *samples, min_similarity=0.3).keys() == {0, 3, 6}
    message = r"--skip_nsfw: no image .*drop the filter \(--no_skip_nsfw\)"
    refused(message, shown, "laion", laion(), laion())


def test_alamy_and_synthetic_captions_come_from_the_json(shown):
    samples = [
        {"json": as_json(lc="en", caption="a cat")},
        {"json": as_json(lc="de", caption="eine Katze")},
        {"json": as_json(lc="en")},
        {"json": as_json(caption="un chat")},
        {"json": as_json(lc="en", caption=["a", "b"])},
    ]
    assert shown("alamy", *samples, seed=3).keys() == {0, 4}
    assert shown("alamy", *samples)[0] == "a cat" and shown("alamy", *samples)[4] in "ab"
    samples = [
        {"json": as_json(short_caption="short", long_caption="long")},
        {"json": as_json(long_caption="long")},
        {"json": as_json(short_caption="", long_caption="long")},
        {"json": as_json(caption="neither")},
    ]
    assert shown("synthetic", *samples) == {0: "short", 1: "long", 2: "long"}


@pytest.mark.parametrize("preset", ["simple", "datacomp-real"])
def test_pictures_of_any_type_are_taken_with_their_own_captions(shown, preset):
    kinds = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "bmp": "BMP", "tiff": "TIFF"}
    samples = [{"png": None, kind: encoded(name)} for kind, name in kinds.items()]
    found = shown(preset, *samples, {"txt": None})
    expected = {n: f"caption {n}" for n in range(5)} | ({5: ""} if preset == "simple" else {})
    assert found == expected


def test_datacomp_takes_captions_of_a_list_alone(shown, listed):
    lines = [{"key": "00000", "caption": "zero"}, {"key": "00002", "caption": "two"}]
    better = listed(*lines)
    samples = [{}, {}, {"txt": None}]
    found = shown("datacomp-synthetic", *samples, better_captions=better)
    assert found == {0: "zero", 2: "two"}
    found = shown("datacomp-synthetic", *samples, better_captions=better, require_caption="no")
    assert found == {0: "zero", 1: "caption 1", 2: "two"}
    for preset in ("datacomp-synthetic", "datacomp-clip"):
        refused("--require_caption better: give --better_captions", shown, preset, *samples)


def test_datacomp_takes_the_better_of_two_captions_if_it_is_good_enough(shown, listed):
    def line(number, generated, original, **more):
        texts = {"key": f"{number:05d}", "caption": "new", "original_caption": "old"}
        scores = {
            "generated_caption_clip_score": generated,
            "original_caption_clip_score": original,
        }
        return texts | {name: score for name, score in scores.items() if score is not None} | more

    scores = [(0.3, 0.2), (0.2, 0.3), (0.3, None), (None, 0.3), (0.1, 0.19), (-0.1, -0.2)]
    better = listed(*(line(n, *pair) for n, pair in enumerate(scores)))
    samples = [{}] * (len(scores) + 1)
    found = shown("datacomp-clip", *samples, better_captions=better)
    assert found == {0: "new", 1: "old", 4: "old"}
    flags = {"better_captions": better, "better_captions_min_score": 0.2}
    assert shown("datacomp-clip", *samples, **flags) == {0: "new", 1: "old"}
    better = listed(line(0, 0.1, 0.2, original_caption=None))
    message = r'better.jsonl:1: expected \{"key"'
    refused(message, shown, "datacomp-clip", *samples, better_captions=better)


def test_flags_and_files_win_over_a_preset_and_its_values_are_recorded(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("max_aspect_ratio: 3\ndataset_preset: laion\n")
    words = ["--config", str(tmp_path / "run.yaml"), "--min_image_size", "64", "--no_skip_nsfw"]
    options = parse(Flags, words)
    assert (options.min_image_size, options.max_aspect_ratio, options.skip_nsfw) == (64, 3.0, False)
    assert options.size_fields == ("original_width", "original_height")
    again = StreamOptions(**options.part(StreamOptions).values())  # as options.json has them
    assert again == options.part(StreamOptions)
    with pytest.raises(SystemExit):
        parse(Flags, ["--dataset_preset", "laoin"])
    assert "invalid choice: 'laoin' (choose from 'laion', " in capsys.readouterr().err


def test_glide_zooms_mirrors_nothing_and_refuses_damaged_shards_unless_told(tmp_path):
    def built(**flags):
        flags = {"captions": "sidecar", "resolution": 8, "eval_steps": 0} | flags
        return build_datasets(GlideOptions(data_path=str(tmp_path / "shards"), **flags))[0]

    (path,) = write_shards(tmp_path / "shards", [4])
    rules = built().rules
    assert (rules.train_crop, rules.resize_ratio, rules.mirror) == ("resized", 0.8, False)
    assert built(train_crop="center", random_hflip=True).rules.mirror
    refused(
        "--resize_ratio 0.5 is for --train_crop resized",
        built,
        train_crop="center",
        resize_ratio=0.5,
    )
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    refused("1 of 1 shards are damaged, as warned of above, for example", built)
    assert len(built(wds_refuse_damaged=False)) < 4
    shapes = {"dataset": "shapes", "captions": "none"}
    assert len(built(**shapes)) == 20000  # takes no flags of images, whatever they are as a rule
    refused("--random_hflip is for --dataset images", built, random_hflip=True, **shapes)


def test_presets_are_values_of_flags():
    for name, values in PRESETS.items():
        assert values.items() <= StreamOptions(dataset_preset=name).values().items()
