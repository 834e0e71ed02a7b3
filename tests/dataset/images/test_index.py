import json
import os
import pickle
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.refusals import refused
from wfimagevae.dataset.images import index as sources
from wfimagevae.dataset.images.index import index_images


@pytest.fixture
def touch(tmp_path):
    """Maker of empty files below a folder of images (and of that folder)."""

    def make(*names, root="images"):
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / root

    return make


@pytest.fixture
def later(monkeypatch):
    """Lets time pass, so that the folders made so far count as settled."""
    real = time.time_ns
    monkeypatch.setattr(sources.time, "time_ns", lambda: real() + 10 * 10**9)


@pytest.fixture
def listed(monkeypatch):
    """Folders that were really listed, by name."""
    names, scandir = [], os.scandir

    def spy(path):
        name = os.path.basename(os.path.normpath(path))
        names.extend([name] * (name != "image_lists"))  # but the cache itself
        return scandir(path)

    monkeypatch.setattr(sources.os, "scandir", spy)
    return names


def names(index):
    return [index.relative(i) for i in range(len(index))]


def test_folder_is_scanned_recursively_for_every_extension_in_any_case(touch):
    images = ["a.JPG", "b.jpeg", "b/c.PNG", "b/d/e.WebP", "é.bmp", "z.JPEG"]
    root = touch(
        *images, "notes.txt", "b/x.heics", "jpg", "README", ".b.png", ".hid/c.png", "d/.e/f.png"
    )
    images.append(touch("x.jpg/a.png") and "x.jpg/a.png")  # a folder, whatever its name
    assert names(index_images(root)) == sorted(images)
    assert index_images(root).path(6) == f"{root}/{sorted(images)[6]}"


