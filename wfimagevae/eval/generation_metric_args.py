"""Flags of the command that evaluates generators. No torch here."""

from wfimagevae.engine.args import Parser, non_negative_int, positive_int
from wfimagevae.generate.generation_args import POINT_SETS, add_sampling_args

SET_METRICS = ("fid", "kid", "precision_recall", "energy_distance")
DRAWN_SETS = ("shapes", "cifar10", *POINT_SETS)


def add_reference_args(parser: Parser) -> None:
    """Declares the reference set."""
    group = parser.add_argument_group("reference", "what generated samples are compared with")
    group.add_argument(
        "--real_image_dir",
        metavar="PATH",
        help="a folder (searched recursively), a JSON-lines manifest, or an .npz file whose arr_0 "
        "is uint8 (N, H, W, 3)",
    )
    group.add_argument(
        "--dataset",
        choices=DRAWN_SETS,
        help="instead: fresh shapes or points, or the training images of CIFAR-10",
    )
    group.add_argument("--data_path", metavar="PATH", help="folder that holds cifar-10-batches-py")
    group.add_argument(
        "--num_real",
        type=positive_int,
        metavar="N",
        help="samples of --dataset; not given: as many as are generated (cifar10: all)",
    )
    group.add_argument(
        "--resolution",
        type=positive_int,
        metavar="PX",
        help="resize the reference's shorter side to this; not given: native size",
    )
    group.add_argument(
        "--crop_size",
        type=positive_int,
        metavar="PX",
        help="centre crop after resizing; not given: the resolution",
    )
    group.add_argument(
        "--subset_size",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="only N of the folder's images, evenly spaced over the sorted list; 0: all",
    )


def add_caption_args(parser: Parser) -> None:
    """Declares which captions a flow that takes text is given."""
    group = parser.add_argument_group("captions", "of the reference: prompts of flows with text")
    group.add_argument(
        "--captions",
        default="none",
        metavar="SOURCE",
        help="of --real_image_dir: sidecar (a .txt beside each image), manifest (its field "
        "'caption'), or a file of lines name<TAB>caption; --dataset shapes has its own",
    )
    group.add_argument(
        "--fixed_prompt_prefix",
        default="",
        metavar="TEXT",
        help="set before every caption, with '. ' between them; of flows with text",
    )


def add_set_metric_args(parser: Parser) -> None:
    """Declares the metrics of sets, and where their networks' weights are."""
    group = parser.add_argument_group("metrics")
    group.add_argument(
        "--metric",
        nargs="+",
        choices=SET_METRICS,
        help="what to measure; not given: all, of points the energy distance. That one compares "
        "raw pixels or points, and needs no download",
    )
    group.add_argument(
        "--features",
        choices=("inception", "dinov2"),
        default="inception",
        help="network of fid, kid and precision_recall; published FIDs use inception",
    )
    group.add_argument(
        "--inception_weights", metavar="FILE", help="torch-fidelity's Inception, if not cached"
    )
    group.add_argument(
        "--dinov2_repo", metavar="DIR", help="clone of the DINOv2 code, if torch.hub has none"
    )
    group.add_argument(
        "--dinov2_weights", metavar="FILE", help="weights of its ViT-L/14, with --dinov2_repo"
    )
    group.add_argument(
        "--kid_subset_size", type=positive_int, default=1000, metavar="N", help="samples a subset"
    )
    group.add_argument(
        "--kid_num_subsets", type=positive_int, default=100, metavar="N", help="subsets of KID"
    )
    group.add_argument(
        "--energy_samples",
        type=positive_int,
        default=5000,
        metavar="N",
        help="the energy distance compares at most N samples of each set, chosen at random",
    )


def add_sampling_grid_args(parser: Parser) -> None:
    """Declares the flags of sampling, of which some take several values here."""
    add_sampling_args(parser)
    for name in ("sampler", "steps", "guidance_scale"):
        action = parser.flags()[name]
        action.nargs = "+"
        action.help += "; several: each combination is a row of the table"
    parser.set_defaults(guidance_scale=[1.0])
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--num_images", type=positive_int, default=10_000, metavar="N", help="samples a row"
    )
    group.add_argument(
        "--label_sampling",
        choices=("balanced", "random"),
        default="balanced",
        help="classes or prompts in turn, or drawn for each sample",
    )
    group.add_argument(
        "--mixed_precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="precision of the flow; an autoencoder decodes in fp32",
    )
