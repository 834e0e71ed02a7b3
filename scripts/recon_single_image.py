"""Reconstructs one image and prints the PSNR.

python scripts/recon_single_image.py --from_pretrained results/my-vae \
    --image_path photo.jpg --rec_path reconstruction.png
"""

from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, positive_int
from wfimagevae.engine.cli import run_cli
from wfimagevae.generate.autoencoder_args import (
    add_compute_args,
    add_model_args,
    add_tile_arg,
    model_source,
)


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Reconstruct one image and print the PSNR of its 8-bit pixels (before a .jpg "
        "compresses them)."
    )
    add_model_args(parser)
    group = parser.add_argument_group("image")
    group.add_argument("--image_path", required=True, metavar="FILE", help="the original")
    group.add_argument(
        "--rec_path",
        required=True,
        metavar="FILE",
        help="the reconstruction; .png and .webp are lossless, .jpg is not",
    )
    group.add_argument(
        "--resolution",
        type=positive_int,
        metavar="PX",
        help="resize the shorter side to this and crop the centre; not given: native size",
    )
    add_tile_arg(group)
    add_compute_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = build_parser().parse_args(argv)

    import torch

    from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb
    from wfimagevae.dataset.images.transforms import center_crop, to_signed_unit
    from wfimagevae.engine.device import enable_fast_kernels, resolve_device
    from wfimagevae.eval.psnr import psnr
    from wfimagevae.generate.autoencoders import as_autoencoder, load_vae
    from wfimagevae.pictures.pixels import from_uint8, to_uint8, to_unit
    from wfimagevae.pictures.writer import check_extension, save_image

    check_extension(args.rec_path)
    if Path(args.rec_path).resolve() == Path(args.image_path).resolve():
        raise ValueError(f"--rec_path {args.rec_path} is the original; choose another file")
    device = resolve_device(args.device)
    if note := enable_fast_kernels(device):
        print(note)
    try:
        image = open_rgb(args.image_path, short_side=args.resolution)
    except UnreadableImage as error:
        raise ValueError(f"--image_path {args.image_path}: {error}") from None
    real = to_signed_unit(torch.from_numpy(center_crop(image, args.resolution)))[None]
    vae = load_vae(**model_source(args))
    autoencoder = as_autoencoder(vae, device, args.tile_size)
    pixels = to_uint8(autoencoder.reconstruct(real, args.mixed_precision)).cpu()
    save_image(args.rec_path, pixels[0])
    decibels = psnr(to_unit(real), to_unit(from_uint8(pixels))).item()
    height, width = pixels.shape[-2:]
    print(f"{args.rec_path}: {width}x{height}, PSNR {decibels:.2f} dB")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
