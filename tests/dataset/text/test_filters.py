import json

import pytest
from PIL import Image

from tests.dataset.shard_files import as_json, open_set, png, write_shards
from tests.refusals import refused
from wfimagevae.dataset.images.image_sets import ImageParts, ImageSet, open_folder
from wfimagevae.dataset.options import StreamOptions
from wfimagevae.dataset.text.captions import Captions, CaptionTable
from wfimagevae.dataset.text.filters import BetterCaptions, filtered, read_words

# One field or size of each sample is what a filter looks at.
FIELDS = [
    {"similarity": 0.31, "NSFW": "UNLIKELY", "LANGUAGE": "en"},
    {"similarity": 0.29, "NSFW": "NSFW", "LANGUAGE": "de"},
    {"similarity": "0.5", "nsfw": True, "LANGUAGE": "EN"},
    {"NSFW": "UNSURE", "lang": "fr"},
    {"similarity": 0.4, "punsafe": 0.9},
    {"similarity": None, "punsafe": 0.1, "lc": "en"},
]
SIZES = [(12, 12), (30, 12), (13, 40), (9, 12), (64, 64), (24, 12)]


@pytest.fixture
def found(tmp_path):
    """Six samples with the sizes and fields above, whose captions are their numbers."""

    def sample(i):
        return {"png": png(3 * i + 1, *SIZES[i]), "json": as_json(**FIELDS[i])}

    write_shards(tmp_path / "shards", [4, 2], sample)
    return open_set(
        str(tmp_path / "shards"), with_captions=True, with_records=True, with_labels=True
    )


def kept(found, **filters):
    some = filtered(found, StreamOptions(**filters), "test")
    numbers = [int(some.images.key(i)) for i in range(len(some))]
    for row, number in enumerate(numbers):  # everything went along
        assert some.sizes[row].tolist() == list(SIZES[number])
        assert some.captions.all(row) == [f"caption {number}"]
        assert some.labels[0][row] == number % 3 and some.record(row) == FIELDS[number]
        assert some.images.content(row) == png(3 * number + 1, *SIZES[number])
    return numbers


def test_filters_leave_what_they_should(found):
    for filters, expected in (
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"min_image_size": 12}, [0, 1, 2, 4, 5]),
        ({"min_image_size": 13}, [2, 4]),
        ({"max_aspect_ratio": 2.0}, [0, 3, 4, 5]),
        ({"max_aspect_ratio": 1.0}, [0, 4]),
        ({"min_similarity": 0.3}, [0, 2, 4]),
        ({"skip_nsfw": True}, [0, 3, 5]),
        ({"languages": ["en"]}, [0, 2, 5]),
        ({"languages": ["de", "fr"]}, [1, 3]),
        ({"skip_words": "caption 3,5,apt,n 4"}, [0, 1, 2, 4]),
        ({"min_similarity": 0.3, "languages": ["en"], "min_image_size": 13}, [2]),
    ):
        assert kept(found, **filters) == expected


def test_each_image_counts_under_the_first_filter_that_drops_it(found, caplog):
    caplog.set_level("INFO", "wfimagevae")
    kept(found, min_image_size=12, max_aspect_ratio=2.0, min_similarity=0.3)
    reasons = "1 by min_image_size, 2 by max_aspect_ratio, 1 by min_similarity"
    assert f"left out 4 of 6 images: {reasons}" in caplog.text


def test_nothing_left_and_fields_that_nobody_has_are_errors(found, tmp_path):
    refused("leave none of 6 images of test: 6 by min_image_size", kept, found, min_image_size=100)
    write_shards(tmp_path / "bare", [2])
    bare = open_set(str(tmp_path / "bare"), with_records=True)
    for name, value in (("min_similarity", 0.3), ("skip_nsfw", True), ("languages", ["en"])):
        options = StreamOptions(**{name: value})
        refused(f"--{name}: no image of test has a field", filtered, bare, options, "test")


