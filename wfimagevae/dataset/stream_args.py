"""Flags of training data at scale: shards, filters, buckets, several sets. No torch here."""


def add_stream_args(group) -> None:
    """Declares what `task.image_data` reads besides the path of the data.

    Args:
        group: Where the flags go.
    """
    group.add_argument(
        "--data_weights",
        type=float,
        nargs="+",
        metavar="W",
        help="share of each of several data paths (default: their sizes)",
    )
    _add_shard_args(group)
    _add_filter_args(group)
    group.add_argument(
        "--aspect_buckets",
        type=int,
        default=0,
        metavar="MULTIPLE",
        help="keep the shapes of images: sides are rounded to this multiple at about the area of "
        "a square of --resolution, the long one at most 4 times the short one (longer images are "
        "cropped), and each batch is of one size; 0: squares",
    )
    group.add_argument(
        "--reduced_min_sizes",
        type=int,
        nargs="+",
        default=[],
        metavar="PX",
        help="train on each image also scaled down to these short sides (--train_crop resized or "
        "center); each batch is of one size",
    )


def _add_shard_args(group) -> None:
    group.add_argument(
        "--wds_image_key",
        default="png;jpg;jpeg;webp",
        metavar="TYPES",
        help="WebDataset shards: types of members that are images, the first that a sample has",
    )
    group.add_argument(
        "--wds_caption_key",
        default="txt",
        metavar="KEY",
        help="and of the caption: a type (each line is one), or json:FIELD",
    )
    group.add_argument(
        "--wds_label_key",
        default="cls",
        metavar="KEY",
        help="and of the class, a number or a name, which is read if --labels is given; shards "
        "that make_webdataset.py wrote have names that go with the numbers, and those count",
    )
    group.add_argument(
        "--wds_json_key",
        default="json",
        metavar="TYPE",
        help="and of the JSON object whose fields the filters look at",
    )
    group.add_argument(
        "--wds_shuffle_shards",
        type=int,
        default=8,
        metavar="N",
        help="shards whose samples are shuffled together; the order of shards is shuffled, too",
    )
    group.add_argument(
        "--wds_cache_dir",
        metavar="DIR",
        help="where shards from servers are kept; a token for the server comes from the "
        "environment, WDS_TOKEN or HF_TOKEN. Shards without the index that make_webdataset.py "
        "writes beside them are all fetched before the first step, to see what is in them. A copy "
        "is fetched anew when the server names another version of it; that of a pipe:, or of a "
        "server that refuses HEAD, stays until you remove it (default: wfimagevae/shards under "
        "$XDG_CACHE_HOME or ~/.cache)",
    )
    group.add_argument(
        "--wds_cache_gb",
        type=float,
        default=0.0,
        metavar="GB",
        help="and their size, at which the one used longest ago is removed and, when it is needed, "
        "fetched again; leave room for twice --wds_shuffle_shards of them, which stay open while "
        "they are read; 0: no limit",
    )


def _add_filter_args(group) -> None:
    group.add_argument(
        "--min_image_size",
        type=int,
        default=0,
        metavar="PX",
        help="leave out images whose short side is smaller",
    )
    group.add_argument(
        "--max_aspect_ratio",
        type=float,
        default=0.0,
        metavar="R",
        help="leave out images whose long side is more than this many short sides; 0: none",
    )
    group.add_argument(
        "--min_similarity",
        type=float,
        metavar="X",
        help="leave out images whose field 'similarity' is less (fields: of the json in a shard, "
        "or of the manifest's line)",
    )
    group.add_argument(
        "--skip_nsfw", action="store_true", help="leave out images whose field 'nsfw' says so"
    )
    group.add_argument(
        "--languages",
        nargs="+",
        default=[],
        metavar="L",
        help="leave out images whose field 'language' is none of these",
    )
    group.add_argument(
        "--skip_words",
        default="",
        metavar="FILE_OR_WORDS",
        help="leave out images whose caption has one of these words: a file of lines, or words "
        "separated by commas",
    )
    group.add_argument(
        "--better_captions",
        metavar="FILE",
        help='captions in place of the data\'s own: JSON lines {"key": ..., "caption": ...}; a key '
        "is an image's path, or the key or the json's name of a sample, and fits one image only, "
        "held-out ones included (absolute path, SHARD::KEY)",
    )
