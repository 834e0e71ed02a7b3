"""Scripts, run as a user runs them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def runner(folder: str) -> Callable[..., subprocess.CompletedProcess]:
    """What runs a script of a folder of this repository, in one process or under torchrun."""

    def run(name, *arguments, cwd, processes=1, status=0):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        words = [sys.executable, *(launch if processes > 1 else []), ROOT / folder / name]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        words = [str(word) for word in (*words, *arguments)]
        how = {"capture_output": True, "text": True, "timeout": 240}
        done = subprocess.run(words, cwd=cwd, env=environment, check=False, **how)
        assert done.returncode == status, done.stderr
        return done

    return run
