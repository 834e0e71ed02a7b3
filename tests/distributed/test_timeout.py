"""--ddp_timeout: how long the processes of a training wait for each other."""

from datetime import timedelta
from unittest.mock import patch

import torch.distributed as dist

from tests.distributed.worker import on_ranks
from wfimagevae.command_line import parse
from wfimagevae.task.flow import train
from wfimagevae.task.flow_options import FlowOptions

WORDS = "--dataset moons --model_name MLP --device cpu --eval_steps 0 --dataset_num_worker 0"


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
