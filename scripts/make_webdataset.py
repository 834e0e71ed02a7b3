"""Writes a folder or manifest of images as WebDataset shards, to train on.
Images, classes and captions go into tar files, with an index beside each and a record, shards.json.
A run that was stopped goes on where it was when started again; with other images or options, or
after files, captions or lines of the manifest have changed, it wants another folder.

python scripts/make_webdataset.py --image_path photos --output_dir shards --captions sidecar
torchrun --nproc_per_node 8 scripts/make_webdataset.py --image_path photos --output_dir shards \
    --labels folder --resize 1024
python train_image_ddp.py --image_path "shards/shard-{000000..000099}.tar" ...

Exit status: 0 done; 1 done but for unreadable images, which are listed; 2 an error.
"""

import contextlib
from typing import Literal

from wfimagevae.command_line import parse, run_cli
from wfimagevae.dataset.options import LoaderOptions, WriteOptions
from wfimagevae.options import Options, option


class SourceOptions(Options):
    """images"""

    image_path: str = option(
        ...,
        "folder (searched recursively) or JSON-lines manifest, whose other fields are kept",
        "PATH",
    )
    labels: Literal["none", "folder", "manifest"] = option(
        "none", "classes: none, the first-level sub-folders, or the manifest's label"
    )
    captions: str = option(
        "none",
        "none, sidecar (a .txt beside each image), filename (its words), "
        "manifest (its field 'caption'), or a file of lines name<TAB>caption",
        "SOURCE",
    )
    index_cache_dir: str | None = LoaderOptions.model_fields["index_cache_dir"]


class WebdatasetOptions(SourceOptions, WriteOptions):
    """All flags."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(WebdatasetOptions, argv, __doc__)
    from tqdm import tqdm

    from wfimagevae.dataset.images.image_sets import ImageParts, open_folder
    from wfimagevae.dataset.images.labels import Labels
    from wfimagevae.dataset.shards.write import ShardWriter
    from wfimagevae.dataset.text.captions import Captions
    from wfimagevae.engine.distributed import barrier, world
    from wfimagevae.files import sole_writer
    from wfimagevae.generate.image_folder import list_unreadable

    parts = ImageParts(
        Labels(options.labels),
        Captions(options.captions),
        records=True,
        index_cache_dir=options.index_cache_dir,
    )
    # A process may have one shard more to write than another, which takes what it takes.
    with world("cpu", timeout_minutes=24 * 60) as process, contextlib.ExitStack() as stack:
        writer = ShardWriter(open_folder(options.image_path, parts), options)
        stack.enter_context(sole_writer(writer.folder, process.is_main))
        barrier()  # nobody writes while others look for what is there
        mine = range(process.rank, writer.num_shards, process.size)
        todo = [number for number in mine if not writer.is_done(number)]
        total = min(len(todo) * options.samples_per_shard, len(writer.samples))
        with tqdm(total=total, unit="image", disable=not process.is_main) as bar:
            for number in todo:
                writer.write(number, bar.update)
        barrier()
        record = writer.write_record() if process.is_main else {"unreadable": []}
        list_unreadable(record["unreadable"], process)
    if process.is_main:
        size = sum(shard["bytes"] for shard in record["shards"]) / 1e6
        print(
            f"{record['num_samples']} samples in {len(record['shards'])} shards, {size:.1f} MB, "
            f"in {writer.folder}; {len(record['unreadable'])} images left out"
        )
    return 1 if record["unreadable"] else 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
