"""A regression that the engine's tests train."""

import torch
from torch import nn

from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.player import Player


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


def batches(num: int, size: int, dtype=torch.float64) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "x": torch.randn(size, 3, generator=generator, dtype=dtype),
            "y": torch.randn(size, 1, generator=generator, dtype=dtype),
        }
        for _ in range(num)
    ]


def player(objective=None, fused=True, **options) -> Player:
    objective = objective or Regression()
    options = {"lr": 0.05, "lr_schedule": "cosine", "warmup_steps": 2, **options}
    options = TrainingOptions(**{"mix_precision": "fp32", "clip_grad_norm": 1e9, **options})
    ours = Player("toy", objective, options, blocks=[objective.network[0]])
    ours.plan_rest(20)
    if not fused:
        ours.optimizer = torch.optim.AdamW(ours.parameters, options.lr, weight_decay=1e-4)
    return ours


def weights(player: Player) -> torch.Tensor:
    return torch.cat([p.detach().flatten().double() for p in player.parameters])