def test_words_come_from_a_list_or_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("Blood\n\n two words \nblood\n")
    assert read_words(str(tmp_path / "words.txt")) == ("blood", "two words")
    assert read_words("Blood, two words") == ("blood", "two words")
    refused("no word", read_words, " , ")


def test_words_are_skipped_whole_in_any_spelling(found):
    for word, hits, others in (
        ("ass", ["An ASS.", "ass, horse", "a (ass)"], ["glass", "grass", "assembly", "ass_2"]),
        ("c++", ["a C++ book", "c++", "C++, C"], ["c+", "abc++"]),
        ("two words", ["Two  words!", "two\twords"], ["two wordsmiths", "cut two wordy"]),
        ("größe", ["Die GRÖSSE", "Gro\u0308ße"], ["Größen", "Übergröße"]),
        ("血", ["流血了"], ["流汗了"]),
    ):
        texts = hits + others
        images = found.images.select([0] * len(texts))
        some = ImageSet(images, captions=CaptionTable([text] for text in texts))
        left = filtered(some, StreamOptions(skip_words=word), "test")
        assert [left.captions.all(i)[0] for i in range(len(left))] == others
    found.captions = CaptionTable([["one two", "words here"]] * 5 + [["two words"]])
    left = filtered(found, StreamOptions(skip_words="two words"), "test")
    assert len(left) == 5  # a phrase is not found over the border of two captions


def test_filters_read_sizes_and_fields_of_a_manifest_and_its_captions(tmp_path):
    lines = []
    for i, (size, fields) in enumerate(zip(SIZES, FIELDS, strict=True)):
        Image.new("RGB", size).save(tmp_path / f"{9 - i}.png")  # not in the order of the lines
        lines.append(json.dumps({"path": f"{9 - i}.png", "caption": f"no {i}"} | fields) + "\n")
    (tmp_path / "list.jsonl").write_text("".join(lines))
    options = ImageParts(captions=Captions("manifest"), sizes=True, records=True)
    found = open_folder(tmp_path / "list.jsonl", options)
    some = filtered(found, StreamOptions(min_image_size=12, min_similarity=0.3), "test")
    names = [some.images.relative(i) for i in range(len(some))]
    assert names == ["5.png", "7.png", "9.png"]
    assert [some.captions.all(i) for i in range(3)] == [["no 4"], ["no 2"], ["no 0"]]


def test_better_captions_replace_those_they_name_with_or_without_extension(found, tmp_path, caplog):
    caplog.set_level("INFO", "wfimagevae")
    file = tmp_path / "better.jsonl"
    file.write_text(
        '{"key": "00001", "caption": "a  better one"}\n\n'
        '{"name": "00004", "caption": "first"}\n{"key": "00004", "caption": "second"}\n'
        '{"key": "unknown", "caption": "x"}\n'
    )
    assert BetterCaptions(file).use(found.select([0, 2]), "", "test") == 0
    assert BetterCaptions(file).use(found, "photo", "test") == 2
    better = found.captions
    assert better.all(1) == ["photo. a better one"]
    assert better.all(4) == ["photo. first", "photo. second"]
    assert better.all(0) == ["caption 0"]
    assert "better captions for 2 of 6 images" in caplog.text
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    file = tmp_path / "better.jsonl"
    file.write_text('{"name": "a.png", "caption": "A"}\n{"name": "b", "caption": "B"}\n')
    found = open_folder(tmp_path)
    assert BetterCaptions(file).use(found, "", "test") == 2
    assert [found.captions.all(i) for i in range(2)] == [["A"], ["B"]]


def test_bad_lists_of_captions_are_errors(tmp_path):
    for line, message in (
        ("{", r"better.jsonl:1: not a line of JSON"),
        ('{"key": "a"}', r"better.jsonl:1: expected \{"),
        ('{"key": "a", "caption": " "}', r"better.jsonl:1: expected \{"),
    ):
        (tmp_path / "better.jsonl").write_text(line)
        refused(message, BetterCaptions, tmp_path / "better.jsonl")
