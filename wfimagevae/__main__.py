"""One command for all: `wfimagevae train ...`, from everywhere where the package is installed.

`torchrun --nproc_per_node 4 -m wfimagevae train ...` runs several processes.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

from wfimagevae.command_line import run_cli
from wfimagevae.options import nearest

# Words of a user, and the scripts of this repository that they start.
COMMANDS = {
    "train": "train_ddp",
    "pipeline": "train_ddp",
    "generate": "generate",
    "recon": "recon_image",
    "eval": "eval_image",
    "export": "save_hf_model",
    "report": "plot_training",
    "cache-latents": "cache_latents",
    "latent-stats": "latent_stats",
    "recon-one": "recon_single_image",
    "eval-generation": "eval_generation",
    "visualize": "visualize_flow",
    "merge": "merge_encoder_and_decoder",
    "split": "split_manifest",
    "shards": "make_webdataset",
    "benchmark": "benchmark_vae",
    "benchmark-train": "benchmark_train",
}


def main() -> int:
    """Runs the command that the first word names on the words after it; the exit status."""
    name, words = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in ("-h", "--help"):
        print("usage: wfimagevae COMMAND [--FLAG VALUE ...]; COMMAND --help shows its flags\n")
        for command, script in COMMANDS.items():
            about = "trains what a file says: pipeline FILE.yaml" if command == "pipeline" else ""
            print(f"  {command:16} {about or _module(script).__doc__.splitlines()[0]}")
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {name}{nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    if name == "pipeline" and words and not words[0].startswith("-"):
        words = ["--pipeline", *words]
    sys.argv = [f"wfimagevae {name}", *words]
    return run_cli(_module(COMMANDS[name]).main)


def _module(script: str):
    """A script as installed, where `setup.py` puts it, or as it stands in a clone."""
    root = Path(__file__).resolve().parents[1]
    if (root / "scripts" / "generate.py").is_file():
        folder = root if script == "train_ddp" else root / "scripts"
        sys.path.insert(0, str(folder))
        return importlib.import_module(script)
    package = "" if script == "train_ddp" else "wfimagevae.commands."
    return importlib.import_module(package + script)


if __name__ == "__main__":
    sys.exit(main())
