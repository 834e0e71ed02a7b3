"""One command for all: `wfimagevae train ...`, from everywhere where the package is installed.

`torchrun --nproc_per_node 4 -m wfimagevae train ...` runs several processes.
"""

import importlib
import sys
from pathlib import Path

import wfimagevae.early  # noqa: F401
from wfimagevae.command_line import run_cli
from wfimagevae.options import nearest

_HERE = Path(__file__).resolve().parent
# Where setup.py puts the scripts, or where they stand in a clone.
_FOLDER = _HERE / "commands" if (_HERE / "commands").is_dir() else _HERE.parent / "scripts"
COMMANDS = {"train": "train_ddp", "pipeline": "train_ddp", "generate": "generate"}
COMMANDS |= {"recon": "recon_image", "eval": "eval_image", "export": "save_hf_model"}
_OTHERS = {path.stem for path in _FOLDER.glob("*.py")} - {*COMMANDS.values()}
COMMANDS |= {name: name for name in sorted(_OTHERS) if not name.startswith("quickstart")}


def main() -> int:
    """Runs the command that the first word names on the words after it; the exit status."""
    name, words = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    sys.path.insert(0, str(_FOLDER))
    if name in ("-h", "--help"):
        print("usage: wfimagevae COMMAND [--FLAG VALUE ...]; COMMAND --help shows its flags\n")
        for command, script in COMMANDS.items():
            about = importlib.import_module(script).__doc__.splitlines()[0]
            about = "Trains what a file says." if command == "pipeline" else about
            print(f"  {command:26} {about}")
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {name}{nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    if name == "pipeline" and words and not words[0].startswith("-"):
        words = ["--pipeline", *words]
    sys.argv = [f"wfimagevae {name}", *words]
    script = COMMANDS[name]
    return run_cli(importlib.import_module(script).main, dated=script == "train_ddp")


if __name__ == "__main__":
    sys.exit(main())
