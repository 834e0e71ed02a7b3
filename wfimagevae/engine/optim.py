"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Callable

import torch
from torch import nn

SCHEDULES = ("constant", "cosine", "linear")


def adamw(
    parameters: list[nn.Parameter],
    lr: float,
    weight_decay: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    loss_divisor: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW, fused where it exists.

    Args:
        parameters: What it trains, all on one device.
        lr: Learning rate.
        weight_decay: Decoupled, on every parameter.
        betas: Decay of the two moments.
        loss_divisor: What the loss was divided by before backward; epsilon is divided by it
            too, so that updates do not depend on it.

    Raises:
        ValueError: there is nothing to train.
    """
    if not parameters:
        raise ValueError("nothing to train: every parameter is frozen")
    # MPS: its fused kernel does not take found_inf, which skips bad updates without a sync.
    fused = parameters[0].device.type != "mps"
    eps = 1e-8 / loss_divisor
    return torch.optim.AdamW(parameters, lr, betas, eps=eps, weight_decay=weight_decay, fused=fused)


def lr_schedule(
    kind: str, warmup_updates: int, total_updates: int, min_factor: float = 0.0
) -> Callable[[int], float]:
    """Factor of the learning rate at each update: linear warm-up, then the schedule.

    Args:
        kind: ``constant``, ``cosine`` or ``linear`` decay.
        warmup_updates: Updates until the peak.
        total_updates: Updates until the decay ends.
        min_factor: Share of the peak at the end.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"unknown schedule {kind!r}; use one of {', '.join(SCHEDULES)}")

    def factor(update: int) -> float:
        if update < warmup_updates:
            return (update + 1) / (warmup_updates + 1)
        if kind == "constant":
            return 1.0
        span = max(total_updates - warmup_updates, 1)
        done = min((update - warmup_updates) / span, 1.0)
        left = 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return min_factor + (1 - min_factor) * left

    return factor


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads moments and counts; learning rate, betas and decay stay as the optimizer has them.

    Moments get their parameter's strides: fused CPU AdamW walks both in memory order, and
    with channels_last parameters and contiguous moments it would update the wrong elements.

    Raises:
        ValueError: the state belongs to other parameters.
    """
    own_groups = optimizer.state_dict()["param_groups"]
    sizes = [len(group["params"]) for group in state["param_groups"]]
    own_sizes = [len(group["params"]) for group in own_groups]
    if sizes != own_sizes:
        raise ValueError(f"optimizer state is of {sizes} parameters, the network has {own_sizes}")
    optimizer.load_state_dict({"state": state["state"], "param_groups": own_groups})
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment.dim() == 0:  # the step count
                continue
            if moment.shape != parameter.shape:
                raise ValueError(
                    f"optimizer state does not fit the network: {name} has shape "
                    f"{tuple(moment.shape)}, its parameter {tuple(parameter.shape)}"
                )
            moments[name] = torch.empty_like(parameter).copy_(moment).detach()
