"""A regression that the engine's tests train."""

import torch
from torch import nn

from wfimagevae.engine.ema import EMA
from wfimagevae.engine.optim import build_optimizer
from wfimagevae.engine.options import OptimizerOptions
from wfimagevae.engine.player import Player
from wfimagevae.engine.schedules import LrSchedule


class Regression(nn.Module):
    """Mean squared error of a small network; ``begin_update`` counts its calls."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
        self.updates = 0

    def begin_update(self):
        self.updates += 1

    def forward(self, batch, step):
        loss = (self.network(batch["x"]) - batch["y"]).square().mean()
        return loss, {"train/loss": loss.detach()}


def batches(num: int, size: int, dtype=torch.float64, seed: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "x": torch.randn(size, 3, generator=generator, dtype=dtype),
            "y": torch.randn(size, 1, generator=generator, dtype=dtype),
        }
        for _ in range(num)
    ]


def halves(batch: dict) -> list[dict]:
    size = len(batch["x"]) // 2
    return [{k: v[:size] for k, v in batch.items()}, {k: v[size:] for k, v in batch.items()}]


def player(objective=None, lr=0.05, ema=False, fused=True, name="adamw", **rule) -> Player:
    objective = objective or Regression()
    blocks = [objective.network[0]]
    options = OptimizerOptions(optimizer=name, lr=lr, lr_schedule="cosine", warmup_steps=2)
    optimizer = build_optimizer(options, list(objective.parameters()), blocks)
    if not fused:
        optimizer = torch.optim.AdamW(objective.parameters(), lr, weight_decay=1e-4)
    ours = Player("toy", objective, optimizer, LrSchedule(options, 20), **rule)
    ours.ema = EMA(objective.network) if ema else None
    return ours


def weights(player: Player) -> torch.Tensor:
    return torch.cat([p.detach().flatten().double() for p in player.parameters])
