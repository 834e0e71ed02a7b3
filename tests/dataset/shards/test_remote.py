import functools
import http.server
import multiprocessing
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.dataset.conftest import draw
from tests.dataset.reading import read_by
from tests.dataset.shard_files import dataset, open_set, png, write_shards, written_shards
from tests.refusals import refused
from wfimagevae.dataset import DataError, TrainLoader
from wfimagevae.dataset.images.decode import open_rgb
from wfimagevae.dataset.shards import store as shard_store
from wfimagevae.dataset.shards.store import ShardFile, ShardStore


class Server:
    """A folder served over HTTP, with failures on demand."""

    def __init__(self, folder):
        self.requests, self.tokens = [], []
        self.failures = {}  # path -> how many requests fail first
        self.cut = {}  # path -> how many answers break off
        self.redirects = {}  # path -> headers of an answer that leads elsewhere
        self.token = None
        self.head_refused = 0
        self.retry_after = "0"  # seconds that a failure asks to wait
        handler = functools.partial(_Handler, self, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def count(self, method):
        return Counter(path for verb, path in self.requests if verb == method)

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, owner, *args, **options):
        self.owner = owner
        super().__init__(*args, **options)

    def log_message(self, *_):
        pass

    def send_head(self):
        owner, path = self.owner, self.path
        owner.requests.append((self.command, path))
        owner.tokens.append(self.headers.get("Authorization"))
        if self.command == "HEAD" and owner.head_refused:
            return self.send_error(owner.head_refused)
        if owner.token and owner.tokens[-1] != f"Bearer {owner.token}":
            return self.send_error(401)
        if path in owner.redirects:
            return self.answer(302, owner.redirects[path])
        if self.command == "GET" and owner.failures.get(path, 0):
            owner.failures[path] -= 1
            return self.answer(503, {"Retry-After": owner.retry_after})
        return super().send_head()

    def answer(self, code, headers):
        self.send_response(code)
        for name, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def copyfile(self, source, target):
        if self.owner.cut.get(self.path, 0):
            self.owner.cut[self.path] -= 1
            target.write(source.read(700))
            return
        super().copyfile(source, target)


@pytest.fixture
def serve(tmp_path):
    """Maker of a server of a folder with one shard of two samples."""
    running = []

    def make(name="served"):
        write_shards(tmp_path / name, [2])
        running.append(Server(tmp_path / name))
        return running[-1]

    yield make
    for server in running:
        server.close()


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(shard_store, "_RETRIES", 3)
    monkeypatch.setattr(shard_store, "_RETRY_DELAY", 0.01)


@pytest.fixture
def fetch(tmp_path):
    """Maker of the samples of shards, whose copies go to ``fetched``."""
    return functools.partial(open_set, cache_dir=str(tmp_path / "fetched"))


def copies(tmp_path):
    return sorted(path.name for path in (tmp_path / "fetched").glob("*.tar"))


