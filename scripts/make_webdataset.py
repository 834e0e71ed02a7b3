"""Writes a folder or manifest of images as WebDataset shards, to train on.

python scripts/make_webdataset.py --image_path photos --output_dir shards --captions sidecar
torchrun --nproc_per_node 8 scripts/make_webdataset.py --image_path photos --output_dir shards \
    --labels folder --resize 1024
python train_image_ddp.py --image_path "shards/shard-{000000..000099}.tar" ...
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, add_switch, non_negative_int, positive_int
from wfimagevae.engine.cli import run_cli


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Write images, classes and captions into tar shards, with an index beside "
        "each and a record, shards.json. Runs under torchrun, too. A run that was stopped goes on "
        "where it was when started again; with other images or options, or after files, captions "
        "or lines of the manifest have changed, it wants another folder.",
        epilog="Exit status: 0 done; 1 done but for unreadable images, which are listed; "
        "2 an error.",
    )
    _add_image_args(parser.add_argument_group("images"))
    _add_output_args(parser.add_argument_group("output"))
    return parser


def _add_image_args(group) -> None:
    group.add_argument(
        "--image_path",
        required=True,
        metavar="PATH",
        help="folder (searched recursively) or JSON-lines manifest, whose other fields are kept",
    )
    group.add_argument(
        "--labels",
        choices=("none", "folder", "manifest"),
        default="none",
        help="classes: none, the first-level sub-folders, or the manifest's label",
    )
    group.add_argument(
        "--captions",
        default="none",
        metavar="SOURCE",
        help="none, sidecar (a .txt beside each image), manifest (its field 'caption'), or a file "
        "of lines name<TAB>caption",
    )
    group.add_argument(
        "--index_cache_dir",
        metavar="DIR",
        help="where lists of images are kept between runs "
        "(default: wfimagevae/index under $XDG_CACHE_HOME or ~/.cache)",
    )


def _add_output_args(group) -> None:
    group.add_argument("--output_dir", required=True, metavar="DIR", help="where the shards go")
    group.add_argument(
        "--samples_per_shard",
        type=positive_int,
        default=4096,
        metavar="N",
        help="samples a shard; processes share out whole shards",
    )
    group.add_argument(
        "--resize",
        type=non_negative_int,
        default=0,
        metavar="PX",
        help="shrink larger images to this short side; 0: none",
    )
    group.add_argument(
        "--format",
        choices=("keep", "jpg", "png", "webp"),
        default="keep",
        help="keep copies files as they are, but for those that are shrunk",
    )
    group.add_argument(
        "--quality",
        type=positive_int,
        default=95,
        metavar="Q",
        help="of jpg and webp files that are encoded anew, 1 to 100",
    )
    add_switch(group, "--shuffle", True, "mix the order of images, else it is that of their paths")
    group.add_argument("--seed", type=int, default=1234, metavar="N", help="of that order")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = build_parser().parse_args(argv)

    from tqdm import tqdm

    from wfimagevae.dataset.images.image_sets import FolderOptions, open_folder
    from wfimagevae.dataset.images.labels import Labels
    from wfimagevae.dataset.shards.write import ShardWriter, WriteOptions
    from wfimagevae.dataset.text.captions import Captions
    from wfimagevae.engine.distributed import barrier, world

    source = FolderOptions(
        Labels(args.labels),
        Captions(args.captions),
        with_records=True,
        index_cache_dir=args.index_cache_dir,
    )
    seed = args.seed if args.shuffle else None
    options = WriteOptions(args.samples_per_shard, args.resize, args.format, args.quality, seed)
    folder = Path(args.output_dir).expanduser()
    # A process may have one shard more to write than another, which takes what it takes.
    with world("cpu", timeout_minutes=24 * 60) as here:
        writer = ShardWriter(open_folder(args.image_path, source), folder, options)
        if here.is_main:
            writer.remove_leftovers()
        barrier()  # nobody writes while others look for what is there
        mine = range(here.rank, writer.num_shards, here.size)
        todo = [number for number in mine if not writer.is_done(number)]
        total = min(len(todo) * options.samples_per_shard, len(writer.found))
        with tqdm(total=total, unit="image", disable=not here.is_main) as bar:
            for number in todo:
                writer.write(number, bar.update)
        barrier()
        record = writer.write_record() if here.is_main else None
    if record is None:
        return 0
    for name, reason in record["unreadable"]:
        print(f"unreadable: {name}: {reason}", file=sys.stderr)
    size = sum(shard["bytes"] for shard in record["shards"])
    print(
        f"{record['num_samples']} samples in {len(record['shards'])} shards, {size / 1e6:.1f} MB, "
        f"in {folder}; {len(record['unreadable'])} images left out"
    )
    return 1 if record["unreadable"] else 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
