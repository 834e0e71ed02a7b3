"""How long the processes of a training wait for each other."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from unittest.mock import patch

import pytest
import torch.distributed as dist

from tests.distributed.worker import on_ranks
from tests.task.training import ROOT, FlowPlace
from wfimagevae.command_line import parse
from wfimagevae.task.flow import train
from wfimagevae.task.flow_options import FlowOptions

WORDS = "--dataset moons --model_name MLP --device cpu --eval_steps 0 --dataset_num_worker 0"
_COMPILING = """
import os, signal, time
from train_ddp import main
from wfimagevae.command_line import run_cli
from wfimagevae.engine.player import Player

def update(*_):
    if os.environ["RANK"] == "1":
        os.kill({process}, signal.SIGTERM)
    time.sleep(60)

Player.update = update
raise SystemExit(run_cli(main))
"""


def train_a_step(folder):
    spies = [
        patch.object(dist, name, wraps=getattr(dist, name))
        for name in ("init_process_group", "new_group")
    ]
    words = f"{WORDS} --max_steps 1 --ckpt_dir {folder} --ddp_timeout 7".split()
    with spies[0] as first, spies[1] as second:
        train(parse(FlowOptions, words))
    for spy in (first, second):
        assert [call.kwargs["timeout"] for call in spy.call_args_list] == [timedelta(minutes=7)]


def test_a_training_waits_as_long_as_asked_in_every_group_of_processes(tmp_path):
    """In the group that averages gradients, and in the one that agrees on signals."""
    on_ranks(2, train_a_step, tmp_path)


@pytest.mark.parametrize(("process", "status"), [("os.getpid()", 130), ("os.getppid()", 143)])
def test_a_first_step_that_compiles_in_two_processes_ends_at_a_signal(tmp_path, process, status):
    """goodfire-ai/spd #741: to one of them, or to their launcher."""
    (tmp_path / "entry.py").write_text(_COMPILING.format(process=process))
    command = [sys.executable, "-m", "wfimagevae.torchrun", "--standalone", "--nproc_per_node=2"]
    command += [str(tmp_path / "entry.py"), *FlowPlace(tmp_path).flags("x", 2)]
    start, variables = time.monotonic(), {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, env=os.environ | variables).returncode == status
    assert time.monotonic() - start < 50 and not list(tmp_path.glob("results/*/*"))
