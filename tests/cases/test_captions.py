"""Texts that come with images in encodings, places and shapes that nobody promised."""

import codecs
import json
import os

import pytest

from tests.dataset.shard_files import open_set, png, write_tar
from tests.refusals import refused
from wfimagevae.dataset.images.index import index_images
from wfimagevae.dataset.text.captions import Captions, read_captions

# What a file or member holds; the captions in it, or a part of the reason why it has none.
CONTENTS = {
    "plain": (b"a dog", ["a dog"]),
    "mark": (codecs.BOM_UTF8 + b"a dog\r\n\r\na cat\r\n", ["a dog", "a cat"]),
    "utf16": ("a dög".encode("utf-16"), ["a dög"]),
    "big-endian": (codecs.BOM_UTF16_BE + "a dög".encode("utf-16-be"), ["a dög"]),
    "empty": (b"", []),
    "latin": ("café au lait".encode("latin-1"), "not UTF-8 text"),
    "no-mark": ("a dog".encode("utf-16-le"), "UTF-16 without its mark"),
    "long": (b"x" * (2**20 + 1), "longer than 1 MiB"),
    "folder": (os.mkdir, "Is a directory"),
    "pipe": (os.mkfifo, []),
}


def captions(source, kind):
    """The captions of a folder's images, by name without extension."""
    images = index_images(source)
    table = read_captions(source, images, Captions(str(kind)))
    return {images.aliases(i)[1]: table.all(i) for i in range(len(images))}


def test_captions_of_any_encoding_are_read_or_counted_and_named_at_once(tmp_path, caplog):
    """AUTOMATIC1111/stable-diffusion-webui #3657, MNeMoNiCuZ/joy-caption-batch #1."""
    folder, members = tmp_path / "images", {}
    folder.mkdir()
    for name, (content, _) in CONTENTS.items():
        (folder / f"{name}.png").write_bytes(png(9))
        if callable(content):
            content(folder / f"{name}.txt")
        else:
            (folder / f"{name}.txt").write_bytes(content)
            members |= {f"{name}.png": png(9), f"{name}.txt": content}
    write_tar(tmp_path / "s.tar", members)
    samples = open_set(str(tmp_path / "s.tar"), with_captions=True)
    in_shard = {samples.images.key(i): samples.captions.all(i) for i in range(len(samples))}
    for found, place in ((in_shard, "s.tar::{}:"), (captions(folder, "sidecar"), "{}.txt:")):
        truth = {name: CONTENTS[name][1] for name in found}
        bad = {name: reason for name, reason in truth.items() if isinstance(reason, str)}
        assert found == truth | {name: [] for name in bad} and len(bad) >= 3
        start = f"{len(bad)} of {len(found)} captions are left out"
        told = next(text for text in caplog.messages if text.startswith(start))
        assert all(place.format(n) in told and reason in told for n, reason in bad.items()), told


