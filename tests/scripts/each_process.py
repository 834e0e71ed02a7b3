"""Runs commands one after the other on each process that torchrun started; see test_two_processes.

What a process prints goes to ``<name>-<rank>.txt``.
"""

import contextlib
import importlib
import json
import sys
from pathlib import Path

from wfimagevae.command_line import run_cli
from wfimagevae.engine.distributed import world


def main(_) -> None:
    with world("cpu") as processes:
        for name, (script, words) in json.loads(Path(sys.argv[1]).read_text()).items():
            output = Path(f"{name}-{processes.rank}.txt")
            with output.open("w") as file, contextlib.redirect_stdout(file):
                importlib.import_module(f"scripts.{script}").main(words)


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
