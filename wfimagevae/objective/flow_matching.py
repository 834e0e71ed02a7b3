"""Flow matching: a network learns the velocity of the straight path from noise to data.

What it shares with the other objectives of generators stands here, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.diffusion.guidance import Condition
from wfimagevae.diffusion.path import expand_times, shift_times
from wfimagevae.engine.device import to_device
from wfimagevae.engine.seeding import sample_noise, sample_uniforms
from wfimagevae.objective.options import NoisePredictionOptions, ObjectiveOptions

Batch = dict
Logs = dict[str, Tensor]

TIME_BINS = ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")


@dataclass(frozen=True)
class PathPoint:
    """A batch, (B, ...), on its way from noise to data at times t, (B,); velocity is d x_t / dt.

    ``dropped``, bool (B,), on the CPU, says whose whole condition was replaced by the null one.
    """

    x_t: Tensor
    velocity: Tensor
    t: Tensor
    condition: Condition | None
    dropped: Tensor


class ConditionalObjective(nn.Module):
    """Owns a network that predicts something of noisy data, told a class, a text or nothing.

    Args:
        network: ``network(x, t, condition)``; owned.
        encode: Gives a batch's data, (B, *network.sample_shape): images, latents or points.
        options: Dropped conditions, and what else the objective needs.
        seed: Of the run; noise, times and dropped conditions follow from it and the data position.
        condition: Gives what the network is told of a batch, on the data's device; by default its
            ``label``.
    """

    average_velocity = False  # whether its network takes an end time

    def __init__(
        self,
        network: nn.Module,
        encode: Callable[[Batch], Tensor],
        options: ObjectiveOptions | NoisePredictionOptions,
        seed: int,
        condition: Callable[[Batch], Condition] | None = None,
    ):
        super().__init__()
        self.network, self.encode, self.options, self.seed = network, encode, options, seed
        self.condition = condition or (lambda batch: batch["label"])
        # What generating needs to know; and an update's arithmetic, in forward passes.
        self.facts = {"objective": options.objective, "cfg_dropout_prob": options.cfg_dropout_prob}
        self.passes = 3.0  # once forward, twice back

    def begin_update(self) -> None:
        """Nothing to prepare."""

    def compile(self, mode: str = "default") -> None:
        """The network's blocks are compiled in place; nothing else is worth it here."""
        self.network.compile_blocks(mode)

    @torch.no_grad()
    def draw_sample(self, batch: Batch) -> tuple[Tensor, Tensor, Condition | None, Tensor]:
        """A batch's data, (B, ...), the noise of its positions, and what the network is told.

        That is the null condition for some samples; the last tensor, bool (B,) on the CPU, says
        whose whole condition was dropped. Parts that have no null, such as a low resolution, are
        never dropped.
        """
        data, positions = self.encode(batch), batch["position"]
        device = data.device
        noise = sample_noise(self.seed, positions, tuple(data.shape[1:]), device).to(data.dtype)
        # A draw below prob drops class and text, below 1.5 prob the class, below 2 prob the text.
        draws, prob = sample_uniforms(self.seed, "drop", positions), self.options.cfg_dropout_prob
        whole, without_class, either = draws < prob, draws < 1.5 * prob, draws < 2 * prob
        null = self.network.null_condition(len(draws), device)
        if null is None:
            return data, noise, None, whole
        condition = self.condition(batch)
        if not isinstance(condition, dict):
            return data, noise, torch.where(to_device(whole, device), null, condition), whole
        text_rows = whole | (either & ~without_class) if "label" in condition else whole
        dropped = {}
        for name, nothing in null.items():
            part, rows = condition[name], without_class if name == "label" else text_rows
            dropped[name] = torch.where(expand_times(to_device(rows, device), part), nothing, part)
        return data, noise, condition | dropped, whole


class FlowMatching(ConditionalObjective):
    """Trains a network to predict the velocity at random points of straight paths.

    Arguments are those of `ConditionalObjective`; the options' direction term is over the channels
    of each place, as LightningDiT (arXiv:2501.01423) adds it.

    Source: Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.
    """

    options: ObjectiveOptions

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """Mean squared error of the velocity, per dimension, and its share by time."""
        point = self.draw(batch, self.draw_times("time", batch["position"]))
        predicted = self.network(point.x_t, point.t, point.condition).float()
        error = (predicted - point.velocity).square().flatten(1).mean(1)  # (B,)
        loss = error.mean()
        logs = {"train/loss": loss.detach(), **error_by_time(error.detach(), point.t)}
        if self.options.direction_weight > 0:
            turn = 1 - F.cosine_similarity(predicted, point.velocity, dim=1).mean()
            loss = loss + self.options.direction_weight * turn
            logs["train/direction_loss"] = turn.detach()
        return loss, logs

    def draw_times(self, purpose: str, positions: list[int]) -> Tensor:
        """Times of the options' distribution, float64 (B,), on the CPU."""
        times, options = sample_uniforms(self.seed, purpose, positions), self.options
        if options.time_distribution == "logit_normal":
            logits = options.time_mean + options.time_std * torch.special.ndtri(times)
            times = torch.sigmoid(logits)
        return shift_times(times, options.time_shift)

    def draw(self, batch: Batch, t: Tensor) -> PathPoint:
        """The points at times ``t``, (B,), of straight paths that follow from the data positions.

        Source: Lipman et al. 2023, arXiv:2210.02747, optimal-transport path.
        """
        data, noise, condition, dropped = self.draw_sample(batch)
        t = to_device(t.to(data.dtype), data.device)
        times = expand_times(t, data)
        x_t = (1 - times) * noise + times * data
        return PathPoint(x_t, data - noise, t, condition, dropped)


def error_by_time(error: Tensor, t: Tensor, names: Sequence[str] = TIME_BINS) -> Logs:
    """Pooled (sum, weight) of errors, (B,), in each of some equal parts of the times, (B,).

    Times are shares of the whole, from 0 to 1; ``names`` are those of the parts.
    """
    bins = (t * len(names)).long().clamp_max(len(names) - 1)
    inside = F.one_hot(bins, len(names)).to(error.dtype)  # (B, bins)
    # No matrix product: autocast would round the errors.
    sums = (error[:, None] * inside).sum(0)
    pairs = torch.stack([sums, inside.sum(0)], dim=1)  # (bins, 2)
    return {f"train/error_t{name}": pair for name, pair in zip(names, pairs, strict=True)}
