"""Short trainings for tests: in this process, or under torchrun."""

import csv
import json
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


class Trainings:
    """Short trainings in ``folder``, told by flags in place of ``defaults``."""

    script = "train_image_ddp.py"

    def __init__(self, folder: Path, **defaults):
        self.folder = folder
        self.defaults = {"ckpt_dir": folder / "results", "lr": 1e-3, "eval_steps": 0}
        self.defaults |= {"save_ckpt_step": 0, "keep_last": 0, "log_steps": 2, "csv_log_steps": 2}
        self.defaults |= {"dataset_num_worker": 0, "disable_live_plot": True}
        self.defaults |= {"mix_precision": "fp32", "device": "cpu"} | defaults

    def flags(self, name: str, max_steps: int | None, **options) -> list[str]:
        """Command-line flags; True gives a switch, None leaves a default out."""
        flags = []
        named = {"exp_name": name, "max_steps": max_steps}
        for flag, value in (self.defaults | named | options).items():
            if isinstance(value, list | tuple):
                flags += [f"--{flag}", *map(str, value)]
            elif value is not None:
                flags.append(f"--{flag}" if value is True else f"--{flag}={value}")
        return flags

    def train(self, name: str, max_steps: int | None, **options) -> Path:
        """Trains in this process; returns the run's folder."""
        assert main(self.flags(name, max_steps, **options)) == 0
        return self.run_folder(name)

    def go_on(self, name: str, max_steps: int, **options) -> Path:
        """Trains a run on from its last checkpoint."""
        return self.train(name, max_steps, resume_from_checkpoint="auto", **options)

    def cut(self, name: str, max_steps: int, at: int, **options) -> Path:
        """A run as if it had been killed right after it had saved step ``at``."""
        folder = self.train(name, max_steps, save_ckpt_step=at, **options)
        for path in folder.glob("checkpoint-*.ckpt"):
            if path.name != f"checkpoint-{at}.ckpt":
                path.unlink()
        return folder

    def whole_and_parts(self, max_steps: int, stop: int, **options) -> tuple[Path, Path]:
        """Two runs of ``max_steps`` steps: of one command, and of a second one after ``stop``."""
        whole = self.train("whole", max_steps, **options)
        self.train("parts", stop, **options)
        return whole, self.go_on("parts", max_steps, **options)

    def torchrun(self, name: str, max_steps: int, **options) -> Path:
        """Trains on two gloo ranks; returns the run's folder."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", "2", str(ROOT / self.script)]
        command += self.flags(name, max_steps, **options)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment)
        return self.run_folder(name)

    def run_folder(self, name: str) -> Path:
        """The one folder of runs of this name."""
        (folder,) = (self.folder / "results").glob(f"{name}-lr*")
        return folder


class Workplace(Trainings):
    """Images, a tiny VAE and the flags to train it."""

    def __init__(self, folder: Path):
        data = {"image_path": write_images(folder / "train", 7)}
        data |= {"index_cache_dir": folder / "cache"}
        data |= {"eval_image_path": write_images(folder / "held_out", 3, first_seed=100)}
        sizes = {"resolution": 32, "eval_resolution": 32, "eval_crop_size": 32, "batch_size": 2}
        loss = {"perceptual_weight": 0, "disc_num_layers": 1, "disc_start": 2}
        loss |= {"grad_accum_steps": 1, "wavelet_loss": True}
        super().__init__(folder, **data, **sizes, **loss, model_config=write_tiny_config(folder))


class FlowPlace(Trainings):
    """A tiny network and the flags to train it on small shapes."""

    script = "train_ddp.py"

    def __init__(self, folder: Path):
        sizes = {"hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 4}
        sizes |= {"byte_width": 32, "byte_depth": 1}
        (folder / "tiny.json").write_text(json.dumps(sizes))
        model = {"model_name": "FlowDiT-S/4", "model_config": folder / "tiny.json"}
        data = {"dataset": "shapes", "resolution": 16, "num_shapes": 64, "batch_size": 4}
        samples = {"eval_num_samples": 8, "eval_num_images": 4, "sampling_steps": 2}
        super().__init__(folder, task="flow", **model, **data, **samples)


def rows(path: Path) -> list[dict]:
    """Rows of a CSV file, of text, or of a file of JSON lines."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file))


def rec_losses(folder: Path) -> list[float]:
    """The reconstruction error of each logged step, at a small rate a print of its samples."""
    return [float(row["train/rec_loss_per_pixel"]) for row in rows(folder / "training_losses.csv")]


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
