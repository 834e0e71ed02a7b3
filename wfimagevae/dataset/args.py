"""Flags of the training and validation data. No torch here."""

from argparse import ArgumentParser

from wfimagevae.dataset.stream_args import add_stream_args


def add_data_args(parser: ArgumentParser) -> None:
    """Declares the flags of `TrainImageDataset` and `TrainLoader` (batch size and seed aside)."""
    group = parser.add_argument_group("data", "training images")
    group.add_argument(
        "--image_path",
        required=True,
        nargs="+",
        metavar="PATH",
        help="folder of jpg, jpeg, png, webp and bmp files, scanned recursively; JSON-lines "
        "manifest with a path under image_path, path or target, relative to the manifest; or "
        "WebDataset shards: a .tar file, brace pattern, glob, folder of .tar files, URL or "
        "pipe:COMMAND; or several of these",
    )
    group.add_argument(
        "--use_manifest",
        action="store_true",
        help="insist that --image_path is a manifest (a file is always read as one)",
    )
    group.add_argument(
        "--resolution",
        type=int,
        default=1024,
        metavar="PX",
        help="height and width of a training crop; smaller images are left out, with a warning",
    )
    group.add_argument(
        "--train_crop",
        choices=("native", "resized", "center"),
        default="native",
        help="random crop at the image's own scale, or after resizing its short side to "
        "--resolution (shows whole scenes); center: the middle after resizing, enlarged too, as "
        "class-conditional ImageNet models see it",
    )
    add_loader_args(group, workers=8)
    add_stream_args(parser.add_argument_group("images at scale", "shards, filters, buckets"))


def add_loader_args(group, workers: int) -> None:
    """Declares how `TrainLoader` reads.

    Args:
        group: Where the flags go.
        workers: Default number of reading processes per rank.
    """
    group.add_argument(
        "--dataset_num_worker",
        type=int,
        default=workers,
        metavar="N",
        help="processes per rank that read data; 0 reads in the training process",
    )
    group.add_argument(
        "--dataloader_prefetch_factor",
        type=int,
        default=2,
        metavar="N",
        help="batches that each of these processes prepares ahead",
    )
    group.add_argument(
        "--disable_persistent_workers",
        action="store_true",
        help="accepted for old scripts; training reads one endless stream: no worker restarts",
    )
    group.add_argument(
        "--index_cache_dir",
        metavar="DIR",
        help="where lists of images are kept between runs "
        "(default: wfimagevae/index under $XDG_CACHE_HOME or ~/.cache)",
    )


def add_eval_data_args(parser: ArgumentParser) -> None:
    """Declares the flags of the images that training validates on."""
    group = parser.add_argument_group("validation data", "images that training never sees")
    group.add_argument(
        "--eval_image_path",
        nargs="+",
        metavar="PATH",
        help="as for --image_path; not needed with --eval_steps 0",
    )
    group.add_argument(
        "--eval_resolution",
        type=int,
        default=1024,
        metavar="PX",
        help="the short side is resized to this",
    )
    group.add_argument(
        "--eval_crop_size",
        type=int,
        default=1024,
        metavar="PX",
        help="height and width of the centre crop taken after that",
    )
    group.add_argument(
        "--eval_batch_size",
        type=int,
        default=2,
        metavar="N",
        help="images per batch and rank",
    )
    group.add_argument(
        "--eval_subset_size",
        type=int,
        default=64,
        metavar="N",
        help="images used, evenly spaced over the sorted list; 0 uses all",
    )
    group.add_argument(
        "--eval_num_image_log",
        type=int,
        default=8,
        metavar="N",
        help="reconstructions written beside their originals at each validation",
    )
