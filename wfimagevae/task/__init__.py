"""Tasks: they assemble objectives, data, evaluation and engine into a kind of training."""

import importlib

TASKS = ("vae", "flow")


def options_of(task: str) -> type:
    """The option class of a task, without importing torch."""
    module = importlib.import_module(f"wfimagevae.task.{task}_options")
    return getattr(module, f"{task.title()}Options")
