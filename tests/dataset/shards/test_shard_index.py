import gzip
import os
import tarfile
import tracemalloc

import numpy as np
import pytest
import webdataset

from tests.dataset.shard_files import as_json, open_set, png, write_shards, write_tar
from tests.refusals import refused
from wfimagevae.dataset import DataError, arrays
from wfimagevae.dataset.open import is_shard_spec
from wfimagevae.dataset.shards import index as shard_index
from wfimagevae.dataset.shards.specs import expand_shards
from wfimagevae.dataset.shards.tar import TarIndex


def keys(found):
    return [found.images.key(i) for i in range(len(found))]


@pytest.mark.parametrize(
    ("damage", "whole", "told"),
    [
        ("inside", 4, "cut short inside 00004.png, at byte"),
        ("tail", 5, "cut short inside"),
        ("no end mark", 5, "no end mark"),
        # Behind damage to a header nobody knows what came: the sample in front may go on there.
        ("header", 4, "damaged header at byte"),
    ],
)
def test_damage_is_named_and_costs_the_samples_behind_it(tmp_path, caplog, damage, whole, told):
    (path,) = write_shards(tmp_path, [6])
    with tarfile.open(path) as tar:
        members = list(tar)
    with path.open("r+b") as file:
        if damage == "header":  # of the first member of the last sample
            file.seek(next(m for m in members if m.name.startswith("00005")).offset)
            file.write(b"garbage!" * 64)
        elif damage == "inside":
            file.truncate(next(m for m in members if m.name == "00004.png").offset_data + 20)
        else:
            end = members[-1].offset_data + members[-1].size
            file.truncate(end - 1 if damage == "tail" else -(-end // 512) * 512)
    found = keys(open_set(str(tmp_path), with_captions=True))
    assert found == [f"{i:05d}" for i in range(whole)]
    library = webdataset.WebDataset(str(path), shardshuffle=False, handler=lambda error: False)
    assert set(found) <= {sample["__key__"] for sample in library}
    assert f"damaged shard {path}: " in caplog.text and told in caplog.text
    assert "1 of 1 shards are damaged; samples known to be lost: 1" in caplog.text


def test_damage_can_be_an_error_before_the_first_step(tmp_path, caplog):
    paths = write_shards(tmp_path, [3, 3])
    assert len(open_set(str(tmp_path), refuse_damaged=True)) == 6
    with paths[1].open("r+b") as file:
        file.truncate(paths[1].stat().st_size // 2)
    message = f"1 of 2 shards are damaged, as warned of above, for example {paths[1]}"
    for _ in range(2):  # that of an index that was kept, too
        refused(message, open_set, str(tmp_path), refuse_damaged=True, error=DataError)
    assert "cut short" in caplog.text
    assert 3 <= len(open_set(str(tmp_path))) < 6


def test_shards_are_checked_by_as_many_processes_as_this_one_may_use(tmp_path, monkeypatch):
    """As ``taskset --cpu-list 0-2`` has it; nothing is kept where the cache is a new folder."""
    write_shards(tmp_path / "shards", [1] * 4)
    pools, real = [], arrays.ProcessPoolExecutor
    pool = lambda count: pools.append(count) or real(count)  # noqa: E731
    monkeypatch.setattr(arrays, "ProcessPoolExecutor", pool)
    for cores in (3, 1):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        for _ in range(2):
            open_set(str(tmp_path / "shards"), index_cache_dir=tmp_path / f"cache {cores}")
    assert pools == [3]


def test_empty_and_foreign_files_are_named_while_others_are_read(tmp_path, caplog):
    write_shards(tmp_path, [2, 0])
    (tmp_path / "s-002.tar").write_bytes(b"")
    (tmp_path / "s-003.tar").write_bytes(b"this is no tar file" * 100)
    assert len(open_set(str(tmp_path))) == 2
    assert "1 shards without a sample, for example" in caplog.text
    assert "s-002.tar: no tar file, or damaged" in caplog.text
    assert "s-003.tar: no tar file, or damaged" in caplog.text
    refused("no sample in 1 shards", open_set, str(tmp_path / "s-002.tar"), error=DataError)
    path = tmp_path / "s-000.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    refused(r"compressed \(gzip\)", open_set, str(path), error=DataError)


def test_sample_with_two_members_of_a_type_is_left_out_and_named(tmp_path, caplog):
    names = ("a.png", "b.png", "b.PNG", "c.png", "a.txt")
    write_tar(tmp_path / "a.tar", dict.fromkeys(names, png(1)))
    assert keys(open_set(str(tmp_path))) == ["a", "c"]
    write_shards(tmp_path / "dotted", [1], lambda i: {"png": None, "v1.0.png": png(1)})
    refused(r"v1.0.png; sample names must not have dots", open_set, str(tmp_path / "dotted"))
    assert "sample b: two members of type png" in caplog.text
    assert "a comes again later: members of a sample must lie together" in caplog.text


def test_index_is_kept_and_made_anew_for_what_changed(tmp_path, monkeypatch):
    shards, calls, real = tmp_path / "shards", [], shard_index.index_tar
    paths = write_shards(shards, [2, 3], lambda i: {"json": as_json(n=i)})

    def counted(path, *rest):
        calls.append(os.path.basename(path))
        return real(path, *rest)

    def opened():
        return open_set(str(shards), index_cache_dir=tmp_path / "cache", with_records=True)

    monkeypatch.setattr(shard_index, "index_tar", counted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    first, second = opened(), opened()
    assert calls == ["s-000.tar", "s-001.tar"]
    assert keys(second) == keys(first) and second.record(4) == {"n": 4}
    assert second.sizes.tolist() == first.sizes.tolist()
    status = paths[1].stat()
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert len(opened()) == 5 and calls[2:] == ["s-001.tar"]
    write_shards(shards, [4, 3])
    assert len(opened()) == 7
    for file in (tmp_path / "cache" / "shard_indices").glob("*.npz"):
        file.write_bytes(b"rubbish")
    assert len(opened()) == 7


def test_specifications_expand_as_the_webdataset_library_does(tmp_path, monkeypatch):
    paths = [str(path) for path in write_shards(tmp_path, [1] * 4)]
    assert expand_shards(f"{tmp_path}/s-{{000..002}}.tar") == paths[:3]
    assert expand_shards(f"{tmp_path}/s-00[13].tar") == [paths[1], paths[3]]
    assert expand_shards(tmp_path) == paths
    assert expand_shards(f"{paths[2]}::{paths[0]}") == [paths[2], paths[0]]
    assert expand_shards(f"file:{paths[1]}") == [paths[1]]
    assert expand_shards("https://a.b/{0..1}.tar") == ["https://a.b/0.tar", "https://a.b/1.tar"]
    assert expand_shards("pipe:cat {x,y}.tar") == ["pipe:cat x.tar", "pipe:cat y.tar"]
    monkeypatch.setenv("WDS_place", str(tmp_path))
    assert expand_shards("${place}/s-000.tar") == paths[:1]


def test_shards_that_are_not_there_are_errors(tmp_path):
    for spec, message in (
        (f"{tmp_path}/gone.tar", "does not exist"),
        (f"{tmp_path}/s-{{000..001}}.tar", "does not exist"),
        (f"{tmp_path}/*.tar", "no shards match"),
        ("${nothing}/s.tar", "cannot be expanded"),
    ):
        refused(message, expand_shards, spec)


def test_folders_of_images_are_not_taken_for_shards(tmp_path):
    write_shards(tmp_path / "shards", [1])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(1))
    (tmp_path / "photos" / "backup.tar").write_bytes(b"")
    assert is_shard_spec(tmp_path / "shards") and not is_shard_spec(tmp_path / "photos")
    assert is_shard_spec("https://a.b/x.tar") and is_shard_spec("pipe:cat x")
    assert is_shard_spec("data/{000..009}.tar") and not is_shard_spec("photos.jsonl")


def test_a_sample_takes_at_most_100_bytes_besides_its_name(tmp_path):
    names = [f"{i:08d}" for i in range(2000)]
    path, picture = tmp_path / "shards" / "0.tar", png(3)
    path.parent.mkdir()
    members = ((name, kind) for name in names for kind in ("png", "txt"))
    write_tar(path, {f"{n}.{kind}": picture if kind == "png" else b"red" for n, kind in members})
    ((_, index),) = shard_index.index_shards([str(path)], tmp_path / "cache", with_texts=False)
    assert not [name for name in index.columns if name.startswith("text.")]
    for number in range(1, 8):
        os.link(path, path.with_name(f"{number}.tar"))
    open_set(path.parent, index_cache_dir=tmp_path / "cache")  # what is loaded on first use
    tracemalloc.start()
    found = open_set(path.parent, index_cache_dir=tmp_path / "cache")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert keys(found) == 8 * names
    assert peak < (100 + 8) * len(found)


def test_places_beyond_2_gigabytes_are_kept():
    columns = {"offset.png": np.array([512, 2**31]), "size.png": np.array([3, 2**31 - 1])}
    columns["keys.ends"] = np.array([1, 2])
    index = TarIndex(columns, [], 0, ["png"])
    assert index.columns["offset.png"].tolist() == [512, 2**31]
    assert index.sizes("png").tolist() == [3, 2**31 - 1]
