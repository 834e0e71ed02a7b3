"""Reconstructs the images of a folder, keeping relative paths and names.

python scripts/recon_image.py --from_pretrained results/my-vae --real_image_dir photos \
    --generated_image_dir reconstructions --resolution 256
torchrun --nproc_per_node 8 scripts/recon_image.py ...

Exit status: 0 all reconstructed; 1 all but unreadable images, which are listed; 2 an error.
"""

from pathlib import Path
from typing import Literal

from wfimagevae.command_line import parse, run_cli
from wfimagevae.generate.options import AutoencoderOptions, ImageFolderOptions, TileOptions
from wfimagevae.options import option


class ReconstructionOptions(AutoencoderOptions, ImageFolderOptions, TileOptions):
    """output"""

    generated_image_dir: str = option(..., "where reconstructions go", "DIR")
    format: Literal["png", "jpg", "webp"] = option("png", "of the files; png and webp are lossless")
    output_origin: bool = option(
        False, "also write the originals, as the model saw them, under DIR/origin"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(ReconstructionOptions, argv, __doc__)

    from wfimagevae.engine.distributed import world
    from wfimagevae.eval.pairs import ORIGIN_FOLDER, output_names
    from wfimagevae.files import sole_writer
    from wfimagevae.generate.autoencoders import load_autoencoder
    from wfimagevae.generate.image_folder import list_unreadable, open_folder, read_batches
    from wfimagevae.pictures.pixels import to_uint8
    from wfimagevae.pictures.writer import ImageWriter

    # Reconstructions never mix with originals.
    dataset, folder = open_folder(options), Path(options.generated_image_dir)
    source, target = Path(options.real_image_dir).resolve(), folder.resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"--generated_image_dir {folder} is a file; name a folder")
    if source.is_dir() and target.is_relative_to(source):
        raise ValueError(
            f"--generated_image_dir {folder} lies inside --real_image_dir "
            f"{options.real_image_dir}; choose a folder outside"
        )
    homes = {Path(dataset.images.path(i)).parent for i in range(len(dataset.images))}
    for home in sorted(homes):
        if home.resolve().is_relative_to(target):
            raise ValueError(
                f"--generated_image_dir {folder} holds originals, in {home}: they could be "
                "overwritten; choose another folder"
            )
    names, unreadable = output_names(dataset.paths, options.format), []
    with world(options.device) as here, sole_writer(folder, here.is_main):
        autoencoder = load_autoencoder(options, here.device, options.tile_size)
        with ImageWriter(folder) as writer:
            for batch in read_batches(dataset, options, here, "reconstruct", unreadable):
                decoded = autoencoder.reconstruct(batch["image"], options.mixed_precision)
                for path, pixels in zip(batch["path"], to_uint8(decoded).cpu(), strict=True):
                    writer.write(names[path], pixels)
                if options.output_origin:
                    for path, pixels in zip(batch["path"], to_uint8(batch["image"]), strict=True):
                        writer.write(f"{ORIGIN_FOLDER}/{names[path]}", pixels)
        num_unreadable = len(list_unreadable(unreadable, here))
        if here.is_main:
            counts = f"{len(dataset) - num_unreadable} of {len(dataset)}"
            print(f"reconstructed {counts} images into {options.generated_image_dir}")
    return 1 if num_unreadable else 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
