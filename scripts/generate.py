"""Generates images with a trained flow.

python scripts/generate.py --from_pretrained results/flow --output_dir samples --num_images 16
python scripts/generate.py --from_pretrained SiT-XL-2-256.pt --model_name DiT-XL/2 \
    --vae diffusers:stabilityai/sd-vae-ft-ema --class_labels 207 360 --guidance_scale 4
torchrun --nproc_per_node 8 scripts/generate.py ... --num_images 50000 --npz samples.npz
"""

from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, output_file, positive_int
from wfimagevae.engine.cli import run_cli
from wfimagevae.eval.args import add_compute_args
from wfimagevae.eval.generation_args import add_generator_args, add_sampling_args, sampling_values


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Generate images with a trained flow; each depends on its own seed alone, "
        "whatever the batch size or the number of processes."
    )
    add_generator_args(parser)
    add_sampling_args(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output_dir",
        metavar="DIR",
        help="folder for one PNG an image, grid.png and samples.json, which tells how they were "
        "made",
    )
    group.add_argument(
        "--npz",
        type=output_file,
        metavar="FILE",
        help="write all images to one file instead, as public FID code reads them: arr_0, uint8 "
        "(N, H, W, 3)",
    )
    group.add_argument(
        "--num_images", type=positive_int, default=16, metavar="N", help="over all processes"
    )
    group.add_argument(
        "--class_labels",
        nargs="+",
        metavar="CLASS",
        help="numbers or names, taken in turn; all classes in turn if not given",
    )
    group.add_argument(
        "--batch_size", type=positive_int, default=16, metavar="N", help="images at a time"
    )
    add_compute_args(parser, "the flow; an autoencoder decodes in fp32")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = build_parser().parse_args(argv)
    if bool(args.output_dir) == bool(args.npz):
        raise ValueError("give either --output_dir or --npz")

    from wfimagevae.engine.device import enable_fast_kernels
    from wfimagevae.engine.distributed import world
    from wfimagevae.eval.generated_files import write_folder, write_npz
    from wfimagevae.eval.generation import class_numbers, labels_in_turn
    from wfimagevae.eval.generator_files import load_generator, sampling_options

    with world(args.device) as here:
        enable_fast_kernels(here.device)
        generator = load_generator(
            args.from_pretrained, here.device, args.model_name, args.vae, args.use_raw_weights
        )
        if generator.facts["space"] == "point":
            raise ValueError("this flow makes points: see them with scripts/visualize_flow.py")
        options = sampling_options(generator, **sampling_values(args))
        classes = class_numbers(generator, args.class_labels)
        labels = labels_in_turn(classes, args.num_images)
        write, target = (
            (write_folder, args.output_dir) if args.output_dir else (write_npz, args.npz)
        )
        write(Path(target), generator, labels, args.num_images, options, args.batch_size, here)
        if here.is_main:
            print(f"{target}: {args.num_images} images, {options.sampler}, {options.steps} steps")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
