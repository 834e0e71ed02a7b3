"""Short trainings for tests: in this process, or under torchrun."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.images import write_images, write_tiny_config
from train_ddp import main

ROOT = Path(__file__).parents[2]


@contextmanager
def refused(words: str) -> Iterator[None]:
    """A training that its options, or what they name, forbid; a bad flag ends the process."""
    with pytest.raises((ValueError, OSError, SystemExit)) as error:
        yield
    cause = error.value.__context__ if isinstance(error.value, SystemExit) else error.value
    assert re.search(words, str(cause))


class Workplace:
    """Images, a tiny model and the flags to train it for a few steps.

    Args:
        folder: Where everything is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        write_images(folder / "train", 7)
        write_images(folder / "held_out", 3, first_seed=100)
        write_tiny_config(folder)

    def flags(self, name: str, max_steps: int, **options) -> list[str]:
        """Command-line flags; True gives a switch, None leaves a default out."""
        merged = {
            "exp_name": name,
            "max_steps": max_steps,
            "image_path": self.folder / "train",
            "eval_image_path": self.folder / "held_out",
            "index_cache_dir": self.folder / "cache",
            "model_config": self.folder / "tiny.json",
            "ckpt_dir": self.folder / "results",
            "resolution": 32,
            "eval_resolution": 32,
            "eval_crop_size": 32,
            "batch_size": 2,
            "grad_accum_steps": 1,
            "lr": 1e-3,
            "perceptual_weight": 0,
            "disc_num_layers": 1,
            "disc_start": 2,
            "wavelet_loss": True,
            "eval_steps": 0,
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
            elif value is not None:
                flags.append(f"--{flag}={value}")
        return flags

    def train(self, name: str, max_steps: int, **options) -> Path:
        """Trains in this process; returns the run's folder."""
        assert main(self.flags(name, max_steps, **options)) == 0
        return self.run_folder(name)

    def torchrun(self, name: str, max_steps: int, processes: int = 2, **options) -> Path:
        """Trains under torchrun with gloo; returns the run's folder."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(processes), str(ROOT / "train_image_ddp.py")]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [*command, *self.flags(name, max_steps, **options)], check=True, env=environment
        )
        return self.run_folder(name)

    def run_folder(self, name: str) -> Path:
        """The one folder of runs of this name."""
        (folder,) = (self.folder / "results").glob(f"{name}-lr*")
        return folder


def load(folder: Path, step: int) -> dict:
    """A checkpoint's content."""
    return torch.load(folder / f"checkpoint-{step}.ckpt", weights_only=True)


def differences(a, b, path: str = "") -> list[str]:
    """Paths at which two checkpoints differ in any bit."""
    if isinstance(a, dict):
        keys = a.keys() | b.keys()
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{path}/{k}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [path]
        return [
            d
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for d in differences(x, y, f"{path}/{i}")
        ]
    same = torch.equal(a, b) if torch.is_tensor(a) else a == b
    return [] if same else [path]


def largest_difference(a: dict, b: dict) -> float:
    """Largest absolute difference of two state dicts' tensors."""
    assert a.keys() == b.keys()
    return max((a[key].double() - b[key].double()).abs().max().item() for key in a)
