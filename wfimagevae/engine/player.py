"""A player: one objective and all that updates it. Zero, accumulate, clip, step: here alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wfimagevae.engine.device import autocast
from wfimagevae.engine.ema import EMA
from wfimagevae.engine.optim import build_optimizer, combine, load_optimizer_state
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.schedules import LrSchedule
from wfimagevae.engine.sharding import data_parallel, local, sync_gradients, whole


class Player:
    """One objective, its optimizer, schedule, gradient scaler and average.

    Args:
        objective: ``forward(batch, step) -> (loss, logs)`` and ``begin_update()``. It owns the
            network it trains; unless that is sharded, DDP wraps the objective as a whole.
        schedule: Factor of the learning rate at this player's n-th update; or one for each of the
            optimizer's parameter groups.
        precision: ``fp32``, ``bf16`` or ``fp16`` (with a gradient scaler).
        clip_grad_norm: Largest norm of the gradient, in units of the objective's loss.
        find_unused_parameters: DDP's flag, for objectives that do not use every parameter.
    """

    def __init__(
        self,
        name: str,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LrSchedule | Sequence[LrSchedule],
        precision: str = "fp32",
        clip_grad_norm: float = float("inf"),
        find_unused_parameters: bool = False,
    ):
        self.name, self.objective, self.optimizer = name, objective, optimizer
        self.precision, self.clip_grad_norm = precision, clip_grad_norm
        self.ema: EMA | None = None
        is_shared = isinstance(schedule, LrSchedule)
        self.schedules = [schedule] * len(optimizer.param_groups) if is_shared else list(schedule)
        self.group_names = [name] * len(self.schedules)
        self.peak_lrs = [group["lr"] for group in optimizer.param_groups]
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.num_updates, self.flops_per_sample = 0, 0.0
        self.skipped = torch.zeros(2, device=self.device)  # in all, in a row
        self.module = data_parallel(objective, find_unused_parameters)

    def update(self, micro_batches: list, step: int) -> dict[str, Tensor]:
        """One update from the mean gradient of the micro-batches, which are of equal size.

        A non-finite loss or gradient, on any rank, leaves weights and moments as they are and is
        counted in ``skipped``. Returns means over the micro-batches of what the objective logged,
        on the device.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.begin_update()
        logs = []
        for i, batch in enumerate(micro_batches):
            with sync_gradients(self.module, enabled=i == len(micro_batches) - 1):
                with autocast(self.device, self.precision):
                    loss, entry = self.module(batch, step)
                # A non-finite loss may have finite gradients, on one rank only: poison them.
                poison = torch.where(loss.detach().isfinite(), 1.0, float("nan"))
                self.scaler.scale(loss * (poison / len(micro_batches))).backward()
            logs.append(entry)
        groups = zip(self.optimizer.param_groups, self.peak_lrs, self.schedules, strict=True)
        for group, peak, schedule in groups:
            group["lr"] = peak * schedule(self.num_updates)
        grad_norm = self._step()
        self.num_updates += 1
        means = {key: torch.stack([e[key].float() for e in logs]).mean(0) for key in logs[0]}
        return means | {f"grad_norm/{self.name}": grad_norm}

    def _step(self) -> Tensor:
        """Clips and steps unless a gradient is not finite; returns the gradient's norm."""
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = whole(nn.utils.get_total_norm(grads))
        bad = (~norm.isfinite()).float()
        excess = (norm / self.clip_grad_norm).clamp_min(1.0)
        if self.scaler.is_enabled():
            torch._foreach_div_([local(grad) for grad in grads], excess)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.optimizer.defaults.get("fused"):
            # The fused kernel divides and skips on the device: no sync, no pass for clipping.
            self.optimizer.grad_scale, self.optimizer.found_inf = excess.float(), bad
            self.optimizer.step()
        elif not bad.item():
            torch._foreach_div_([local(grad) for grad in grads], excess)
            self.optimizer.step()
        self._count_skip(bad)
        if self.ema is not None:
            self.ema.update()
        return norm

    def _count_skip(self, bad: Tensor) -> None:
        self.skipped[0] += bad
        # While a gradient scaler still halves its scale, skips are its way to find one.
        warming_up = self.scaler.is_enabled() and self.num_updates < 100
        self.skipped[1].mul_(bad).add_(0 if warming_up else bad)

    def observe(self, score: float) -> None:
        for schedule in dict.fromkeys(self.schedules):
            schedule.observe(score)

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def named_lrs(self) -> dict[str, float]:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        pairs = zip(self.group_names[::-1], rates[::-1], strict=True)
        return {f"lr/{name}": rate for name, rate in pairs}

    def state_dict(self) -> dict:
        """All but the weights, the optimizer's state and the average."""
        return {
            "scaler": self.scaler.state_dict(),
            "num_updates": self.num_updates,
            "skipped": self.skipped,
            "ema_updates": self.ema.num_updates if self.ema else 0,
            "schedule": self.schedules[0].state_dict(),
            "other_schedules": [schedule.state_dict() for schedule in self._other_schedules],
        }

    def load_state_dict(self, state: dict) -> None:
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.num_updates = state["num_updates"]
        self.skipped.copy_(state["skipped"])
        if self.ema is not None:
            self.ema.num_updates = state["ema_updates"]
        if "schedule" in state:  # not in older checkpoints
            self.schedules[0].load_state_dict(state["schedule"])
        others = state.get("other_schedules", [])
        for schedule, entry in zip(self._other_schedules, others, strict=bool(others)):
            schedule.load_state_dict(entry)

    @property
    def _other_schedules(self) -> list[LrSchedule]:
        return list(dict.fromkeys(self.schedules))[1:]


