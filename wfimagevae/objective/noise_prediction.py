"""Gaussian diffusion: a network learns the noise in data, and the variances of the way back."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.diffusion.gaussian import GaussianDiffusion
from wfimagevae.diffusion.guidance import Condition
from wfimagevae.engine.device import to_device
from wfimagevae.engine.distributed import all_reduce_sum
from wfimagevae.engine.seeding import sample_uniforms
from wfimagevae.model.text import TextEncoder
from wfimagevae.objective.flow_matching import Batch, ConditionalObjective, Logs, error_by_time
from wfimagevae.objective.options import NoisePredictionOptions

_TIME_BINS = 4
# Spikes are judged among errors of about the same times, once so many of them were seen.
_SPIKE_BINS, _SEEN, _MEMORY = 20, 50, 0.99


class NoisePrediction(ConditionalObjective):
    """Trains a network to predict the noise in data at random discrete times, 0 nearest to data.

    Arguments are those of `ConditionalObjective`, and the encoder of captions, whose lengths are
    logged where it is given; the network's output, (B, 2 C, ...), is noise and
    the fractions of its variances. The loss is the mean squared error of the noise, by
    ``min_snr_gamma`` weighed over time (Hang et al. 2023, arXiv:2303.09556), plus ``vlb_weight``
    times the variational bound, in bits a dimension, that teaches the variances alone.

    Samples with an error of ``loss_spike_threshold`` times the running mean of their own twentieth
    of the times have no weight, so that easy times are not preferred.

    Source: Ho et al. 2020, arXiv:2006.11239; Nichol and Dhariwal 2021, arXiv:2102.09672.
    """

    options: NoisePredictionOptions

    def __init__(
        self,
        network: nn.Module,
        encode: Callable[[Batch], Tensor],
        options: NoisePredictionOptions,
        seed: int,
        condition: Callable[[Batch], Condition] | None = None,
        text: TextEncoder | None = None,
    ):
        super().__init__(network, encode, options, seed, condition)
        self.text = text
        config = network.config
        self.diffusion = GaussianDiffusion(config.schedule, config.num_train_steps)
        edges = [i * config.num_train_steps // _TIME_BINS for i in range(_TIME_BINS + 1)]
        self.time_bins = [f"{low}-{high - 1}" for low, high in pairwise(edges)]
        # Of each bin of times: how many errors were seen, and their running mean.
        device = next(network.parameters()).device
        self.usual = torch.zeros(_SPIKE_BINS, 2, device=device)

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """The loss, the error's share by time, and that of samples left out as spikes."""
        # Noisy data at times that follow from the data positions.
        data, noise, condition, _ = self.draw_sample(batch)
        uniforms = sample_uniforms(self.seed, "time", batch["position"])
        steps = (uniforms * self.diffusion.num_steps).long()  # on the CPU, where the schedule is
        t = to_device(steps, data.device)
        x_t = self.diffusion.add_noise(data, noise, steps)
        # Mean squared error of each sample, per dimension.
        output = self.network(x_t, t.float(), condition).float()
        error = (output[:, : data.shape[1]] - noise).square().flatten(1).mean(1)
        loss, logs = error, {"train/error": error.detach().mean()}
        if gamma := self.options.min_snr_gamma:
            weights = self.diffusion.min_snr_weights("epsilon", steps, gamma)
            loss = loss * to_device(weights, data.device)
        if self.options.vlb_weight and output.shape[1] > data.shape[1]:
            bound = self.diffusion.variational_bound(output, data, noise, steps)
            loss = loss + self.options.vlb_weight * bound
            logs["train/variational_bound"] = bound.detach().mean()
        if self.text and self.network.training:
            logs |= caption_statistics(batch, self.text, data.device)
        is_usual = self._is_usual(error.detach(), t)
        logs["train/spikes_skipped"] = 1 - is_usual.float().mean()
        loss = torch.where(is_usual, loss, 0.0).mean()
        by_time = error_by_time(error.detach(), t / self.diffusion.num_steps, self.time_bins)
        return loss, logs | {"train/loss": loss.detach()} | by_time

    @torch.no_grad()
    def _is_usual(self, error: Tensor, t: Tensor) -> Tensor:
        """Which samples of a training, bool (B,), are no spikes; the running means go on."""
        threshold = self.options.loss_spike_threshold
        if not (threshold and self.network.training):
            return torch.ones_like(error, dtype=torch.bool)
        bins = t * _SPIKE_BINS // self.diffusion.num_steps
        seen, mean = self.usual[bins].unbind(1)
        limit = torch.where(seen < _SEEN, torch.inf, threshold * mean)
        # A spike counts as far as the limit goes: if all errors grow, the mean follows. All
        # processes know the errors of all, so that they judge alike.
        capped = torch.minimum(error, limit)
        rows = F.one_hot(bins, _SPIKE_BINS) * capped.isfinite()[:, None]  # (B, bins)
        sums = (rows * capped.nan_to_num(0.0)[:, None]).sum(0)
        count, total = all_reduce_sum(torch.stack([rows.sum(0).to(sums.dtype), sums]))
        seen, mean = self.usual.unbind(1)
        share = torch.where(seen < _SEEN, seen / (seen + count).clamp_min(1), _MEMORY**count)
        mean = share * mean + (1 - share) * total / count.clamp_min(1)
        self.usual.copy_(torch.stack([seen + count, mean], 1))
        return ~(error > limit)  # what is no number is the engine's to refuse


def caption_statistics(
    batch: Batch, encoder: TextEncoder, device: torch.device
) -> dict[str, Tensor]:
    """Figures of a batch's captions as pooled (sum, weight), float32 (2,), on a device.

    ``train/caption_length`` is the mean length of those that are not empty, in the unit of the
    encoder's; ``train/captions_cut`` and ``train/captions_empty`` are shares of all: of captions
    longer than the encoder reads, and of those without text.
    """
    captions = batch["caption"]
    lengths = (batch.get("text") or encoder.tokenise(captions))["lengths"]
    written = [n for n, caption in zip(lengths, captions, strict=True) if caption.strip()]
    pairs = {
        "caption_length": (sum(written), len(written)),
        "captions_cut": (sum(n > encoder.length for n in written), len(captions)),
        "captions_empty": (len(captions) - len(written), len(captions)),
    }
    return {f"train/{n}": to_device(torch.tensor(p).float(), device) for n, p in pairs.items()}
