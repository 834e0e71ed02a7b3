"""Times training steps and prints JSON: img/s, milliseconds of each phase, peak memory.

python scripts/benchmark_train.py --resolution 256 --batch_size 2 --perceptual_weight 0
python scripts/benchmark_train.py --compare_with_bare_loop --resolution 64 --batch_size 1
"""

import json
import sys
from collections.abc import Sequence

from wfimagevae.engine.args import Parser, positive_int
from wfimagevae.engine.cli import run_cli
from wfimagevae.task import flags


def build_parser() -> Parser:
    """The trainer's flags, and how long to measure."""
    parser = flags.build_parser("vae", __doc__.splitlines()[0])
    parser.set_defaults(grad_accum_steps=1, disc_start=0)
    parser.make_optional("image_path", "eval_image_path")  # random images if not given
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
    group.add_argument(
        "--compare_schedules",
        action="store_true",
        help="also time --gan_schedule alternate in turns with joint, one update of each player, "
        "and print the ratio",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    options = vars(build_parser().parse_args(argv))
    from wfimagevae.task.vae_benchmark import VaeBenchmark, schedules_ratio

    bench = VaeBenchmark(options)
    result = bench.time_steps(options["warmup"], options["steps"])
    if options["compare_with_bare_loop"]:
        result["loop_overhead"] = bench.loop_overhead(options["steps"])
    if options["compare_schedules"]:
        result["alternate_over_joint"] = schedules_ratio(options, options["steps"])
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    sys.exit(run_cli(main))
