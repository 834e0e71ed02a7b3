"""train_wfimagevae.sh: variables to flags, processes, manifests; SIGTERM to all ranks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.task.training import Workplace, load
from wfimagevae.command_line import parse
from wfimagevae.model.losses import LossConfig
from wfimagevae.task.vae_options import VaeOptions

ROOT = Path(__file__).parents[1]

# Answers --list_flags as the real one, and shows any other command instead of running it.
ECHO = """#!/usr/bin/env bash
case "$*" in *--list_flags*|-c*) exec {python} "$@";; esac
printf '%s\\n' "$@"
"""

RECIPES = ("train_wfimagevae.sh", "examples/train_flow.sh", "examples/train_glide.sh")
RECIPE = {"TRAIN_IMAGE_DIR": "a b", "EVAL_IMAGE_DIR": "held", "NPROC": "1"}


def launch(folder: Path, *flags: str, script="train_wfimagevae.sh", **variables: str):
    (folder / "a b").mkdir(exist_ok=True)
    interpreter = folder / "echo-python"
    interpreter.write_text(ECHO.format(python=sys.executable))
    interpreter.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(interpreter), "PYTHONPATH": str(ROOT)}
    words, environment = ["bash", ROOT / script, *flags], environment | RECIPE | variables
    return subprocess.run(words, env=environment, capture_output=True, text=True, cwd=folder)


def trainer_words(*arguments, **variables) -> list[str]:
    """The command that a launch ends with, without the interpreter."""
    result = launch(*arguments, **variables)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_variables_become_flags(tmp_path):
    given = trainer_words(
        tmp_path, "--lr=3e-4", LR="1e-4", EMA="0", ADAPTIVE_WEIGHT="0",
        FREEZE_ENCODER="1", OUTPUT_DIR="out", RESUME_CKPT="auto", PRETRAINED_MODEL="w.ckpt",
        TRACKER="wandb", DISABLE_WANDB="1",
    )  # fmt: skip
    assert given[0].endswith("train_image_ddp.py")
    assert {*given} >= {
        *("--image_path=a b", "--eval_image_path=held", "--ckpt_dir=out", "--wavelet_loss"),
        *("--no_ema", "--no_adaptive_weight", "--freeze_encoder", "--tracker=none"),
        *("--resume_from_checkpoint=auto", "--pretrained_model_name_or_path=w.ckpt"),
    }
    assert given.index("--lr=1e-4") < given.index("--lr=3e-4")


def test_adversarial_training_alone_as_the_readme_says_leaves_no_other_term(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    flags, variable, value = re.search(
        r"Adversarial training alone is `([^`]+)`, with `(\w+)=(\d)` before `train", readme
    ).groups()
    options = parse(VaeOptions, trainer_words(tmp_path, *flags.split(), **{variable: value})[1:])
    weights = {name for name in LossConfig.model_fields if name.endswith("_weight")}
    unused = {"adaptive_weight"} | ({"wavelet_weight"} if not options.wavelet_loss else set())
    assert {name for name in weights - unused if getattr(options, name)} == {"disc_weight"}
    assert not options.adaptive_weight


def test_gpus_and_machines_become_torchrun(tmp_path):
    command = " ".join(trainer_words(tmp_path, GPU="0,1,2,3"))
    assert command.startswith("-m wfimagevae.torchrun --standalone --nproc_per_node 4 ")
    assert "--device=cuda" in command  # without a GPU an error, not the CPU
    host = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1234"}
    command = " ".join(trainer_words(tmp_path, GPU="0,1", **host))
    assert "--nnodes 2 --node_rank 1 --master_addr host --master_port 1234" in command
    assert "--nproc_per_node 2" in command


def test_restarts_go_through_torchrun_and_resume(tmp_path):
    """On one machine, and on several, which meet again and wait for one that is replaced."""
    command = " ".join(trainer_words(tmp_path, MAX_RESTARTS="3"))
    assert command.startswith("-m wfimagevae.torchrun --standalone --nproc_per_node 1 ")
    assert "--max_restarts 3" in command and "--resume_from_checkpoint=auto" in command
    host = {"NNODES": "2", "MASTER_ADDR": "host", "MAX_RESTARTS": "1", "RESUME_CKPT": "a.ckpt"}
    for rank, is_host in (("0", "true"), ("1", "false")):
        command = " ".join(trainer_words(tmp_path, GPU="0,1", NODE_RANK=rank, **host))
        assert "--nnodes 2 --rdzv_backend c10d" in command
        assert f"--rdzv_endpoint host:29500 --rdzv_conf is_host={is_host}," in command
        assert "--max_restarts 1" in command and "--resume_from_checkpoint=a.ckpt" in command


DIES_ONCE = """
import os, signal
from wfimagevae.engine.distributed import barrier, cpu_group, world
with world("cpu", 0.4) as here:
    cpu_group(0.4)
    barrier()
    if here.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    barrier()
