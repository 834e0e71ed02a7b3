"""The kinds of training, and all flags of each. No torch here."""

import importlib

from wfimagevae.engine.args import Parser
from wfimagevae.engine.run_args import add_run_args

TASKS = ("vae", "flow")


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
