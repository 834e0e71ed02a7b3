"""Reconstructs one video and prints the PSNR of its 8-bit frames, before a codec compresses them.

python legacy/recon_single_video.py --from_pretrained WF-VAE-L-16Chn --video_path clip.mp4 \\
    --rec_path reconstruction.mp4 --height 336 --width 336 --enable_tiling
"""

from collections.abc import Sequence

from clip_options import FrameOptions, OutputOptions, RateOptions, VideoModelOptions
from wfimagevae.command_line import parse, run_cli
from wfimagevae.options import Count, new_defaults, option


@new_defaults(num_frames=100)
class SingleVideoOptions(VideoModelOptions, FrameOptions, RateOptions, OutputOptions):
    """video"""

    video_path: str = option(..., "the original", "FILE")
    rec_path: str = option(..., "the reconstruction: .mp4, .mov or .mkv", "FILE")
    height: Count = option(336, "of the frames, a multiple of the model's factor", "PX")
    width: Count = option(336, "likewise; the centre of this shape is taken, not stretched", "PX")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    options = parse(SingleVideoOptions, argv, __doc__)

    from clips import check_output, frame_numbers, read_clip, write_clip
    from reconstruction import frame_psnr, open_model, reconstruct, save_contact_sheet, sheet_path
    from wfimagevae.engine.device import use_device

    target, size = options.rec_path, (options.height, options.width)
    check_output(target, options.video_path)
    numbers = frame_numbers(options.num_frames, options.sample_rate)
    clip, source_rate = read_clip(options.video_path, numbers, size)
    if not (options.fps or source_rate):
        raise ValueError(f"{options.video_path} does not say its rate: give --fps")
    rate = options.fps or source_rate / options.sample_rate
    model = open_model(options, use_device(options.device))
    (pixels,) = reconstruct(model, clip[None])
    write_clip(target, pixels, rate, options.lossless)
    save_contact_sheet(sheet_path(target), clip, pixels)
    decibels = frame_psnr(clip, pixels)
    print(
        f"{target}: {len(pixels)} frames of {options.width}x{options.height} at {float(rate):g} a "
        f"second, PSNR {decibels.mean():.2f} dB ({decibels.min():.2f} to {decibels.max():.2f})"
    )
    print(f"contact sheet: {sheet_path(target)}")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
