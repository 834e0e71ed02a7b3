"""Short flow trainings for tests: in this process, or under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.task.training import ROOT
from train_ddp import main

TINY = {"hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 4}


class FlowPlace:
    """A tiny network and the flags to train it on small shapes for a few steps.

    Args:
        folder: Where everything is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "tiny.json").write_text(json.dumps(TINY))

    def flags(self, name: str, max_steps: int, **options) -> list[str]:
        """Command-line flags; True gives a switch, None leaves a default out."""
        merged = {
            "task": "flow",
            "exp_name": name,
            "max_steps": max_steps,
            "dataset": "shapes",
            "resolution": 16,
            "num_shapes": 64,
            "model_name": "FlowDiT-S/4",
            "model_config": self.folder / "tiny.json",
            "ckpt_dir": self.folder / "results",
            "batch_size": 4,
            "lr": 1e-3,
            "eval_steps": 0,
            "eval_num_samples": 8,
            "eval_num_images": 4,
            "sampling_steps": 2,
            "save_ckpt_step": 0,
            "log_steps": 2,
            "csv_log_steps": 2,
            "dataset_num_worker": 0,
            "disable_live_plot": True,
            "mix_precision": "fp32",
            "device": "cpu",
        } | options
        flags = []
        for flag, value in merged.items():
            if value is True:
                flags.append(f"--{flag}")
            elif isinstance(value, list | tuple):
                flags += [f"--{flag}", *map(str, value)]
            elif value is not None:
                flags.append(f"--{flag}={value}")
        return flags

    def train(self, name: str, max_steps: int, **options) -> Path:
        """Trains in this process; returns the run's folder."""
        assert main(self.flags(name, max_steps, **options)) == 0
        return self.run_folder(name)

    def torchrun(self, name: str, max_steps: int, **options) -> Path:
        """Trains on two gloo ranks; returns the run's folder."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", "2", str(ROOT / "train_ddp.py")]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        flags = self.flags(name, max_steps, **options)
        subprocess.run([*command, *flags], check=True, env=environment)
        return self.run_folder(name)

    def run_folder(self, name: str) -> Path:
        """The one folder of runs of this name."""
        (folder,) = (self.folder / "results").glob(f"{name}-lr*")
        return folder
