"""Reconstructs the videos of a folder, keeping relative paths and names.

python legacy/recon_video.py --from_pretrained WF-VAE-L-16Chn --real_video_dir clips \\
    --generated_video_dir reconstructions --num_frames 33 --resolution 256 --enable_tiling
torchrun --nproc_per_node 8 legacy/recon_video.py ...

Exit status: 0 all reconstructed; 1 all but unreadable videos, which are listed; 2 an error.
"""

from collections.abc import Sequence

from clip_options import ClipFolderOptions, OutputOptions, VideoModelOptions
from wfimagevae.command_line import parse, run_cli
from wfimagevae.options import Count, Number, Positive, option


class VideoFolderOptions(VideoModelOptions, ClipFolderOptions, OutputOptions):
    """output"""

    sample_fps: Positive | None = option(
        None, "frames a second of the source, in place of what files say", "F"
    )
    batch_size: Count = option(1, "clips at once, if they are equally long", "N")
    output_origin: bool = option(
        False, "also write the originals, as the model saw them, under DIR/origin"
    )
    contact_sheets: bool = option(False, "also write pictures of frames beside each video")
    tile_overlap_factor: Number | None = option(
        None, "of command lines of the public code; changes nothing, as it does there", "F"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(VideoFolderOptions, argv, __doc__)

    from pathlib import Path

    import torch
    from clip_folder import ClipFolder, read_share, tell_left_out

    from clips import write_clip
    from reconstruction import frame_psnr, open_model, reconstruct, save_contact_sheet, sheet_path
    from wfimagevae.engine.distributed import gather_objects, world
    from wfimagevae.eval.pairs import ORIGIN_FOLDER, output_names
    from wfimagevae.files import sole_writer
    from wfimagevae.pictures.pixels import to_uint8

    dataset, folder = ClipFolder(options), Path(options.generated_video_dir)
    names = output_names(dataset.names, "mp4")
    check_folders(Path(options.real_video_dir).resolve(), folder.resolve())
    left_out: list[tuple[str, str]] = []
    values: list[float] = []

    def write(batch: list) -> None:
        """Reconstructs clips of one shape and writes them."""
        clips = torch.stack([clip.frames for _, clip in batch])
        for (name, (clip, rate)), pixels in zip(batch, reconstruct(model, clips), strict=True):
            target = folder / names[name]
            rate = (options.sample_fps or rate) / options.sample_rate
            write_clip(target, pixels, rate, options.lossless)
            if options.output_origin:
                origin = to_uint8(clip).permute(1, 2, 3, 0)
                write_clip(folder / ORIGIN_FOLDER / names[name], origin, rate, options.lossless)
            if options.contact_sheets:
                save_contact_sheet(sheet_path(target), clip, pixels)
            values.append(frame_psnr(clip, pixels).mean().item())
            print(f"{names[name]}: {len(pixels)} frames, PSNR {values[-1]:.2f} dB")

    with world(options.device) as here, sole_writer(folder, here.is_main):
        model, batch = open_model(options, here.device), []
        for name, clip in read_share(dataset, options.num_workers, here, left_out):
            if not (clip.rate or options.sample_fps):
                left_out.append((name, "it does not say its rate: give --sample_fps"))
                continue
            is_other = batch and batch[0][1].frames.shape != clip.frames.shape
            if is_other or len(batch) == options.batch_size:
                write(batch)
                batch = []
            batch.append((name, clip))
        if batch:
            write(batch)
        missing = tell_left_out(left_out, here)
        values = [value for part in gather_objects(values) for value in part]
        if here.is_main:
            mean = f", mean PSNR {sum(values) / len(values):.2f} dB" if values else ""
            counts = f"{len(values)} of {len(dataset)}"
            print(f"reconstructed {counts} videos into {folder}{mean}")
    return 1 if missing else 0


def check_folders(originals, outputs) -> None:
    """Raises ValueError for folders one of which lies in the other: originals could be lost."""
    if originals in (outputs, *outputs.parents) or outputs in originals.parents:
        raise ValueError(
            f"--generated_video_dir {outputs} and --real_video_dir {originals} lie in each other; "
            "choose another folder"
        )
    if outputs.exists() and not outputs.is_dir():
        raise ValueError(f"--generated_video_dir {outputs} is a file; name a folder")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
