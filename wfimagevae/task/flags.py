"""The kinds of training, and all flags of each. No torch here."""

import importlib
from collections.abc import Sequence

from wfimagevae.engine.args import Parser, read_config
from wfimagevae.engine.run_args import add_run_args

TASKS = ("vae", "flow")


def find_task(argv: Sequence[str]) -> str:
    """The task that a command line names, or the file of its ``--config``; else the first."""
    finder = Parser(add_help=False)
    finder.add_argument("--task", choices=TASKS)
    finder.add_argument("--config")
    found = finder.parse_known_args(argv)[0]
    in_file = read_config(finder, found.config).get("task") if found.config else None
    return found.task or (in_file if in_file in TASKS else TASKS[0])


def build_parser(task: str, description: str = "") -> Parser:
    """All flags of a task's training.

    Args:
        task: One of `TASKS`.
        description: First line of the help.
    """
    parser = Parser(description=description)
    parser.add_argument("--task", choices=TASKS, default=task, help="what to train")
    add_run_args(parser)
    importlib.import_module(f"wfimagevae.task.{task}_args").add_args(parser)
    return parser
