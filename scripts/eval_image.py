"""Measures reconstructions against their originals.

python scripts/eval_image.py --real_image_dir photos --generated_image_dir reconstructions \
    --resolution 256 --output_json metrics.json
torchrun --nproc_per_node 8 scripts/eval_image.py ...
"""

from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, add_device_arg, output_file
from wfimagevae.engine.cli import run_cli
from wfimagevae.generate.autoencoder_args import METRIC_UNAVAILABLE, add_image_args, add_metric_args


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Measure reconstructions against their originals, paired by relative path.",
        epilog=f"Exit status: 0 all measured; {METRIC_UNAVAILABLE} all but metrics whose weights "
        "are missing; 2 an error. torchrun turns each of 2 and 3 into 1.",
    )
    add_image_args(parser, batch_size=8)
    parser.add_argument(
        "--generated_image_dir",
        required=True,
        metavar="PATH",
        help="reconstructions, at the size that --resolution and --crop_size give; a top-level "
        "folder 'origin' in it is left out",
    )
    add_metric_args(parser)
    parser.add_argument(
        "--output_json",
        type=output_file,
        metavar="FILE",
        help="where to write figures and protocol",
    )
    add_device_arg(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = build_parser().parse_args(argv)

    from wfimagevae.dataset import ValidImageDataset
    from wfimagevae.engine.distributed import barrier, world
    from wfimagevae.eval.evaluator import Evaluator, Networks
    from wfimagevae.eval.folders import PairDataset, evaluate_pairs
    from wfimagevae.eval.protocol import describe_protocol
    from wfimagevae.eval.report import evaluation_json, evaluation_table
    from wfimagevae.files import write_json

    networks = Networks(args.lpips_net, args.lpips_weights, args.inception_weights)
    networks.check_files()
    real = ValidImageDataset(args.real_image_dir, args.resolution, args.crop_size, args.subset_size)
    generated = ValidImageDataset(args.generated_image_dir)
    pairs = PairDataset(real, generated, is_subset=bool(args.subset_size))
    batch_size = args.batch_size if real.crop_size else 1
    with world(args.device) as here:
        evaluator = Evaluator(args.metric, here.device, networks)
        values = evaluate_pairs(pairs, evaluator, batch_size, args.num_workers, here)
        if here.is_main:
            print(evaluation_table(evaluator, values))
            if args.output_json:
                protocol = describe_protocol(
                    list(values), networks, args.resolution, args.crop_size, evaluator.count
                )
                write_json(args.output_json, evaluation_json(evaluator, values, protocol))
                print(f"written: {Path(args.output_json)}")
        barrier()  # a process that leaves with a status makes torchrun stop the others
    return METRIC_UNAVAILABLE if evaluator.unavailable else 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