def test_names_that_are_not_utf8_can_be_opened(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    with open(os.path.join(os.fsencode(root), b"\xff\xfe.png"), "wb") as file:
        file.write(b"x")
    for _ in range(2):  # the second time from the cache
        with open(index_images(root).path(0), "rb") as file:
            assert file.read() == b"x"


def test_links_are_followed_and_loops_are_not(touch, tmp_path):
    outside = touch("o.png", root="outside")
    root = touch("a/b/c.png")
    (root / "out").symlink_to(outside)
    (root / "file.png").symlink_to(outside / "o.png")
    (root / "a" / "b" / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    assert names(index_images(root)) == ["a/b/c.png", "file.png", "out/o.png"]


def test_folder_that_cannot_be_listed_is_named_and_left_out(touch, monkeypatch, caplog):
    root, scandir = touch("a/1.png", "b/2.png"), os.scandir

    def refuse(path):
        if os.path.normpath(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(sources.os, "scandir", refuse)
        assert names(index_images(root)) == ["a/1.png"]
    assert f"{root}/b" in caplog.text
    assert names(index_images(root)) == ["a/1.png", "b/2.png"]


def test_paths_are_understood_and_ordered_by_bytes(touch, monkeypatch):
    root = touch("a.png")
    monkeypatch.chdir(root.parent)
    assert index_images("images").path(0) == f"{root}/a.png"
    monkeypatch.setenv("HOME", str(root.parent))
    assert index_images("~/images").path(0) == f"{root}/a.png"
    root = touch("B.png", "a/1.png", "a.png", "a-b/1.png", "ä.png", "10.png", "9.png")
    expected = ["10.png", "9.png", "B.png", "a-b/1.png", "a.png", "a/1.png", "ä.png"]
    assert names(index_images(root)) == expected


def test_what_gives_no_images_is_explained(touch, tmp_path):
    extensions = r"no images in .*\.jpg, \.jpeg, \.png, \.webp, \.bmp"
    refused(extensions, index_images, touch("notes.txt", root="empty"))
    refused("neither a folder nor a manifest", index_images, tmp_path / "nothing")
    folder = touch("a.png", root="some")
    refused(r"no images in .*list\.jsonl", index_images, manifest(tmp_path, ""))
    refused("is an image", index_images, folder / "a.png")
    folder = touch("below/a.tar")
    refused(r"no images in .*; training reads .*below/a\.tar", index_images, folder)
    refused(r"a\.tar is a shard.*cannot be cached", index_images, folder / "below" / "a.tar")


def test_index_is_compact_and_survives_pickling(touch):
    index = index_images(touch(*(f"class/{i:04d}.png" for i in range(500))))
    assert len(pickle.dumps(index)) < 500 * (len("class/0000.png") + 8) + 1000
    assert names(pickle.loads(pickle.dumps(index))) == names(index)
    with pytest.raises(IndexError):
        index.path(500)


# Manifests


def manifest(tmp_path, *lines):
    path = tmp_path / "list.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def test_manifest_gives_paths_under_any_key_relative_to_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    path = manifest(
        tmp_path,
        {"image_path": "a/1.png", "caption": "x"},
        "",
        {"path": "b é.jpg"},
        "   ",
        {"target": f"{tmp_path}/c.png", "image_path": None},
        {"path": "../elsewhere/d.png"},
        {"target": "/data/e.png"},
    )
    index = index_images(path)
    read = {os.path.normpath(index.path(i)) for i in range(len(index))}
    below = {f"{tmp_path}/{name}" for name in ("a/1.png", "b é.jpg", "c.png")}
    assert read == below | {f"{tmp_path.parent}/elsewhere/d.png", "/data/e.png"}
    outside = f"{tmp_path.parent}/elsewhere/d.png".lstrip("/")
    assert set(names(index)) == {"a/1.png", "b é.jpg", "c.png", outside, "data/e.png"}


def test_bad_line_is_named_by_file_and_number(tmp_path):
    path = manifest(tmp_path, {"path": "ok.png"}, "")
    good = b"\xef\xbb\xbf" + path.read_bytes()  # a byte order mark is no fault
    no_objects = (b"a.png", b'{"path": "a.png"', b"[1]", b"[" * 9999)
    for line in (*no_objects, b'{"file": "a"}', b'{"path": "a\\u0000"}', b'{"path": "\xff"}'):
        path.write_bytes(good + line)
        refused(r"list\.jsonl:3: ", index_images, path)


# Cache


def test_only_folders_that_changed_are_listed_again(touch, tmp_path, later, listed):
    root, cache = touch("a/1.png", "a/2.png", "b/3.png", "c/4.png", "c/d/5.png"), tmp_path / "cache"
    first = names(index_images(root, cache))
    assert sorted(listed) == ["a", "b", "c", "d", "images"]
    listed.clear()
    assert names(index_images(root, cache)) == first and listed == []
    touch("a/6.png", "e/7.png")
    (root / "a" / "1.png").unlink()
    (root / "c" / "d" / "5.png").rename(root / "c" / "d" / "8.png")
    expected = ["a/2.png", "a/6.png", "b/3.png", "c/4.png", "c/d/8.png", "e/7.png"]
    assert names(index_images(root, cache)) == expected
    assert sorted(listed) == ["a", "d", "e", "images"]
    (root / "b" / "3.png").unlink()
    (root / "b").rmdir()
    assert "b/3.png" not in names(index_images(root, cache))


def test_freshly_changed_folder_is_not_trusted(touch, tmp_path, listed):
    root = touch("1.png")
    for _ in range(2):
        index_images(root, tmp_path / "cache")
    assert listed == ["images", "images"]


def test_old_folder_times_and_links_that_lead_elsewhere_are_noticed(touch, tmp_path, later):
    root = touch("1.png")
    (root / "disk").symlink_to(tmp_path / "disk")
    before = root.stat()
    assert names(index_images(root, tmp_path / "cache")) == ["1.png"]
    touch("2.png")
    touch("b.png", root="disk")
    os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert names(index_images(root, tmp_path / "cache")) == ["1.png", "2.png", "disk/b.png"]


def test_image_folder_is_never_written(touch, monkeypatch, later, caplog):
    def snapshot():
        return {path: path.lstat().st_mtime_ns for path in [root, *root.rglob("*")]}

    root = touch("a/1.png")
    before = snapshot()
    index_images(root)
    assert not [record for record in caplog.records if record.levelname != "INFO"]
    index_images(root, root / "a" / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root))
    index_images(root)
    assert snapshot() == before
    assert caplog.text.count("cache of image lists off") == 2


def test_several_processes_of_a_machine_list_a_folder_once(touch, tmp_path, later, monkeypatch):
    root, cache = touch(*(f"{folder}/1.png" for folder in "abc")), tmp_path / "cache"
    list_folder, made = sources._list, []

    def slow(path, stamp):
        made.append(path)
        time.sleep(0.05)
        return list_folder(path, stamp)

    monkeypatch.setattr(sources, "_list", slow)
    with ThreadPoolExecutor(4) as pool:  # file locks hold between threads, too
        found = list(pool.map(lambda _: names(index_images(root, cache)), range(4)))
    assert found == [["a/1.png", "b/1.png", "c/1.png"]] * 4
    assert len(made) == 4  # the folder and three below


def test_listing_that_takes_long_tells_where_it_is(touch, monkeypatch, caplog):
    monkeypatch.setattr(sources, "_TELL_EVERY", 0.0)
    root = touch("a/1.png", "a/2.png", "b/3.png")
    index_images(root)
    assert f"{root}: listed 3 images in 3 folders" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "manifest"])
def test_listing_takes_at_most_100_bytes_an_image_besides_its_name(touch, tmp_path, kind):
    paths = [f"{i % 7}/{i * 7919 % 30011:014d}.png" for i in range(20_000)]
    source = manifest(tmp_path, *({"path": path} for path in paths))
    if kind == "folder":
        source = touch(*paths)
    index_images(source, tmp_path / "cache" / "warm")  # what is loaded on first use
    for cache in ("cache", "cache"):
        tracemalloc.start()
        index = index_images(source, tmp_path / cache)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert names(index) == sorted(paths)
        own = sum(map(len, paths))
        assert peak < 100 * len(paths) + own
