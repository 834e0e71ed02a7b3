"""Validation of a flow in training: held-out loss, distance of its samples, pictures of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wfimagevae.diffusion.guidance import Condition
from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import (
    World,
    all_reduce_sum,
    broadcast_object,
    gather_objects,
)
from wfimagevae.engine.ema import EMA
from wfimagevae.engine.report.progress import log_write_errors
from wfimagevae.engine.report.tracker import Tracker
from wfimagevae.eval.energy_distance import energy_distance
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.sample_picture import SamplePicture
from wfimagevae.generate.subjects import Subject


@dataclass(frozen=True)
class SampleRules:
    """What a validation draws.

    Attributes:
        folder: Of the run.
        sampling: Sampler, steps, guidance.
        num_samples: Held-out and generated samples that are compared, over all processes.
        num_images: Samples in the picture; 0 draws none.
        batch_size: Samples at a time.
        shown: What the picture's rows show, of a flow that takes text; else its classes.
    """

    folder: Path
    sampling: SamplingOptions
    num_samples: int = 512
    num_images: int = 64
    batch_size: int = 64
    shown: tuple[Subject, ...] = ()


class FlowValidator:
    """Judges a flow by held-out data, with the raw weights and, if there is one, the average.

    Args:
        objective: What is trained; its loss is evaluated at held-out data.
        generator: Draws samples from the same network.
        read: Gives held-out batches of the numbers asked for, on the device.
        world: This process and the others.
        rules: What to draw.
        tracker: Where pictures go, besides.
    """

    def __init__(
        self,
        objective: torch.nn.Module,
        generator: FlowGenerator,
        read: Callable[[list[int]], dict],
        world: World,
        rules: SampleRules,
        tracker: Tracker,
    ):
        self.objective, self.generator, self.read = objective, generator, read
        self.world, self.rules, self.tracker = world, rules, tracker
        # Shares of equal length: a sharded network is called by all processes or none.
        share = -(-rules.num_samples // world.size)
        mine = range(world.rank, share * world.size, world.size)
        size = rules.batch_size
        self._shares = [list(mine[i : i + size]) for i in range(0, len(mine), size)]

    def __call__(self, ema: EMA | None, step: int) -> dict[str, float]:
        """Figures named ``val/...`` and, of the average, ``val_ema/...``. Collective."""
        values = self._evaluate("val", step, draw=ema is None)
        if ema is not None:
            with ema.applied():
                values |= self._evaluate("val_ema", step, draw=True)
        return values

    @torch.no_grad()
    def _evaluate(self, prefix: str, step: int, draw: bool) -> dict[str, float]:
        network = self.objective.network
        was_training = network.training
        network.eval()
        values = self._held_out_loss(step)
        if draw:
            sampling, held_out = self.rules.sampling, self._held_out_data()
            values["energy_distance"] = self._distance(sampling, *held_out)
            if network.has_average_velocity:
                one = sampling.changed(sampler="mean_flow", steps=1)
                values["energy_distance_one_step"] = self._distance(one, *held_out)
                self._draw(one, step, "one-step")
            self._draw(sampling, step, sampling.sampler)
        network.train(was_training)
        return {f"{prefix}/{name}": value for name, value in values.items()}

    def _held_out_loss(self, step: int) -> dict[str, float]:
        """The loss, or the error where a loss weighs errors until all are about 1."""
        device = self.world.device
        totals = torch.zeros(2, dtype=torch.float32, device=device)
        for positions in self._shares:
            batch = self.read(positions)
            with autocast(device, self.generator.precision):
                loss, logs = self.objective(batch, step)
            name = "error" if "train/error" in logs else "loss"
            loss = logs.get("train/error", loss)
            totals += torch.stack([loss * len(positions), torch.ones_like(loss) * len(positions)])
        total, count = all_reduce_sum(totals).tolist()
        return {name: total / count}

    def _held_out_data(self) -> tuple[Tensor, list[Condition | None]]:
        """Held-out data of all processes, and what each of this one's batches shows."""
        real, conditions = [], []
        is_conditional = self.generator.model.is_conditional
        for positions in self._shares:
            batch = self.read(positions)
            real.append(self.objective.encode(batch).float().cpu())
            conditions.append(self.objective.condition(batch) if is_conditional else None)
        return _pool(real), conditions

    def _distance(
        self, sampling: SamplingOptions, real: Tensor, conditions: list[Condition | None]
    ) -> float:
        """Energy distance of samples to held-out data, with the classes and texts of that data.

        Infinite where samples are not finite, as they may be in low precision.
        """
        shares = zip(self._shares, conditions, strict=True)
        generated = _pool([self.generator.sample(i, y, sampling).cpu() for i, y in shares])
        # One process's figure for all: they must agree on which checkpoint is the best.
        is_finite = bool(generated.isfinite().all())
        mine = energy_distance(real, generated) if self.world.is_main and is_finite else math.inf
        return broadcast_object(mine)

    def _draw(self, sampling: SamplingOptions, step: int, name: str) -> None:
        """A picture of samples, one row a prompt or class."""
        if not self.rules.num_images:
            return
        # Every process takes part: the weights may be spread over all of them.
        rules = self.rules
        picture = SamplePicture(
            self.generator, sampling, rules.num_images, rules.batch_size, rules.shown
        )
        if not self.world.is_main:
            return
        path = rules.folder / "val_samples" / f"step-{step:08d}-{name}.png"
        with log_write_errors(f"sample picture {path.name}"):
            picture.save(path)
            self.tracker.log_images(step, {f"samples/{name}": path})


def _pool(mine: list[Tensor]) -> Tensor:
    """The samples of all processes, rank by rank."""
    return torch.cat([part for rank in gather_objects(mine) for part in rank])