def test_failing_server_is_tried_again_and_each_shard_fetched_once(
    tmp_path, server, fetch, monkeypatch
):
    write_shards(tmp_path / "served", [3, 4])
    server.failures["/s-000.tar"], server.retry_after = 2, "7"
    server.cut["/s-001.tar"] = 1
    waits = []
    monkeypatch.setattr(shard_store.time, "sleep", waits.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    found = fetch(f"{server.url}/s-{{000..001}}.tar", with_captions=True)
    assert waits == [7, 7, 0.01]  # where the server says how long, else by itself
    local = open_set(str(tmp_path / "served"))
    for i in range(7):
        assert found.images.content(i) == local.images.content(i)
    draw(TrainLoader(dataset(found), 2, read_by(1)), 7)
    assert server.count("GET") == {"/s-000.tar": 3, "/s-001.tar": 2, "/shards.json": 1}
    assert len(copies(tmp_path)) == 2
    fetch(f"{server.url}/s-{{000..001}}.tar").images.content(6)
    assert server.count("GET")["/s-000.tar"] == 3  # only asked whether it has changed


def test_changed_remote_shard_is_fetched_and_indexed_anew(tmp_path, server, fetch):
    url = f"{server.url}/s-000.tar"
    assert len(fetch(url)) == 2
    (path,) = write_shards(tmp_path / "served", [3])
    os.utime(path, (1, 1))
    assert len(fetch(url)) == 3


@pytest.mark.parametrize("code", [403, 405])
def test_server_that_answers_only_who_takes_the_file_is_enough(server, fetch, code):
    server.head_refused = code
    for _ in range(2):
        assert len(fetch(f"{server.url}/s-000.tar")) == 2
    assert server.count("GET")["/s-000.tar"] == 1


def test_hub_files_are_known_by_the_hash_that_the_hub_names(tmp_path, server, monkeypatch):
    """The Hub's own answer redirects to an address that changes each time."""
    monkeypatch.setenv("HF_TOKEN", "hub-token")
    monkeypatch.setattr(shard_store, "_HF_HOSTS", ("127.0.0.1",))
    url = f"{server.url}/a.tar"
    monkeypatch.setattr(shard_store, "_hub_url", lambda hf: url)
    store, stamps = ShardStore(tmp_path), []
    for name in (url, url, "hf://datasets/some/one/a.tar"):
        signed = f"http://127.0.0.1:1/signed-{len(stamps)}"
        facts = {"Content-Length": str(40 + len(stamps)), "X-Linked-ETag": '"abc"'}
        server.redirects["/a.tar"] = {"Location": signed} | facts
        stamps.append(store.stamp(name))
    assert stamps == [['"abc"']] * 3 and server.tokens == ["Bearer hub-token"] * 3


def test_each_token_goes_to_its_own_servers(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hub")
    monkeypatch.setenv("WDS_TOKEN", "other")
    hosts = {"https://huggingface.co/x": "hub", "https://cdn-lfs.hf.co/x": "hub"}
    hosts |= {"https://evilhuggingface.co/x": "other", "https://a.b/huggingface.co": "other"}
    assert {url: shard_store._token(url) for url in hosts} == hosts


def test_what_stays_broken_is_one_clear_line_without_secrets(server, fetch):
    server.failures["/s-000.tar?signature=secret"] = 9
    for place, message in (
        (f"{server.url}/s-000.tar", r"s-000.tar, tried 4 times: HTTP 503"),
        ("http://127.0.0.1:9/s-000.tar", r"127.0.0.1:9/s-000.tar, .*: .*refused"),
        (f"{server.url}/gone.tar", "HTTP 404"),
    ):
        server.requests.clear()
        with pytest.raises(DataError, match=message) as error:
            fetch(f"{place}?signature=secret")
        assert "secret" not in str(error.value)
    assert not server.count("GET")  # a shard that does not exist is not asked for again and again


def test_token_goes_out_as_a_header_and_is_in_no_process_arguments(
    tmp_path, server, fetch, monkeypatch
):
    server.token = "sesame-4711"
    refused(r"HTTP 401.*WDS_TOKEN", fetch, f"{server.url}/s-000.tar", error=DataError)
    monkeypatch.setenv("WDS_TOKEN", "sesame-4711")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("others see arguments"))
    assert len(fetch(f"{server.url}/s-000.tar")) == 2
    assert server.tokens[-1] == "Bearer sesame-4711"


def test_token_does_not_follow_a_redirect_to_another_host(tmp_path, serve, fetch, monkeypatch):
    server, other = serve(), serve("other")
    monkeypatch.setenv("WDS_TOKEN", "sesame-4711")
    other.redirects["/s-000.tar"] = {"Location": f"{server.url}/s-000.tar"}
    assert len(fetch(f"{other.url}/s-000.tar")) == 2
    assert server.requests and set(server.tokens) == {None}
    assert set(other.tokens) == {"Bearer sesame-4711"}


def test_pipes_go_through_the_webdataset_library(tmp_path, fetch):
    (path,) = write_shards(tmp_path / "shards", [3])
    found = fetch(f"pipe:cat {path}", with_labels=True)
    assert found.images.content(2) == open_set(str(path)).images.content(2)
    refused("tried 4 times", fetch, f"pipe:cat {path}.gone", error=DataError)


def test_oldest_copies_make_room_and_are_fetched_again(tmp_path, server):
    paths = write_shards(tmp_path / "served", [2, 2, 2])
    room = 2 * paths[0].stat().st_size
    store = ShardStore(tmp_path / "fetched", max_bytes=room)
    urls = [f"{server.url}/{path.name}" for path in paths]
    for url in (urls[0], urls[1], urls[0], urls[2]):
        os.close(store.open(ShardFile(url, [])))
        time.sleep(0.02)  # file times tell which was used last
    assert copies(tmp_path) == sorted(store.path(ShardFile(urls[i], [])).name for i in (0, 2))
    os.close(store.open(ShardFile(urls[1], [])))
    assert server.count("GET")["/s-001.tar"] == 2


def test_processes_that_want_one_shard_fetch_it_once(tmp_path, server):
    write_shards(tmp_path / "served", [200])
    store = ShardStore(tmp_path / "fetched")
    fork = multiprocessing.get_context("fork")
    shard = ShardFile(f"{server.url}/s-000.tar", [])
    jobs = [fork.Process(target=store.open, args=(shard,)) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(30)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert server.count("GET")["/s-000.tar"] == 1
    left = {path.suffix for path in (tmp_path / "fetched").iterdir()}
    assert left <= {".tar", ".lock"}


def test_removed_shards_are_not_held_open_beyond_those_that_are_read(tmp_path, server):
    paths = write_shards(tmp_path / "served", [2] * 8)
    words = {"cache_dir": str(tmp_path / "fetched"), "shuffle_shards": 1}
    words["cache_gb"] = 2 * paths[0].stat().st_size / 1e9
    images = open_set(f"{server.url}/s-{{000..007}}.tar", **words).images
    for i in range(16):
        images.content(i)
        places = map(os.path.realpath, Path("/proc/self/fd").iterdir())
        held = {place for place in places if str(tmp_path / "fetched") in place}
        assert len(held | {str(path) for path in (tmp_path / "fetched").glob("*.tar")}) <= 3


def test_shard_removed_as_soon_as_it_is_fetched_is_read_all_the_same(
    tmp_path, server, fetch, monkeypatch
):
    """As other processes do where a small cache has no room for what each of them reads."""
    write_shards(tmp_path / "served", [3, 2])
    monkeypatch.setattr(ShardStore, "_make_room", lambda self, newest: newest.unlink())
    found = fetch(f"{server.url}/s-{{000..001}}.tar", with_captions=True)
    assert [found.captions.all(i) for i in range(5)] == [[f"caption {i}"] for i in range(5)]
    grays = [open_rgb(found.images.file(i)).getpixel((0, 0))[0] for i in range(5)]
    assert grays == [3 * i + 1 for i in range(5)] and not copies(tmp_path)
    assert server.count("GET")["/s-000.tar"] == 2  # to index it, and to read it


def test_folder_that_cannot_be_written_ends_training_and_counts_as_no_damage(tmp_path, server):
    found = open_set(f"{server.url}/s-000.tar", cache_dir=str(tmp_path / "fetched"))
    loader = TrainLoader(dataset(found), 2, read_by(0))
    shutil.rmtree(tmp_path / "fetched")
    (tmp_path / "fetched").write_text("")
    refused(r"cannot keep shards in .*fetched: .*--wds_cache_dir", next, loader, error=DataError)


def test_what_a_killed_process_left_half_fetched_is_removed(tmp_path, server, fetch):
    store = ShardStore(tmp_path / "fetched")
    shard = ShardFile(f"{server.url}/s-000.tar", [])
    path = store.path(shard)
    path.parent.mkdir()
    (path.parent / f".{path.name}.x7ab.tmp").write_bytes(b"half")
    (path.parent / ".other.tar.x7ab.tmp").write_bytes(b"of another")
    os.close(store.open(shard))
    left = sorted(file.name for file in path.parent.iterdir())
    assert left == sorted([".other.tar.x7ab.tmp", f".{path.name}.lock", path.name])


def test_names_of_any_alphabet_are_fetched(tmp_path, server, fetch):
    write_shards(tmp_path / "served", [2], name="übung ж")
    assert len(fetch(f"{server.url}/übung ж-000.tar")) == 2
    assert len(fetch(f"{server.url}/%C3%BCbung%20%D0%B6-000.tar")) == 2


def test_written_shards_are_known_before_they_are_fetched_whatever_types_are_asked_for(
    tmp_path, server, fetch
):
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(png(3 * i + 1))
    written_shards(tmp_path / "images", tmp_path / "served" / "written")
    for key in ("png;jpg", "jpg;jpeg;png;webp;bmp;tiff"):
        found = fetch(f"{server.url}/written/shard-000000.tar", image_key=key)
        assert len(found) == 3 and copies(tmp_path) == []
    assert len(found.images.content(0)) and len(copies(tmp_path)) == 1


@pytest.mark.parametrize("count", [5, 3])
def test_shard_replaced_under_an_old_record_gives_no_images_with_other_captions(
    tmp_path, server, fetch, count, caplog
):
    def captioned(name, first, number):
        (tmp_path / name).mkdir()
        for i in range(number):
            (tmp_path / name / f"{i}.png").write_bytes(png(3 * (first + i) + 1))
            (tmp_path / name / f"{i}.txt").write_text(f"caption {first + i}")
        return Path(written_shards(tmp_path / name, tmp_path / f"{name}s", captions="sidecar"))

    def shown():
        found = fetch(url, with_captions=True, index_cache_dir=tmp_path / "index")
        grays = [int(open_rgb(found.images.file(i)).getpixel((0, 0))[0]) for i in range(len(found))]
        return {(gray - 1) // 3: found.captions.all(i)[0] for i, gray in enumerate(grays)}

    old, new, served = captioned("old", 10, 3), captioned("new", 20, count), tmp_path / "served"
    for file in ("shards.json", "shard-000000.index.npz"):
        shutil.copy(old / file, served / file)
    shutil.copy(new / "shard-000000.tar", served)
    sizes = {(folder / "shard-000000.tar").stat().st_size for folder in (old, served)}
    same_size = len(sizes) == 1
    assert same_size == (count == 3)  # a tar is padded, so that its size says little
    url = f"{server.url}/shard-000000.tar"
    if same_size:
        for _ in range(2):  # also where the index comes from the cache
            refused(r"is not the file that the shards.json beside it", shown, error=DataError)
        (served / "shards.json").unlink()
    assert shown() == {20 + i: f"caption {20 + i}" for i in range(count)}
    assert ("index is left aside" in caplog.text) == (not same_size)