class OptimizerState:
    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

    def state_dict(self) -> dict:
        return self.optimizer.state_dict() | {"kind": type(self.optimizer).__name__}

    def load_state_dict(self, state: dict) -> None:
        kind, own = state.get("kind", "AdamW"), type(self.optimizer).__name__
        if kind != own:
            raise ValueError(
                f"the checkpoint's optimizer is {kind}, this run's is {own}; "
                "add --not_resume_optimizer to start its state anew"
            )
        load_optimizer_state(self.optimizer, state)


@dataclass(frozen=True)
class PlayerPart:
    """Parameters of a player whose optimizer and schedule have some other options.

    ``name`` is that of their learning rate in logs.
    """

    name: str
    parameters: list[nn.Parameter]
    changes: dict[str, Any] = field(default_factory=dict)


def build_player(
    name: str,
    objective: nn.Module,
    options: TrainingOptions,
    updates: int,
    loss_divisor: float = 1.0,
    blocks: Sequence[nn.Module] = (),
    parts: Sequence[PlayerPart] = (),
) -> Player:
    """A player whose optimizer, schedule and precision are as the options say.

    Args:
        updates: How many it makes in all: schedules end there.
        loss_divisor: What the objective divides its logged loss by before it is backpropagated; the
            largest gradient norm is in units of the logged loss.
        blocks: The network's hidden layers, whose matrices muon trains.
        parts: Parameters that have options of their own.
    """
    apart = {parameter for part in parts for parameter in part.parameters}
    rest = [p for p in objective.parameters() if p.requires_grad and p not in apart]
    groups = [PlayerPart(name, rest)] if rest or not parts else []
    optimizers, schedules, names = [], [], []
    for part in [*groups, *parts]:
        changed = options.changed(**part.changes)
        optimizer = build_optimizer(changed, part.parameters, blocks, loss_divisor)
        optimizers.append(optimizer)
        schedules += [LrSchedule(changed, updates)] * len(optimizer.param_groups)
        names += [part.name] * len(optimizer.param_groups)
    player = Player(
        name,
        objective,
        combine(optimizers),
        schedules,
        options.mix_precision,
        options.clip_grad_norm / loss_divisor,
        options.find_unused_parameters,
    )
    player.group_names = names
    return player
