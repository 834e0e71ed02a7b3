"""The image VAE's two players in float64, on one process or on several gloo ranks."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing

from tests.images import TINY_MODEL
from wfimagevae.command_line import parse
from wfimagevae.dataset import TrainLoader
from wfimagevae.dataset.open import build_image_data
from wfimagevae.engine.distributed import world
from wfimagevae.engine.seeding import seed_everything
from wfimagevae.model.vae.modeling_wfvae2_image import WFVAE2ImageModel
from wfimagevae.task.vae import VaeTask, build_players
from wfimagevae.task.vae_networks import build_loss
from wfimagevae.task.vae_options import VaeOptions


def play(flags: list[str], steps: int, result: Path) -> None:
    """Trains for some steps as the flags say and saves both networks."""
    torch.set_num_threads(1)
    options = parse(VaeOptions, flags)
    with world("cpu") as here:
        seed_everything(options.seed)
        config = {key: value for key, value in TINY_MODEL.items() if key != "_class_name"}
        vae = WFVAE2ImageModel(**config).double().train()
        loss = build_loss(options, here.device).double()
        players = build_players(options, vae, loss, steps)
        dataset = build_image_data(options, options.image_path)
        loader = TrainLoader(dataset, options.batch_size, here.rank, here.size, num_workers=0)
        task = VaeTask(options, players, vae, loss, loader)
        for step in range(steps):
            micro = [next(loader) for _ in range(options.grad_accum_steps)]
            for batch in micro:
                batch["image"] = batch["image"].double()
            for player in task.turn(step):
                player.update(micro, step)
        states = {"vae": vae.state_dict(), "loss": loss.state_dict()}
        torch.save(states, result.with_suffix(f".{here.rank}"))


def play_on_ranks(num_ranks: int, flags: list[str], steps: int, result: Path) -> list[dict]:
    """What each of ``num_ranks`` spawned processes saved."""
    on_ranks(num_ranks, play, flags, steps, result)
    paths = [result.with_suffix(f".{rank}") for rank in range(num_ranks)]
    return [torch.load(path, weights_only=True) for path in paths]


def on_ranks(num_ranks: int, function: Callable, *arguments) -> None:
    """Calls a function in spawned processes that find each other as under torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_join, (num_ranks, port, function, arguments), nprocs=num_ranks)


def _join(rank: int, size: int, port: int, function: Callable, arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    function(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's end, in which the rank that was done first has aborted ("terminate
    # called without an active exception", seen twice with PyTorch 2.15 and gloo).
    os._exit(0)
