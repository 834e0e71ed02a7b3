"""Trains any task of this repository, on one process or under torchrun.

python train_ddp.py --task vae --image_path photos/ --eval_image_path held_out/
torchrun --nproc_per_node 4 train_ddp.py --task vae --image_path ... --eval_image_path ...
python train_ddp.py --task flow --dataset shapes --max_steps 4000
python train_ddp.py --pipeline examples/pipeline_vae_gan_flow.yaml
"""

import importlib
import os
import sys
from collections.abc import Sequence

from wfimagevae.engine.args import Parser, parse_with_config
from wfimagevae.engine.cli import run_cli
from wfimagevae.task.flags import build_parser, find_task


def main(argv: Sequence[str] | None = None) -> int:
    """Parses flags, builds the task and trains it; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    finder = Parser(add_help=False)
    finder.add_argument("--pipeline")
    finder.add_argument("--validate_pipeline", action="store_true")
    found = finder.parse_known_args(argv)[0]
    task = find_task(argv)
    parser = build_parser(task, __doc__.splitlines()[0])
    add_pipeline_args(parser)
    if found.validate_pipeline and not found.pipeline:
        parser.error("--validate_pipeline goes with --pipeline FILE")
    if found.pipeline:
        return run_file(argv)
    if "--list_flags" in argv:
        for flag, action in parser.flags().items():
            if flag not in ("help", "list_flags", *PIPELINE_FLAGS):
                kind = {0: "switch", None: "value"}.get(action.nargs, "values")
                print(flag.upper(), flag, kind)
        return 0
    args = vars(parse_with_config(parser, argv))
    if any(args.pop(name) for name in PIPELINE_FLAGS):
        parser.error("--pipeline stands on the command line, not in a file of flags")
    importlib.import_module(f"wfimagevae.task.{task}").train(args)
    return 0


PIPELINE_FLAGS = ("pipeline", "validate_pipeline")


def add_pipeline_args(parser: Parser) -> None:
    """Declares the flags of several trainings in one file."""
    group = parser.add_argument_group("pipeline", "several trainings from one YAML file")
    group.add_argument(
        "--pipeline",
        metavar="FILE",
        help="train the steps of this file, or go on where they stopped; all else stands in it",
    )
    group.add_argument(
        "--validate_pipeline", action="store_true", help="check the file, print the plan, and end"
    )


def run_file(argv: Sequence[str]) -> int:
    """Checks a pipeline's file and trains its steps, or prints what it would train."""
    parser = Parser(description="Trains the steps of a pipeline.")
    add_pipeline_args(parser)
    args = parser.parse_args(argv)
    document = importlib.import_module("wfimagevae.pipeline.document")
    loading = importlib.import_module("wfimagevae.pipeline.loading")
    try:
        loaded = loading.load_pipeline(args.pipeline)
        if args.validate_pipeline:
            planning = importlib.import_module("wfimagevae.pipeline.planning")
            print("\n".join(planning.describe_plan(loaded)))
            return 0
        importlib.import_module("wfimagevae.pipeline.runner").run_pipeline(loaded)
    except document.PipelineError:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        return 2  # the same on every process of a machine: the first one tells it
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
