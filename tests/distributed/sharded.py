"""A small network trained in float64 on one process, or sharded on several gloo ranks."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from wfimagevae.engine.checkpoint import collect, read_checkpoint, restore, write_checkpoint
from wfimagevae.engine.distributed import World, barrier, world
from wfimagevae.engine.ema import Averages
from wfimagevae.engine.optim import OptimizerState
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.player import Player
from wfimagevae.engine.sharding import shard

WHOLE = 8  # samples of an update


class Network(nn.Module):
    """Two hidden blocks between an embedding and a head; 7 rows do not divide by 2 ranks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 7)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(7, 1)
        self.frozen = nn.Parameter(torch.ones(7), requires_grad=False)
        self.register_buffer("scale", torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) * self.frozen
        for block in self.blocks:
            if torch.is_grad_enabled():
                h = h + self.scale * checkpoint(block, h, use_reentrant=False)
            else:  # older versions of PyTorch have no forward derivative of a checkpoint
                h = h + self.scale * block(h)
        return self.head(h)


class Distillation(nn.Module):
    """Fits y, and a forward-mode derivative of the network's own along the way."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def begin_update(self) -> None:
        pass

    def forward(self, batch: dict, step: int):
        x = batch["x"]
        with torch.no_grad(), forward_ad.dual_level():
            moving = forward_ad.make_dual(x, torch.ones_like(x))
            slope = forward_ad.unpack_dual(self.network(moving)).tangent
        loss = (self.network(x) - batch["y"] - 0.1 * slope).square().mean()
        return loss, {"train/loss": loss.detach()}


@dataclass(frozen=True)
class Plan:
    """What to train."""

    optimizer: str = "adamw"
    steps: tuple[int, int] = (0, 4)
    micro: int = 1  # micro-batches of an update, on each rank
    precision: str = "fp32"
    clip_grad_norm: float = 0.1
    dtype: torch.dtype = torch.float64
    load: Path | None = None  # checkpoint to go on from
    bad_step: int = -1  # update at which the last rank sees an infinity


def samples(plan: Plan, step: int, rank: int, size: int) -> list[dict]:
    """This rank's micro-batches of the same eight samples."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(WHOLE, 3, generator=generator, dtype=plan.dtype)
    y = x.sum(1, keepdim=True).sin()
    if step == plan.bad_step:
        y[-1] = float("inf")
    rows = range(rank * WHOLE // size, (rank + 1) * WHOLE // size)
    share = WHOLE // size // plan.micro
    return [
        {"x": x[start : start + share], "y": y[start : start + share]}
        for start in range(rows.start, rows.stop, share)
    ]


def train(plans: list[tuple[Plan, Path]], sharded: bool) -> None:
    """Carries out plans in this process, as one of a group where there is one."""
    torch.set_num_threads(1)
    with world("cpu") as here:
        for plan, result in plans:
            _train(plan, result, here, sharded)


def _train(plan: Plan, result: Path, here: World, sharded: bool) -> None:
    network = Network().to(plan.dtype)
    if sharded:
        shard(network, network.blocks, here.device)
    rule = {"mix_precision": plan.precision, "clip_grad_norm": plan.clip_grad_norm}
    rate = {"lr": 0.02, "lr_schedule": "linear", "warmup_steps": 1}
    options = TrainingOptions(optimizer=plan.optimizer, **rule, **rate)
    player = Player("toy", Distillation(network), options, 20, blocks=network.blocks)
    player.ema = averages = Averages(network, [0.9, 0.5])
    parts = {
        "state_dict.gen_model": network,
        "optimizer_state.gen_optimizer": OptimizerState(player.optimizer),
        "player_state.toy": player,
    }
    parts |= averages.parts()
    if plan.load:
        barrier()  # another plan of this group may have written it
        restore(parts, read_checkpoint(plan.load))
    norms = [
        player.update(samples(plan, step, here.rank, here.size), step)["grad_norm/toy"].item()
        for step in range(*plan.steps)
    ]
    with averages.applied(), torch.no_grad():
        averaged = network(torch.ones(1, 3, dtype=plan.dtype))
    content = collect(parts, here.is_main, norms=norms, averaged=averaged)
    if here.is_main:
        write_checkpoint(result, content)
