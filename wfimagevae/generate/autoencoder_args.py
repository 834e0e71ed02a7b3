"""Flags that the scripts for reconstruction, evaluation and export share. No torch here."""

import os
from argparse import Namespace

from wfimagevae.engine.args import Parser, add_device_arg, non_negative_int, positive_int

METRICS = ("psnr", "ssim", "lpips", "rfid")
DEFAULT_METRICS = ("psnr", "ssim", "lpips")
# Exit status where a metric's weights are missing and everything else went well.
METRIC_UNAVAILABLE = 3


def add_model_args(parser: Parser) -> None:
    """Declares which autoencoder to load; `wfimagevae.generate.autoencoders.load_vae` reads it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_name", default="WFVAE2Image", metavar="NAME", help="registered name"
    )
    group.add_argument(
        "--from_pretrained",
        metavar="PATH",
        help="Hugging Face folder or hub name, .ckpt file, or folder with .ckpt files",
    )
    group.add_argument(
        "--model_config", metavar="JSON", help="configuration, for a .ckpt that embeds none"
    )
    group.add_argument(
        "--ckpt_path", metavar="CKPT", help=".ckpt file, instead of --from_pretrained"
    )
    group.add_argument(
        "--use_raw_weights",
        action="store_true",
        help="take a .ckpt's raw weights, not their moving average (EMA)",
    )


def model_source(args: Namespace) -> dict:
    """The values of `add_model_args`, as arguments of `load_vae`."""
    names = ("model_name", "from_pretrained", "model_config", "ckpt_path", "use_raw_weights")
    return {name: getattr(args, name) for name in names}


def add_tile_arg(group) -> None:
    """Declares ``--tile_size``."""
    group.add_argument(
        "--tile_size",
        type=positive_int,
        metavar="PX",
        help="encode and decode in overlapping tiles of this size, for images beyond memory",
    )


def add_compute_args(parser: Parser, network: str = "the autoencoder") -> None:
    """Declares device, and precision of a network."""
    group = parser.add_argument_group("computation")
    add_device_arg(group)
    group.add_argument(
        "--mixed_precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help=f"precision of {network}",
    )


def add_image_args(parser: Parser, batch_size: int = 4) -> None:
    """Declares the folder of originals and how they are resized, cropped and batched."""
    group = parser.add_argument_group("images")
    group.add_argument(
        "--real_image_dir",
        required=True,
        metavar="PATH",
        help="originals: a folder (searched recursively) or a JSON-lines manifest",
    )
    group.add_argument(
        "--resolution",
        type=positive_int,
        metavar="PX",
        help="resize the shorter side to this; not given: native size, one image at a time",
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
        help="only N images, evenly spaced over the sorted list; 0: all",
    )
    group.add_argument(
        "--batch_size", type=positive_int, default=batch_size, metavar="N", help="images at once"
    )
    group.add_argument(
        "--num_workers",
        type=non_negative_int,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="reading processes",
    )


def add_metric_args(parser: Parser, default: tuple[str, ...] = DEFAULT_METRICS) -> None:
    """Declares the metrics and where their networks' weights are."""
    group = parser.add_argument_group("metrics")
    group.add_argument(
        "--metric", nargs="+", choices=METRICS, default=list(default), help="what to measure"
    )
    group.add_argument(
        "--lpips_net", choices=("vgg", "alex"), default="vgg", help="backbone of LPIPS"
    )
    group.add_argument(
        "--lpips_weights", metavar="FILE", help="torchvision backbone of LPIPS, if not cached"
    )
    group.add_argument(
        "--inception_weights", metavar="FILE", help="torch-fidelity's Inception, if not cached"
    )
