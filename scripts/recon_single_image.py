"""Reconstructs one image and prints the PSNR of its 8-bit pixels, before a .jpg compresses them.

python scripts/recon_single_image.py --from_pretrained results/my-vae \
    --image_path photo.jpg --rec_path reconstruction.png
"""

from pathlib import Path

from wfimagevae.command_line import parse, run_cli
from wfimagevae.generate.options import AutoencoderOptions, TileOptions
from wfimagevae.options import Count, option


class SingleImageOptions(AutoencoderOptions, TileOptions):
    """image"""

    image_path: str = option(..., "the original", "FILE")
    rec_path: str = option(
        ..., "the reconstruction; .png and .webp are lossless, .jpg is not", "FILE"
    )
    resolution: Count | None = option(
        None, "resize the shorter side to this and crop the centre; not given: native size", "PX"
    )


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(SingleImageOptions, argv, __doc__)

    import torch

    from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb
    from wfimagevae.dataset.images.transforms import center_crop
    from wfimagevae.dataset.protocol import to_signed_unit
    from wfimagevae.engine.device import use_device
    from wfimagevae.eval.psnr import psnr
    from wfimagevae.generate.autoencoders import load_autoencoder
    from wfimagevae.pictures.pixels import from_uint8, to_uint8, to_unit
    from wfimagevae.pictures.writer import check_extension, save_image

    target = options.rec_path
    check_extension(target)
    if Path(target).resolve() == Path(options.image_path).resolve():
        raise ValueError(f"--rec_path {target} is the original; choose another file")
    try:
        image = open_rgb(options.image_path, short_side=options.resolution)
    except UnreadableImage as error:
        raise ValueError(f"--image_path {options.image_path}: {error}") from None
    real = to_signed_unit(torch.from_numpy(center_crop(image, options.resolution)))[None]
    autoencoder = load_autoencoder(options, use_device(options.device), options.tile_size)
    pixels = to_uint8(autoencoder.reconstruct(real, options.mixed_precision)).cpu()
    save_image(target, pixels[0])
    decibels = psnr(to_unit(real), to_unit(from_uint8(pixels))).item()
    height, width = pixels.shape[-2:]
    print(f"{target}: {width}x{height}, PSNR {decibels:.2f} dB")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
