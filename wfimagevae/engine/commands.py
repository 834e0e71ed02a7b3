"""What the quick start is made of: folders of its own, and commands shown before they start."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MARKER = ".made-by-quickstart"


def say(title: str) -> None:
    """Announces a part."""
    print(f"\n== {title}", flush=True)


def run_script(script: str, *arguments) -> None:
    """Runs one of this repository's scripts with this interpreter; errors as `run_command`."""
    run_command([sys.executable, script, *map(str, arguments)])


def run_command(words: Sequence[str], settings: dict[str, object] | None = None) -> None:
    """Runs a command, its output shown as it comes.

    Args:
        words: The command.
        settings: Environment variables for it.

    Raises:
        ValueError: it failed.
    """
    values = {name: str(value) for name, value in (settings or {}).items()}
    shown = ["python" if word == sys.executable else word for word in words]
    told = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    print(" ".join(["$", *told, shlex.join(shown)]), flush=True)
    environment = os.environ | {"PYTHON": sys.executable} | values
    status = subprocess.run(words, env=environment).returncode
    if status:
        raise ValueError(f"{shlex.join(shown)} ended with status {status}; see above")


def make_folder(folder: Path) -> None:
    """Makes an empty folder; of what is in it, only what an earlier quick start left is removed.

    Raises:
        ValueError: the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise ValueError(
                f"{folder} was not made by the quick start; choose another folder by --output"
            )
        print(f"removing what an earlier quick start left in {folder}")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
