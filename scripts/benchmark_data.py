"""Memory and time of lists of many samples: folders, manifests, shards and the shuffled order.

    python scripts/benchmark_data.py --num_samples 2000000

Each part is a process of its own. Bytes are the peak of its memory over what it had before, divided
by the samples; the names themselves are told apart. Samples are made in a temporary folder: empty
files, JSON lines, and shards of one-pixel images that are linked under many names. The order is
measured at 100 M samples, whatever --num_samples is.
"""

import io
import json
import multiprocessing
import os
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

from wfimagevae.command_line import parse, run_cli
from wfimagevae.options import Count, Options, option

ORDER_SAMPLES = 100_000_000
A_FOLDER, A_SHARD = 1000, 10_000  # samples
READS = 100_000


class DataBenchOptions(Options):
    """what is measured"""

    num_samples: Count = option(2_000_000, "files, lines and samples in shards", "N")
    only: list[Literal["folder", "manifest", "shards", "order"]] = option(
        ["folder", "manifest", "shards", "order"], "these parts", "PART"
    )


def name(i: int) -> str:
    return f"{i // A_FOLDER:06d}/{i * 0x9E3779B1 % 2**32:08x}.jpg"


def measured(work: Callable[[], object]) -> tuple[object, int, float]:
    """What ``work()`` gives, the peak of memory that it took, in bytes, and seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak up to here
    before, start = resident("VmRSS"), time.perf_counter()
    result = work()
    return result, resident("VmHWM") - before, time.perf_counter() - start


def resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def microseconds(work: Callable[[int], object], positions: Sequence[int]) -> float:
    """CPU time of ``work(position)``, mean."""
    start = time.process_time()
    for position in positions:
        work(position)
    return 1e6 * (time.process_time() - start) / len(positions)


def folder(place: Path, count: int) -> list[dict]:
    from wfimagevae.dataset.images.image_sets import ImageParts
    from wfimagevae.dataset.images.labels import Labels

    for i in range(count):
        if i % A_FOLDER == 0:
            (place / name(i)).parent.mkdir(parents=True)
        os.close(os.open(place / name(i), os.O_CREAT))
    wanted = ImageParts(labels=Labels("folder"), index_cache_dir=place.parent / "cache")
    return [listed(f"folder, {how}", place, wanted) for how in ("first time", "again")]


def manifest(place: Path, count: int) -> list[dict]:
    from wfimagevae.dataset.images.image_sets import ImageParts
    from wfimagevae.dataset.images.labels import Labels
    from wfimagevae.dataset.text.captions import Captions

    numbers = random.Random(0).sample(range(count), count)
    with open(place / "list.jsonl", "w") as file:
        for i in numbers:
            line = {"path": name(i), "label": f"class {i % A_FOLDER}", "caption": f"picture {i}"}
            file.write(json.dumps(line) + "\n")
    del numbers
    everything = ImageParts(Labels("manifest"), Captions("manifest"))
    paths = listed("manifest, paths", place / "list.jsonl", ImageParts())
    return [paths, listed("manifest, classes, captions", place / "list.jsonl", everything)]


def listed(part: str, source: Path, wanted: Any) -> dict:
    from wfimagevae.dataset.images.image_sets import open_folder

    found, peak, seconds = measured(lambda: open_folder(source, wanted))
    own = found.images.entries.text.nbytes
    own += 0 if found.captions is None else found.captions._lines.text.nbytes
    return row(part, len(found), peak, own, seconds)


def shards(place: Path, count: int) -> list[dict]:
    from PIL import Image

    from wfimagevae.dataset.images.image_sets import ImageParts
    from wfimagevae.dataset.images.labels import Labels
    from wfimagevae.dataset.order import ShardOrder
    from wfimagevae.dataset.shards.read import open_shards
    from wfimagevae.dataset.text.captions import Captions

    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "png")
    with tarfile.open(place / "0000.tar", "w") as tar:
        for i in range(A_SHARD):
            for kind, text in (("png", content.getvalue()), ("cls", b"3"), ("txt", b"a picture")):
                member = tarfile.TarInfo(f"{i:012d}.{kind}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
    for i in range(1, count // A_SHARD):
        os.link(place / "0000.tar", place / f"{i:04d}.tar")
    plain = ImageParts(index_cache_dir=place.parent / "cache")
    both = ImageParts(
        Labels("manifest"), Captions("manifest"), index_cache_dir=place.parent / "cache"
    )
    rows = []
    for how, wanted in (("first time", plain), ("again", plain), ("classes, captions", both)):
        found, peak, seconds = measured(lambda wanted=wanted: open_shards([place], wanted))
        own = found.images._keys.text.nbytes
        own += 0 if found.captions is None else found.captions._lines.text.nbytes
        rows.append(row(f"shards, {how}", len(found), peak, own, seconds))
    order = ShardOrder(found.shard, 1, 16)
    read = lambda position: found.images.file(order.index(position))  # noqa: E731
    microseconds(read, range(READS))  # warm
    rows.append({"part": "shards, a sample read", "us": round(microseconds(read, range(READS)), 2)})
    return rows


def order(place: Path, count: int) -> list[dict]:
    import numpy as np

    from wfimagevae.dataset.order import ShuffledOrder
    from wfimagevae.dataset.text.packed_texts import PackedTexts

    def build() -> tuple[ShuffledOrder, PackedTexts]:
        ends = np.arange(24, 24 * (ORDER_SAMPLES + 1), 24)
        return ShuffledOrder(ORDER_SAMPLES, 1), PackedTexts(np.ones(ends[-1], np.uint8), ends)

    (shuffle, texts), peak, seconds = measured(build)
    rows = [row("order and paths", ORDER_SAMPLES, peak, texts.text.nbytes, seconds)]
    for what, work in (("index", shuffle.index), ("path", lambda p: texts[shuffle.index(p)])):
        rows.append({"part": f"order, {what}", "us": round(microseconds(work, range(READS)), 2)})
    return rows


def row(part: str, count: int, peak: int, own: int, seconds: float) -> dict:
    figures = {"bytes": round((peak - own) / count, 1), "names": round(own / count, 1)}
    return {"part": part, "samples": count, **figures, "seconds": round(seconds, 1)}


PARTS = {part.__name__: part for part in (folder, manifest, shards, order)}


def run(part: str, place: Path, count: int) -> list[dict]:
    place.mkdir()
    return PARTS[part](place, count)


def main(argv: list[str] | None = None) -> None:
    options = parse(DataBenchOptions, argv, __doc__)
    for part in options.only:
        context = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(1, context) as pool:
            work = pool.submit(run, part, Path(place) / part, options.num_samples)
            for figures in work.result():
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
