"""Times training steps and prints JSON: img/s, milliseconds of each phase, peak memory.

python scripts/benchmark_train.py --resolution 256 --batch_size 2 --perceptual_weight 0
python scripts/benchmark_train.py --compare_with_bare_loop --resolution 64 --perceptual_weight 0
python scripts/benchmark_train.py --task flow --dataset latents --model_name DiT-XL/2
python scripts/benchmark_train.py --task flow --dataset shapes --compare_objectives
"""

import importlib
import json
import sys
from collections.abc import Sequence

from wfimagevae.engine.args import Parser, non_negative_int, parse_with_config, positive_int
from wfimagevae.engine.cli import run_cli
from wfimagevae.task import flags


def build_parser(task: str) -> Parser:
    """The trainer's flags, how long to measure and what to compare."""
    parser = flags.build_parser(task, __doc__.splitlines()[0])
    parser.set_defaults(grad_accum_steps=1)
    group = parser.add_argument_group("benchmark", "what is timed")
    group.add_argument("--steps", type=positive_int, default=10, metavar="N", help="timed steps")
    group.add_argument(
        "--warmup",
        type=positive_int,
        default=3,
        metavar="N",
        help="steps beforehand that do not count",
    )
    group.add_argument(
        "--compare_with_bare_loop",
        action="store_true",
        help="also time forward, backward and optimizer alone, in turns with the "
        "trainer's loop, and print the ratio",
    )
    {"vae": add_vae_args, "flow": add_flow_args}[task](parser, group)
    return parser


def add_vae_args(parser: Parser, group) -> None:
    """Declares what only the VAE's benchmark reads."""
    parser.set_defaults(disc_start=0)
    parser.make_optional("image_path")  # random images if not given
    group.add_argument(
        "--compare_schedules",
        action="store_true",
        help="also time --gan_schedule alternate in turns with joint, one update of each player, "
        "and print the ratio",
    )


def add_flow_args(parser: Parser, group) -> None:
    """Declares what only the flow's benchmark reads; without --data_path, data are random."""
    group.add_argument(
        "--latent_shape",
        type=positive_int,
        nargs=3,
        default=[4, 32, 32],
        metavar=("C", "H", "W"),
        help="shape of random latents (--dataset latents without --data_path)",
    )
    group.add_argument(
        "--num_classes",
        type=non_negative_int,
        default=1000,
        metavar="N",
        help="classes of random data (no --data_path); 0 is none",
    )
    group.add_argument(
        "--compare_objectives",
        action="store_true",
        help="also time MeanFlow's updates in turns with flow matching's, on one network, count "
        "the memory that each saves for backward, and print the ratios",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    argv = sys.argv[1:] if argv is None else list(argv)
    task = flags.find_task(argv)
    parser = build_parser(task)
    options = vars(parse_with_config(parser, argv))
    if options["list_flags"]:
        parser.error("--list_flags belongs to train_ddp.py; here --help lists the flags")
    module = importlib.import_module(f"wfimagevae.task.{task}_benchmark")
    bench = module.build_benchmark(options)
    result = bench.time_steps(options["warmup"], options["steps"])
    if options["compare_with_bare_loop"]:
        result["loop_overhead"] = bench.loop_overhead(options["steps"])
    print(json.dumps(result | module.compare(options), indent=2))


if __name__ == "__main__":
    sys.exit(run_cli(main))
