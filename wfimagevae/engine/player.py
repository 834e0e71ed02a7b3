"""A player: one objective and all that updates it. Zero, accumulate, clip, step: here alone."""

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from wfimagevae.engine.device import autocast
from wfimagevae.engine.ema import EMA
from wfimagevae.engine.optim import Combined, LrSchedule, build_optimizer
from wfimagevae.engine.options import OptimizerOptions, TrainingOptions
from wfimagevae.engine.sharding import local, whole


@dataclass(frozen=True)
class PlayerPart:
    """Parameters of a player whose optimizer and schedule have options of their own.

    ``name`` is that of their learning rate in logs.
    """

    name: str
    parameters: list[nn.Parameter]
    options: OptimizerOptions


class Player:
    """One objective, its optimizer, schedules, gradient scaler and average.

    Args:
        objective: ``forward(batch, step) -> (loss, logs)`` and ``begin_update()``. It owns the
            network it trains; unless that is sharded, DDP wraps the objective as a whole.
        options: Optimizer, schedule, which ends where `plan_rest` says, precision and the largest
            gradient norm.
        loss_divisor: What the objective divides its logged loss by before it is backpropagated; the
            largest gradient norm is in units of the logged loss.
        blocks: The network's hidden layers, whose matrices muon trains.
        parts: Parameters that have options of their own.
    """

    def __init__(
        self,
        name: str,
        objective: nn.Module,
        options: TrainingOptions,
        loss_divisor: float = 1.0,
        blocks: Sequence[nn.Module] = (),
        parts: Sequence[PlayerPart] = (),
    ):
        self.name, self.objective, self.precision = name, objective, options.mix_precision
        self.clip_grad_norm = options.clip_grad_norm / loss_divisor
        self.ema: EMA | None = None
        # One optimizer of the parts that have their own options and of the rest.
        apart = {parameter for part in parts for parameter in part.parameters}
        rest = [p for p in objective.parameters() if p.requires_grad and p not in apart]
        if rest or not parts:
            parts = [PlayerPart(name, rest, options), *parts]
        optimizers, self.schedules, self.group_names = [], [], []
        for part in parts:
            optimizers.append(build_optimizer(part.options, part.parameters, blocks, loss_divisor))
            num_groups = len(optimizers[-1].param_groups)
            self.schedules += [LrSchedule(part.options)] * num_groups
            self.group_names += [part.name] * num_groups
        self.optimizer = Combined(optimizers) if len(optimizers) > 1 else optimizers[0]
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.num_updates, self.flops_per_sample = 0, 0.0
        # Where its schedules stand, and how far an update takes them: `plan_rest`.
        self.clock, self.pace = 0.0, 1.0
        self.skipped = torch.zeros(2, device=self.device)  # in all, in a row
        # Gradients are averaged over processes by DDP, unless the network is sharded.
        self.module = objective
        self.shards = [part for part in objective.modules() if isinstance(part, FSDPModule)]
        if dist.is_initialized() and not self.shards:
            # PyTorch 2.15 renamed it, and warns of the old name.
            known = inspect.signature(DistributedDataParallel).parameters
            renamed = "forward_sync_buffers" in known
            self.module = DistributedDataParallel(
                objective,
                **{"forward_sync_buffers" if renamed else "broadcast_buffers": False},
                gradient_as_bucket_view=True,
                find_unused_parameters=options.find_unused_parameters,
            )

    def update(self, micro_batches: list, step: int) -> dict[str, Tensor]:
        """One update from the mean gradient of the micro-batches, which are of equal size.

        A non-finite loss or gradient, on any rank, leaves weights and moments as they are and is
        counted in ``skipped``. Returns means over the micro-batches of what the objective logged,
        on the device.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.begin_update()
        # Accumulate gradients; only the last micro-batch averages them over processes.
        logs = []
        for i, batch in enumerate(micro_batches):
            averages = i == len(micro_batches) - 1
            for part in self.shards:
                part.set_requires_gradient_sync(averages, recurse=False)
            waits = not averages and self.module is not self.objective
            with self.module.no_sync() if waits else contextlib.nullcontext():
                with autocast(self.device, self.precision):
                    loss, entry = self.module(batch, step)
                # A non-finite loss may have finite gradients, on one rank only: poison them.
                poison = torch.where(loss.detach().isfinite(), 1.0, float("nan"))
                self.scaler.scale(loss * (poison / len(micro_batches))).backward()
            logs.append(entry)
        groups = zip(self.optimizer.param_groups, self.peak_lrs, self.schedules, strict=True)
        for group, peak, schedule in groups:
            group["lr"] = peak * schedule(self.clock)
        # Clip by the norm of all gradients, and step unless it is not finite.
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        norm = whole(norm) if self.shards else norm
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
        self.num_updates += 1
        self.clock += self.pace
        # Numbers of one shape in one tensor: a kernel or two for all of them.
        means = {}
        for shape in dict.fromkeys(value.shape for value in logs[0].values()):
            names = [name for name, value in logs[0].items() if value.shape == shape]
            values = torch.stack([entry[name].float() for name in names for entry in logs])
            values = values.unflatten(0, (len(names), len(logs))).mean(1)
            means |= dict(zip(names, values.unbind(), strict=True))
        return {name: means[name] for name in logs[0]} | {f"grad_norm/{self.name}": norm}

    def _count_skip(self, bad: Tensor) -> None:
        self.skipped[0] += bad
        # While a gradient scaler still halves its scale, skips are its way to find one.
        warming_up = self.scaler.is_enabled() and self.num_updates < 100
        self.skipped[1].mul_(bad).add_(0 if warming_up else bad)

    def plan_rest(self, left: int, pace: float = 1.0) -> None:
        """Lets schedules end after ``left`` more updates, each of which takes them ``pace`` on."""
        self.pace = pace
        for schedule in self.schedules:
            schedule.total_updates = self.clock + left * pace

    def observe(self, score: float) -> None:
        for schedule in dict.fromkeys(self.schedules):
            schedule.observe(score)

    def named_lrs(self) -> dict[str, float]:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        pairs = zip(self.group_names[::-1], rates[::-1], strict=True)
        return {f"lr/{name}": rate for name, rate in pairs}

    def state_dict(self) -> dict:
        """All but the weights, the optimizer's state and the average."""
        first, *others = dict.fromkeys(self.schedules)
        return {
            "scaler": self.scaler.state_dict(),
            "num_updates": self.num_updates,
            "skipped": self.skipped,
            "ema_updates": self.ema.num_updates if self.ema else 0,
            "schedule": first.state_dict(),
            "other_schedules": [schedule.state_dict() for schedule in others],
        } | ({} if self.clock == self.num_updates else {"clock": self.clock})

    def load_state_dict(self, state: dict) -> None:
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.num_updates = state["num_updates"]
        self.clock = state.get("clock", self.num_updates)
        self.skipped.copy_(state["skipped"])
        if self.ema is not None:
            self.ema.num_updates = state["ema_updates"]
        # Older checkpoints have no schedules, or the first one's alone.
        first, *others = dict.fromkeys(self.schedules)
        if "schedule" in state:
            first.load_state_dict(state["schedule"])
        saved = state.get("other_schedules", [])
        for schedule, entry in zip(others, saved, strict=bool(saved)):
            schedule.load_state_dict(entry)
