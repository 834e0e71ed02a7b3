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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from wfimagevae.command_line import parse, run_cli
from wfimagevae.options import Count, Options, option

ORDER_SAMPLES = 100_000_000
A_FOLDER, A_SHARD = 1000, 10_000  # samples
READS = 100_000
Part = Literal["folder", "manifest", "shards", "order"]


class DataBenchOptions(Options):
    """what is measured"""

    num_samples: Count = option(2_000_000, "files, lines and samples in shards", "N")
    only: list[Part] = option([*get_args(Part)], "these parts", "PART")


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


def timed(part: str, work: Callable[[int], object]) -> dict:
    """A row with the CPU time of ``work(position)``, mean, in microseconds."""
    start = time.process_time()
    for position in range(READS):
        work(position)
    return {"part": part, "us": round(1e6 * (time.process_time() - start) / READS, 2)}


def parts(place: Path, labels: str = "none", captions: str = "none") -> Any:
    """What to read of images; their list is kept beside them."""
    from wfimagevae.dataset.images.image_sets import ImageParts
    from wfimagevae.dataset.images.labels import Labels
    from wfimagevae.dataset.text.captions import Captions

    cache = place.parent / "cache"
    return ImageParts(Labels(labels), Captions(captions), index_cache_dir=cache)


def folder(place: Path, count: int) -> list[dict]:
    from wfimagevae.dataset.images.image_sets import open_folder

    for i in range(count):
        if i % A_FOLDER == 0:
            (place / name(i)).parent.mkdir(parents=True)
        os.close(os.open(place / name(i), os.O_CREAT))
    work = partial(open_folder, place, parts(place, "folder"))
    return [listed(f"folder, {how}", work)[0] for how in ("first time", "again")]


def manifest(place: Path, count: int) -> list[dict]:
    from wfimagevae.dataset.images.image_sets import open_folder

    numbers = random.Random(0).sample(range(count), count)
    with open(place / "list.jsonl", "w") as file:
        for i in numbers:
            line = {"path": name(i), "label": f"class {i % A_FOLDER}", "caption": f"picture {i}"}
            file.write(json.dumps(line) + "\n")
    del numbers
    work = partial(open_folder, place / "list.jsonl")
    kinds = {"paths": parts(place), "classes, captions": parts(place, "manifest", "manifest")}
    return [listed(f"manifest, {kind}", partial(work, kinds[kind]))[0] for kind in kinds]


def listed(part: str, work: Callable[[], Any], names: str = "entries") -> tuple[dict, Any]:
    """A row about the samples that ``work()`` lists, and these, whose images hold ``names``."""
    found, peak, seconds = measured(work)
    own = getattr(found.images, names).text.nbytes
    own += 0 if found.captions is None else found.captions._lines.text.nbytes
    return row(part, len(found), peak, own, seconds), found


def shards(place: Path, count: int) -> list[dict]:
    from PIL import Image

    from wfimagevae.dataset.order import ShardOrder
    from wfimagevae.dataset.shards.read import open_shards

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
    plain, both, rows = parts(place), parts(place, "manifest", "manifest"), []
    for how, wanted in (("first time", plain), ("again", plain), ("classes, captions", both)):
        line, found = listed(f"shards, {how}", partial(open_shards, [place], wanted), "_keys")
        rows.append(line)
    order = ShardOrder(found.shard, 1, 16)
    read = lambda position: found.images.file(order.index(position))  # noqa: E731
    timed("warm", read)
    return [*rows, timed("shards, a sample read", read)]


def order(place: Path, count: int) -> list[dict]:
    import numpy as np

    from wfimagevae.dataset.arrays import PackedTexts
    from wfimagevae.dataset.order import ShuffledOrder

    def build() -> tuple[ShuffledOrder, PackedTexts]:
        ends = np.arange(24, 24 * (ORDER_SAMPLES + 1), 24)
        return ShuffledOrder(ORDER_SAMPLES, 1), PackedTexts(np.ones(ends[-1], np.uint8), ends)

    (shuffle, texts), peak, seconds = measured(build)
    rows = [row("order and paths", ORDER_SAMPLES, peak, texts.text.nbytes, seconds)]
    path = lambda position: texts[shuffle.index(position)]  # noqa: E731
    return [*rows, timed("order, index", shuffle.index), timed("order, path", path)]


def row(part: str, count: int, peak: int, own: int, seconds: float) -> dict:
    figures = {"bytes": round((peak - own) / count, 1), "names": round(own / count, 1)}
    return {"part": part, "samples": count, **figures, "seconds": round(seconds, 1)}


def main(argv: list[str] | None = None) -> None:
    options = parse(DataBenchOptions, argv, __doc__)
    works = {work.__name__: work for work in (folder, manifest, shards, order)}
    for part in options.only:
        context = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(1, context) as pool:
            samples = Path(place) / part
            samples.mkdir()
            for figures in pool.submit(works[part], samples, options.num_samples).result():
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
