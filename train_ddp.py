"""Trains any task of this repository, on one process or under torchrun.

python train_ddp.py --task vae --image_path photos/ --eval_image_path held_out/
torchrun --nproc_per_node 4 train_ddp.py --task vae --image_path ... --eval_image_path ...
python train_ddp.py --task flow --dataset shapes --max_steps 4000
"""

import importlib
import sys
from collections.abc import Sequence

from wfimagevae.engine.args import Parser, parse_with_config
from wfimagevae.engine.cli import run_cli
from wfimagevae.task.flags import TASKS, build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parses flags, builds the task and trains it; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    finder = Parser(add_help=False)
    finder.add_argument("--task", choices=TASKS, default=TASKS[0])
    task = finder.parse_known_args(argv)[0].task
    parser = build_parser(task, __doc__.splitlines()[0])
    if "--list_flags" in argv:
        for flag, action in parser.flags().items():
            if flag not in ("help", "list_flags"):
                kind = {0: "switch", None: "value"}.get(action.nargs, "values")
                print(flag.upper(), flag, kind)
        return 0
    args = parse_with_config(parser, argv)
    importlib.import_module(f"wfimagevae.task.{args.task}").train(vars(args))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