os._exit(0)
"""


def test_processes_that_start_again_find_each_other(tmp_path):
    (tmp_path / "dies_once.py").write_text(DIES_ONCE)
    words = ["--standalone", "--nproc_per_node", "2", "--max_restarts", "1", "dies_once.py"]
    command = [sys.executable, "-m", "wfimagevae.torchrun", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert not subprocess.run(command, cwd=tmp_path, env=environment).returncode


def test_the_flow_recipe_takes_latents_and_lists_of_values(tmp_path):
    given = trainer_words(
        tmp_path, "--max_steps=5", script="examples/train_flow.sh", LATENTS="lat",
        EVAL_LATENTS="held", EMA_DECAY="0.999 0.9999", MEANFLOW_WINDOW="0.2 1", FSDP="1",
    )  # fmt: skip
    assert given[0].endswith("train_ddp.py") and given[1:3] == ["--task", "flow"]
    assert {"--dataset=latents", "--data_path=lat", "--eval_data_path=held", "--fsdp"} <= {*given}
    for flag, values in (("ema_decay", ["0.999", "0.9999"]), ("meanflow_window", ["0.2", "1"])):
        first = given.index(f"--{flag}") + 1
        assert given[first : first + 2] == values


@pytest.mark.parametrize("flags", [["--config", "run.yaml"], ["--config=run.yaml"], []])
def test_a_file_of_flags_meets_no_defaults_of_the_recipe_but_variables_win(tmp_path, flags):
    (tmp_path / "run.yaml").write_text("image_path: photos\neval_image_path: held\nema: false\n")
    config = {} if flags else {"CONFIG": "run.yaml"}
    words = flags or ["--config=run.yaml"]
    bare = trainer_words(tmp_path, *flags, TRAIN_IMAGE_DIR="", EVAL_IMAGE_DIR="", **config)
    assert bare[1:] == words
    given = trainer_words(tmp_path, *flags, EMA="1", **config)
    assert {*words, "--ema", "--image_path=a b"} <= {*given} and "--wavelet_loss" not in given


def test_every_machine_splits_the_manifest_for_itself(tmp_path):
    for rank in ("0", "1"):
        given = trainer_words(tmp_path, ORIGINAL_MANIFEST="all.jsonl", NNODES="2", NODE_RANK=rank)
        assert "split_manifest.py --manifest all.jsonl" in " ".join(given)


def test_bad_variables_are_explained(tmp_path):
    maybe, nothing = launch(tmp_path, EMA="maybe"), launch(tmp_path, TRAIN_IMAGE_DIR="")
    assert (maybe.returncode, nothing.returncode) == (2, 2)
    assert "EMA=maybe: write 1 or 0" in maybe.stderr
    assert "set TRAIN_IMAGE_DIR and EVAL_IMAGE_DIR" in nothing.stderr


@pytest.mark.parametrize("script", RECIPES)
def test_what_a_recipe_trains_is_no_variable_and_what_is_nearly_one_is_warned_of(tmp_path, script):
    result = launch(tmp_path, script=script, BATCHSIZE="4", EPOCH="2", TASK="vae")
    assert "--task=" not in result.stdout
    assert sorted(result.stderr.splitlines()) == [
        "warning: BATCHSIZE is no variable of this training; did you mean BATCH_SIZE?",
        "warning: EPOCH is no variable of this training; did you mean EPOCHS?",
    ]
    assert result.returncode == 0


USUAL = """HOME USER SHELL LANG LANGUAGE LC_ALL TERM LOGNAME MAIL EDITOR DISPLAY HOSTNAME TMPDIR
SHLVL TZ DEBUG VIRTUAL_ENV CONDA_PREFIX CUDA_HOME CUDA_PATH CUDA_DEVICE_ORDER CUDA_VISIBLE_DEVICES
NVIDIA_VISIBLE_DEVICES OMP_NUM_THREADS OMP_WAIT_POLICY MKL_NUM_THREADS GOMP_SPINCOUNT NCCL_DEBUG
SLURM_JOB_ID SLURM_JOB_NODELIST SLURM_NNODES SLURM_NTASKS SLURM_PROCID SLURM_LOCALID WANDB_MODE
WANDB_PROJECT HF_HOME HF_TOKEN TORCH_HOME XDG_CACHE_HOME PYTHONUNBUFFERED LD_LIBRARY_PATH RANK
WORLD_SIZE LOCAL_RANK NODE_NAME POD_NAME CACHE_DIR LS_COLORS SSH_AUTH_SOCK HTTP_PROXY NO_PROXY
MAKEFLAGS MODULEPATH OPTIONS DATA_DIR MODEL_DIR JOB_ID TASK_ID LOG_LEVEL TOKENIZERS_PARALLELISM
EVAL_IMAGE_DIR OUTPUT_DIR RESUME_CKPT PRETRAINED_MODEL LATENTS EVAL_LATENTS DATA EVAL_DATA"""


@pytest.mark.parametrize("script", RECIPES)
def test_usual_variables_and_those_of_the_recipe_are_no_misspelt_flags(tmp_path, script):
    variables = dict.fromkeys(USUAL.split(), "") | RECIPE
    assert launch(tmp_path, script=script, **variables).stderr == ""


def test_trains_on_a_split_manifest_with_two_processes_until_told_to_stop(tmp_path):
    workplace = Workplace(tmp_path)
    paths = sorted((tmp_path / "train").iterdir())
    rows = [json.dumps({"target": f"train/{path.name}"}) for path in paths]
    (tmp_path / "all.jsonl").write_text("\n".join(rows))
    skipped = ("--image_path=", "--eval_image_path=", "--wavelet_loss")
    flags = [f for f in workplace.flags("launched", 10**6) if not f.startswith(skipped)]
    environment = {"ORIGINAL_MANIFEST": "all.jsonl", "TRAIN_RATIO": "0.7", "OUTPUT_DIR": "results"}
    environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = os.environ | environment | {"NPROC": "2"}
    command = ["bash", str(ROOT / "train_wfimagevae.sh"), *flags]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("results/launched-*/training_losses.csv")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    told = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert time.monotonic() - told < 25
    (path,) = workplace.run_folder("launched").glob("checkpoint-*.ckpt")
    step = int(path.stem.split("-")[1])
    assert load(path.parent, step)["sampler_state"]["position"] == 4 * step
    sides = [
        {json.loads(line)["image_path"] for line in (tmp_path / "results/manifests" / name).open()}
        for name in ("train.jsonl", "eval.jsonl")
    ]
    assert (len(sides[0]), len(sides[1])) == (5, 2)
    assert not sides[0] & sides[1]
