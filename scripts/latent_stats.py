"""Measures what normalises a model's latents, and writes it into the model's config.json.

python scripts/latent_stats.py --from_pretrained exported/my-vae --real_image_dir photos \
    --resolution 256 --write
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, output_file
from wfimagevae.engine.cli import run_cli
from wfimagevae.generate.autoencoder_args import (
    add_compute_args,
    add_image_args,
    add_model_args,
    model_source,
)


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Mean and standard deviation per latent channel over a folder of images: "
        "shift = mean and scale = 1 / std in config.json, for (z - shift) * scale. Runs under "
        "torchrun, too.",
        epilog="Exit status: 0 done; 1 done but for unreadable images, which are listed; "
        "2 an error.",
    )
    add_model_args(parser)
    add_image_args(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--write",
        action="store_true",
        help="update config.json of the Hugging Face folder that --from_pretrained names",
    )
    group.add_argument(
        "--output_json", type=output_file, metavar="FILE", help="write the statistics to this file"
    )
    add_compute_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = build_parser().parse_args(argv)
    config = Path(args.from_pretrained or "") / "config.json"
    # A .ckpt in the folder would be loaded instead, with the configuration that it embeds.
    is_folder = args.from_pretrained and config.is_file() and not any(config.parent.glob("*.ckpt"))
    if args.write and not is_folder:
        raise ValueError(
            "--write needs --from_pretrained with a Hugging Face folder (config.json, and no .ckpt "
            f"files), got {args.from_pretrained}; make one with scripts/save_hf_model.py"
        )

    from wfimagevae.dataset import ValidImageDataset, valid_loader
    from wfimagevae.engine.device import enable_fast_kernels
    from wfimagevae.engine.distributed import gather_objects, world
    from wfimagevae.eval.report import markdown_table
    from wfimagevae.files import write_json
    from wfimagevae.generate.autoencoders import load_vae
    from wfimagevae.generate.latent_stats import measure_latents, normalization, write_normalization

    dataset = ValidImageDataset(
        args.real_image_dir, args.resolution, args.crop_size, args.subset_size
    )
    batch_size = args.batch_size if dataset.crop_size else 1
    vae = load_vae(**model_source(args))
    with world(args.device) as here:
        note = enable_fast_kernels(here.device)
        if note and here.is_main:
            print(note)
        loader = valid_loader(dataset, batch_size, args.num_workers, here.rank, here.size)
        mean, std, unreadable = measure_latents(vae, loader, here, args.mixed_precision)
        unreadable = [entry for part in gather_objects(unreadable) for entry in part]
        if here.is_main:
            pairs = zip(mean, std, strict=True)
            rows = [[str(i), f"{m:.5f}", f"{s:.5f}"] for i, (m, s) in enumerate(pairs)]
            print(markdown_table(["channel", "mean", "std"], rows))
            for path, reason in sorted(unreadable):
                print(f"unreadable: {path}: {reason}", file=sys.stderr)
            if args.output_json:
                count = len(dataset) - len(unreadable)
                content = {"mean": mean, "std": std, "count": count} | normalization(mean, std)
                write_json(args.output_json, content)
            if args.write:
                write_normalization(config, mean, std)
                print(f"shift and scale written to {config}")
    return 1 if unreadable else 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
