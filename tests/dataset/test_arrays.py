import multiprocessing
import os
from unittest.mock import Mock

import numpy as np
import pytest
from filelock import FileLock

from wfimagevae.dataset.arrays import (
    IndexCache,
    PackedTexts,
    from_json_array,
    in_processes,
    json_array,
)

NUMBERS = {"numbers": np.arange(200)}


def load(cache, version=1):
    found = cache.load("key", version, lambda arrays: arrays["numbers"])
    return None if found is None else found.tolist()


@pytest.fixture
def kept(tmp_path):
    """A cache that keeps `NUMBERS`, and its one file."""
    cache = IndexCache(tmp_path / "cache", "numbers")
    cache.save("key", 1, NUMBERS)
    (file,) = cache.folder.iterdir()
    return cache, file


def test_arrays_come_back_for_their_key_and_version(kept):
    cache, _ = kept
    assert load(cache) == list(range(200))
    assert load(cache, 2) is None and cache.load("other", 1, dict) is None
    value = {"a": [1, None], "b": "caf\udce9"}
    assert from_json_array(json_array(value)) == value


@pytest.mark.parametrize("change", ["compressed", "password", "method", "cut", "other", "empty"])
def test_damaged_file_is_named_and_replaced(kept, caplog, change):
    cache, file = kept
    content = bytearray(file.read_bytes())
    central = content.index(b"PK\x01\x02")
    if change == "compressed":
        content[60:90] = b"\xff" * 30
    elif change == "password":
        content[central + 8] |= 1
        content[6] |= 1
    elif change == "method":
        content[central + 10] = content[8] = 99
    file.write_bytes(
        {"cut": content[:-40], "other": b"no archive", "empty": b""}.get(change, content)
    )
    assert load(cache) is None and f"{file} are unusable" in caplog.text
    caplog.clear()
    cache.save("key", 1, NUMBERS)
    assert load(cache) == list(range(200)) and not caplog.text


def test_folder_that_cannot_or_must_not_be_written_costs_one_line(tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = IndexCache(tmp_path / "file", "numbers")
    with cache.locked():
        assert load(cache) is None
        cache.save("key", 1, NUMBERS)
    assert len(caplog.records) == 1 and "cache of numbers off: cannot write" in caplog.text
    cache = IndexCache(tmp_path / "images" / "cache", "numbers", [str(tmp_path / "images")])
    with cache.locked():
        cache.save("key", 1, NUMBERS)
    assert not (tmp_path / "images").exists()
    assert "cache of numbers off" in caplog.text and "inside the image folder" in caplog.text


def test_failed_write_leaves_the_old_arrays_and_no_litter(kept, monkeypatch, caplog):
    cache, file = kept
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", Mock(side_effect=full))
    cache.save("key", 1, {"numbers": np.zeros(3)})
    assert load(cache) == list(range(200)) and list(cache.folder.iterdir()) == [file]
    assert "No space left" in caplog.text


def test_default_cache_lies_under_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert IndexCache(None, "x").folder == tmp_path / "xdg" / "wfimagevae" / "index" / "x"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert IndexCache(None, "x").folder == tmp_path / "home/.cache/wfimagevae/index/x"


def can_lock(path):
    try:
        with FileLock(path, blocking=False):
            return True
    except TimeoutError:
        return False


def test_lock_is_held_until_the_work_of_all_processes_is_done(tmp_path):
    cache = IndexCache(tmp_path, "numbers")
    # Another program, so that it shares no lock with this process.
    with multiprocessing.get_context("spawn").Pool(1) as other:
        with cache.locked():
            (path,) = cache.folder.iterdir()
            assert list(in_processes(abs, [-1, -2, -3], "work")) == [1, 2, 3]
            assert not other.apply(can_lock, (path,))
        assert other.apply(can_lock, (path,))


@pytest.fixture
def texts():
    """Texts of 0 to 40 bytes of few kinds, so that many are equal or begin alike."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 41, 3000)
    letters = np.array([1, 47, 97, 255], np.uint8)
    return [letters[rng.integers(0, 4 if n % 2 else 1, n)].tobytes() for n in lengths]


def test_order_is_that_of_bytes_and_stable(texts):
    assert len(set(texts)) < len(texts)
    expected = sorted(range(len(texts)), key=texts.__getitem__)
    assert PackedTexts.pack(texts).argsort().tolist() == expected
    assert PackedTexts.pack([]).argsort().tolist() == []
    assert PackedTexts.pack([b"", b""]).argsort().tolist() == [0, 1]


def test_selection_is_what_was_asked_for(texts):
    packed = PackedTexts.pack(texts)
    for rows in ([], [0], [2999, 0, 5, 5], np.random.default_rng(1).integers(0, 3000, 3000)):
        assert list(packed.select(rows)) == [texts[row] for row in rows]
    assert packed.select(range(3000)) is packed
