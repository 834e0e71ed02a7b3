"""Reconstructs every image of a folder.

python scripts/recon_image.py --from_pretrained results/my-vae --real_image_dir photos \
    --generated_image_dir reconstructions --resolution 256
torchrun --nproc_per_node 8 scripts/recon_image.py ...
"""

import sys
from collections.abc import Sequence

from wfimagevae.engine.args import Parser
from wfimagevae.engine.cli import run_cli
from wfimagevae.generate.autoencoder_args import (
    add_compute_args,
    add_image_args,
    add_model_args,
    add_tile_arg,
    model_source,
)


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Reconstruct the images of a folder, keeping relative paths and names.",
        epilog="Exit status: 0 all reconstructed; 1 all but unreadable images, which are listed; "
        "2 an error.",
    )
    add_model_args(parser)
    add_image_args(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--generated_image_dir", required=True, metavar="DIR", help="where reconstructions go"
    )
    group.add_argument(
        "--format",
        choices=("png", "jpg", "webp"),
        default="png",
        help="of the files; png and webp are lossless",
    )
    group.add_argument(
        "--output_origin",
        action="store_true",
        help="also write the originals, as the model saw them, under DIR/origin",
    )
    add_tile_arg(group)
    add_compute_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = build_parser().parse_args(argv)

    from wfimagevae.dataset import ValidImageDataset, valid_loader
    from wfimagevae.engine.device import enable_fast_kernels
    from wfimagevae.engine.distributed import gather_objects, world
    from wfimagevae.eval.folders import check_output_folder, reconstruct_folder
    from wfimagevae.eval.pairs import output_names
    from wfimagevae.generate.autoencoders import as_autoencoder, load_vae
    from wfimagevae.pictures.writer import ImageWriter

    dataset = ValidImageDataset(
        args.real_image_dir, args.resolution, args.crop_size, args.subset_size
    )
    check_output_folder(dataset, args.real_image_dir, args.generated_image_dir)
    names = output_names(dataset.paths, args.format)
    batch_size = args.batch_size if dataset.crop_size else 1
    with world(args.device) as here:
        note = enable_fast_kernels(here.device)
        if note and here.is_main:
            print(note)
        vae = load_vae(**model_source(args))
        loader = valid_loader(dataset, batch_size, args.num_workers, here.rank, here.size)
        with ImageWriter(args.generated_image_dir) as writer:
            unreadable = reconstruct_folder(
                as_autoencoder(vae, here.device, args.tile_size),
                loader,
                names,
                writer,
                args.mixed_precision,
                with_origin=args.output_origin,
                show_progress=here.is_main,
            )
        unreadable = [entry for part in gather_objects(unreadable) for entry in part]
        if here.is_main:
            report(len(dataset), unreadable, args.generated_image_dir)
    return 1 if unreadable else 0


def report(count: int, unreadable: Sequence[tuple[str, str]], folder: str) -> None:
    """Says what was written and what could not be read."""
    print(f"reconstructed {count - len(unreadable)} of {count} images into {folder}")
    for path, reason in sorted(unreadable):
        print(f"unreadable: {path}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