def test_a_list_of_captions_is_read_alike_whatever_its_encoding(tmp_path, caplog):
    """The same, for files of name<TAB>caption."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(png(9))
    for text in ("a\tün\r\nb\tdeux\r\n".encode(codec) for codec in ("utf-8-sig", "utf-16")):
        (tmp_path / "list.tsv").write_bytes(text)
        assert captions(tmp_path, tmp_path / "list.tsv") == {"a": ["ün"], "b": ["deux"], "c": []}
    (tmp_path / "list.tsv").write_bytes(b"a\tone\nb\t\xe9t\xe9\n\nc\tn\0")
    assert captions(tmp_path, tmp_path / "list.tsv") == {"a": ["one"], "b": [], "c": []}
    (told,) = [text for text in caplog.messages if "captions are left out" in text]
    (tmp_path / "list.tsv").write_bytes("a\tone\n".encode("utf-16-le"))
    refused(r"list.tsv:1: expected name<TAB>caption", captions, tmp_path, tmp_path / "list.tsv")
    assert told.startswith("2 of 3") and "list.tsv:2: not UTF" in told and "list.tsv:4: " in told


@pytest.mark.parametrize("text", ['"a\\u0000b"', '"\\ud800"', '[null, "a"]', '{"a": "b"}', "5"])
def test_a_field_that_is_no_text_is_named_and_reaches_no_encoder(tmp_path, caplog, text):
    """The same, for json members and manifests: escapes hide what is no text, too."""
    lines = '{"image_path": "b.png", "caption": "b"}', f'{{"path": "a.png", "caption": {text}}}'
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    assert captions(tmp_path / "list.jsonl", "manifest") == {"a": [], "b": ["b"]}
    assert "1 of 2 captions are left out: " in caplog.text and "list.jsonl:2: " in caplog.text
    caplog.clear()
    members = {"1.png": png(1), "1.json": b'{"text": "a"}', "2.png": png(2)}
    write_tar(tmp_path / "s.tar", members | {"2.json": f'{{"text": {text}}}'.encode()})
    found = open_set(str(tmp_path / "s.tar"), with_captions=True, caption_key="json:text")
    assert [found.captions.all(i) for i in range(2)] == [["a"], []]
    assert "1 of 2 captions are left out: " in caplog.text and "s.tar::2: " in caplog.text


@pytest.mark.parametrize("taken_from", [1, 6])
def test_shards_whose_members_lie_apart_or_have_dots_are_told_so(tmp_path, caplog, taken_from):
    """webdataset/webdataset #140 and #237, ray-project/ray #63374."""
    together = [f"{i}.{kind}" for i in range(1, taken_from) for kind in ("png", "txt")]
    apart = [f"{i}.{kind}" for kind in ("png", "txt") for i in range(taken_from, 9)]
    write_tar(tmp_path / "s.tar", {n: png(1) if "png" in n else b"x" for n in together + apart})
    message = rf"s.tar: key {taken_from} comes again later: members of a sample must lie together"
    refused(message, open_set, str(tmp_path / "s.tar"), with_captions=True)
    assert len(open_set(str(tmp_path / "s.tar")).images) == 8  # whoever needs no text loses none
    kept = {"plain.png": png(1)} if taken_from > 1 else {}
    dotted = {f"img.v{i}.0.{kind}": png(1) for i in range(9) for kind in ("png", "txt")}
    write_tar(tmp_path / "d.tar", kept | dotted)
    if kept:  # some are found: the others are warned of
        open_set(str(tmp_path / "d.tar"))
    else:
        refused("(?s)must not have dots.*: rename them$", open_set, str(tmp_path / "d.tar"))
    assert not kept or "sample names must not have dots" in caplog.messages[-1]


BAD_LINES = [
    (b'{"image_path": "a\\u0000.png"}', "expected an object with a path"),
    (b'{"image_path": "\\ud800.png"}', "expected an object with a path"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"image_path": "a.png", "image_path": "b.png"}', "'image_path' is given twice"),
    (b'{"image_path": 1' + b"0" * 5000 + b"}", "not a line of JSON"),
    (b'{"image_path": "caf\xe9.png"}', "not UTF-8"),
    (b'["a.png"]', "expected an object"),
    (b'{"label": 1}', "expected an object with a path"),
    (b"\0", "holds a NUL"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_manifest_names_file_and_line_of_what_it_cannot_read(tmp_path, line, reason):
    """Lines as in huggingface/datasets #2181: NULs, nesting, wrong types, missing fields."""
    path = tmp_path / "list.jsonl"
    path.write_bytes(b'{"image_path": "a.png"}\r\n' + line + b"\n")
    refused(rf"list.jsonl:2: .*{reason}", index_images, path)
    path.write_bytes(json.dumps({"image_path": "é.png"}, ensure_ascii=False).encode("utf-16"))
    assert index_images(path).relative(0) == "é.png"
