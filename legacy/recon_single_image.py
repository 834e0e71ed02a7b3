"""Reconstructs one image as a video of one frame, and prints the PSNR of its 8-bit pixels.

python legacy/recon_single_image.py --from_pretrained WF-VAE-L-16Chn --image_path photo.jpg \\
    --rec_path reconstruction.png --short_size 336
"""

from collections.abc import Sequence
from pathlib import Path

from clip_options import VideoModelOptions
from wfimagevae.command_line import parse, run_cli
from wfimagevae.options import Count, option


class SingleImageOptions(VideoModelOptions):
    """image"""

    image_path: str = option(..., "the original", "FILE")
    rec_path: str = option(..., "the reconstruction; .png and .webp are lossless", "FILE")
    short_size: Count = option(
        336, "resize the shorter side to this; sides are cropped to the model's factor", "PX"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    options = parse(SingleImageOptions, argv, __doc__)

    import numpy as np
    import torch

    from clips import crop_and_resize
    from reconstruction import frame_psnr, open_model, reconstruct, save_contact_sheet, sheet_path
    from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb
    from wfimagevae.engine.device import use_device
    from wfimagevae.pictures.writer import check_extension, save_image

    target = options.rec_path
    check_extension(target)
    if Path(target).resolve() == Path(options.image_path).resolve():
        raise ValueError(f"--rec_path {target} is the original; choose another file")
    try:
        pixels = np.array(open_rgb(options.image_path))  # (H, W, 3)
    except UnreadableImage as error:
        raise ValueError(f"--image_path {options.image_path}: {error}") from None
    model = open_model(options, use_device(options.device))
    # The largest sides that the model takes, after resizing.
    image, factor = torch.from_numpy(pixels).permute(2, 0, 1)[None], model.config.spatial_factor
    scale = options.short_size / min(image.shape[2:])
    size = tuple(int(side * scale + 0.5) // factor * factor for side in image.shape[2:])
    if not all(size):
        raise ValueError(f"--short_size {options.short_size} is less than the factor, {factor}")
    clip = crop_and_resize(image, size, options.short_size).transpose(0, 1)  # (3, 1, H, W)
    (pixels,) = reconstruct(model, clip[None])
    save_image(target, pixels[0].permute(2, 0, 1))
    save_contact_sheet(sheet_path(target), clip, pixels)
    decibels = frame_psnr(clip, pixels).item()
    print(f"{target}: {size[1]}x{size[0]}, PSNR {decibels:.2f} dB")
    print(f"contact sheet: {sheet_path(target)}")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
