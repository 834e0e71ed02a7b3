"""Memory and time of lists of many samples: folders, manifests, shards and the shuffled order.

    python scripts/benchmark_data.py --num_samples 2000000

Each part is a process of its own. Bytes are the peak of its memory over what it had before, divided
by the samples; the names themselves are told apart. Samples are made in a temporary folder: empty
files, JSON lines, and shards of one-pixel images that are linked under many names. The order is
measured at 100 M samples, whatever --num_samples is.
"""

import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
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


def show_list(part: str, count: int, own: int, work: Callable[[], Any]) -> Any:
    """Prints what ``work()``, which lists samples, takes; their names have ``own`` bytes each."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak up to here
    before, start = getrusage(RUSAGE_SELF).ru_maxrss, time.perf_counter()
    samples = work()
    peak = 1024 * (getrusage(RUSAGE_SELF).ru_maxrss - before)
    row = {"part": part, "samples": count, "bytes": round(peak / count - own, 1), "names": own}
    print(json.dumps(row | {"seconds": round(time.perf_counter() - start, 1)}), flush=True)
    return samples


def show_time(part: str, work: Callable[[int], object], passes: int = 1) -> None:
    """Prints the CPU time of ``work(position)`` in the last pass, mean, in microseconds."""
    for _ in range(passes):
        start = time.process_time()
        for position in range(READS):
            work(position)
    micros = 1e6 * (time.process_time() - start) / READS
    print(json.dumps({"part": part, "us": round(micros, 2)}), flush=True)


def show_images(part: str, source: Path, count: int, own: int, *kinds: str) -> Any:
    """Lists images, with these kinds of classes and captions; their list is kept beside them."""
    from wfimagevae.dataset.images.image_sets import ImageParts, open_folder
    from wfimagevae.dataset.images.labels import Labels
    from wfimagevae.dataset.shards.read import open_shards
    from wfimagevae.dataset.text.captions import Captions

    labels, captions = kinds or ("none", "none")
    cache = source.parent / "cache"
    wanted = ImageParts(Labels(labels), Captions(captions), index_cache_dir=cache)
    is_shards = source.name == "shards"
    work = partial(open_shards, [source]) if is_shards else partial(open_folder, source)
    return show_list(part, count, own, partial(work, wanted))


def folder(place: Path, count: int) -> None:
    for i in range(count):
        if i % A_FOLDER == 0:
            (place / "folder" / name(i)).parent.mkdir(parents=True)
        os.close(os.open(place / "folder" / name(i), os.O_CREAT))
    for how in ("first time", "again"):
        show_images(f"folder, {how}", place / "folder", count, 19, "folder", "none")


def manifest(place: Path, count: int) -> None:
    source = place / "list.jsonl"
    with source.open("w") as file:
        for i in random.Random(0).sample(range(count), count):
            line = {"path": name(i), "label": f"class {i % A_FOLDER}", "caption": f"image {i:08d}"}
            file.write(json.dumps(line) + "\n")
    show_images("manifest, paths", source, count, 19)
    show_images("manifest, classes, captions", source, count, 19 + 14, "manifest", "manifest")


def shards(place: Path, count: int) -> None:
    from PIL import Image
    from webdataset import TarWriter

    from wfimagevae.dataset.order import ShardOrder

    source, more = place / "shards", {"png": Image.new("RGB", (1, 1)), "cls": 3, "txt": "a picture"}
    source.mkdir()
    with TarWriter(str(source / "0000.tar")) as tar:
        for i in range(A_SHARD):
            tar.write({"__key__": f"{i:012d}"} | more)
    copies = range(1, count // A_SHARD)
    for i in copies:
        os.link(source / "0000.tar", source / f"{i:04d}.tar")
    count = A_SHARD * (1 + len(copies))
    for how in ("first time", "again"):
        show_images(f"shards, {how}", source, count, 12)
    kinds = "manifest", "manifest"
    found = show_images("shards, classes, captions", source, count, 12 + 9, *kinds)
    index = ShardOrder(found.shard, 1, 16).index
    # The first pass warms it up.
    show_time("shards, a sample read", lambda i: found.images.file(index(i)), passes=2)


def order(place: Path, count: int) -> None:
    import numpy as np

    from wfimagevae.dataset.arrays import PackedTexts
    from wfimagevae.dataset.order import ShuffledOrder

    def work() -> tuple[ShuffledOrder, PackedTexts]:
        ends = np.arange(24, 24 * (ORDER_SAMPLES + 1), 24)
        return ShuffledOrder(ORDER_SAMPLES, 1), PackedTexts(np.ones(ends[-1], np.uint8), ends)

    shuffled, paths = show_list("order and paths", ORDER_SAMPLES, 24, work)
    show_time("order, index", shuffled.index)
    show_time("order, path", lambda position: paths[shuffled.index(position)])


def main(argv: list[str] | None = None) -> None:
    options = parse(DataBenchOptions, argv, __doc__)
    works = {work.__name__: work for work in (folder, manifest, shards, order)}
    for part in options.only:
        context = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(1, context) as pool:
            pool.submit(works[part], Path(place), options.num_samples).result()


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
