"""Small pipelines for tests: a file, the data and networks that it names."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from tests.images import TINY_MODEL, write_images
from tests.task.training import ROOT
from train_ddp import main
from wfimagevae.pipeline.checks import load_pipeline
from wfimagevae.pipeline.flags import step_flags
from wfimagevae.pipeline.fluxflow import OPTIONS
from wfimagevae.pipeline.plan import describe_plan
from wfimagevae.pipeline.steps import PipelineError

TINY_VAE = {key: value for key, value in TINY_MODEL.items() if key != "_class_name"}
TINY_FLOW = {"hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 2}
TINY_FLOW |= {"byte_width": 32, "byte_depth": 1}
# Warm-up, GAN, flow.
CONTENT = """\
model:
  vae: {}
  flow: {name: FlowDiT-S/2}
  text_encoder: bytes
  text_length: 24
data: {data_path: FOLDER/train, eval_data_path: FOLDER/held_out, img_size: 32}
training:
  batch_size: 2
  gradient_accumulation_steps: 1
  workers: 0
  lr: 1.0e-3
  use_ema: true
  precision: fp32
  device: cpu
  options:
    {disc_num_layers: 1, disc_start: 2, eval_steps: 0, index_cache_dir: FOLDER/cache,
     sampling_steps: 2}
  pipeline:
    steps:
      - {name: warmup, steps: 5, train_vae: true, kl_beta: 1.0e-4}
      - {name: gan, steps: 6, train_vae: true, gan_training: true}
      - {name: flow, steps: 6, train_diff: true, cfg_dropout_prob: 0.2}
output:
  log_interval: 2
  checkpoint_save_interval: 2
  test_image_address: [FOLDER/held_out/000.png]
  sample_captions: [a red cloud]
  generate_diagrams: false
"""
COLOURS = ("red", "green", "blue")
PLAIN = """\
data: {data_path: .}
training:
  lr: 1e-4
  pipeline:
    steps:
      - name: vae
        n_epochs: 2
        train_vae: true
"""


class PipelinePlace:
    """Captioned images in a folder and a three-step pipeline over them."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name, count in (("train", 7), ("held_out", 3)):
            images = write_images(folder / name, count, first_seed=len(name))
            for i, path in enumerate(sorted(images.glob("*.png"))):
                path.with_suffix(".txt").write_text(f"a {COLOURS[i % 3]} cloud\n")

    def content(self, output: str) -> dict:
        """The file's content, into a folder of that name."""
        content = yaml.safe_load(CONTENT.replace("FOLDER", str(self.folder)))
        content["model"]["vae"]["config"] = dict(TINY_VAE)
        content["model"]["flow"]["config"] = dict(TINY_FLOW)
        content["output"]["output_path"] = str(self.folder / output)
        return content

    def write(self, content: dict) -> Path:
        """Writes the file; returns where."""
        path = self.folder / f"{Path(content['output']['output_path']).name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def run(self, content: dict) -> Path:
        """Runs it in this process; returns the output folder."""
        assert main(["--pipeline", str(self.write(content))]) == 0
        return Path(content["output"]["output_path"])

    def plan(self, content: dict, **flags) -> str:
        """What the file's plan says."""
        return "\n".join(describe_plan(load_pipeline(self.write(content), flags)))

    def refuses(self, content: dict, message: str, **flags) -> None:
        """Checks that validating the file ends with this message."""
        with pytest.raises(PipelineError, match=message):
            self.plan(content, **flags)

    def start(self, content: dict, launcher: list[str] | None = None) -> subprocess.Popen:
        """Starts it in a process of its own."""
        command = [*(launcher or [sys.executable]), str(ROOT / "train_ddp.py")]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command += ["--pipeline", str(self.write(content))]
        return subprocess.Popen(command, env=environment)


def write_shard(path: Path, images: Sequence[Path]) -> str:
    """Images, each with what stands beside it, in one tar file; its path."""
    with tarfile.open(path, "w") as tar:
        for image in images:
            for file in sorted(image.parent.glob(f"{image.stem}.*")):
                tar.add(file, file.name)
    return str(path)


def last_checkpoint(output: Path, step: str) -> dict:
    """The content of a step's newest checkpoint."""
    found = output.glob(f"steps/*_{step}/checkpoint-*.ckpt")
    return torch.load(max(found, key=lambda p: int(p.stem.split("-")[1])), weights_only=True)


def copied(place: PipelinePlace, done, name: str) -> dict:
    """A copy of the finished pipeline, to go on with; its content."""
    content, output, _ = done
    target = place.folder / name
    shutil.copytree(output, target)
    content = json.loads(json.dumps(content))
    content["output"] |= {"output_path": str(target), "generate_diagrams": False}
    return content


def steps_of(content: dict) -> list[dict]:
    return content["training"]["pipeline"]["steps"]


def changed(content: dict, values: dict) -> dict:
    """A content with other values: of ``data.img_size``, or of ``steps.0.lr``; None deletes."""
    for path, value in values.items():
        *above, key = path.split(".")
        section = steps_of(content) if path.startswith("steps") else content
        for name in above[path.startswith("steps") :]:
            section = section[int(name) if isinstance(section, list) else name]
        if isinstance(section, list):
            section[int(key) : int(key) + 1] = [] if value is None else [value]
        elif value is None:
            del section[key]
        else:
            section[key] = value
    return content


def options_of(pipeline, step: int = 0, latents=None):
    """The options of the training that a step means."""
    flags = step_flags(pipeline, pipeline.steps[step], latents)
    return OPTIONS[pipeline.steps[step].task](**flags)


def problems(load, text: str) -> dict[int, list[str]]:
    """Line -> what is wrong in it."""
    with pytest.raises(PipelineError) as caught:
        load(text)
    found: dict[int, list[str]] = {}
    for entry in str(caught.value).splitlines()[1:]:
        line, _, message = entry.strip().partition(": ")
        found.setdefault(int(line.removeprefix("line ")), []).append(message)
    return found


def with_step(extra: str, before: str = "", mode: str = "train_vae: true") -> str:
    """A file whose one step has further keys; they begin in line 8."""
    text = PLAIN.replace("        train_vae: true\n", f"        {extra}\n        {mode}\n")
    return before + text
