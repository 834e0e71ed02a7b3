"""Exponential moving averages of a network's weights."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wfimagevae.engine.sharding import local, placed_like

log = logging.getLogger("wfimagevae")


class EMA:
    """Average of a network's weights and floating-point buffers, at least float32, by bare names.

    An update keeps a share ``decay`` of the average; ``warmup`` lowers it at first to (1 + n) / (10
    + n), n the updates so far, so that the initial weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999, warmup: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must be in [0, 1), got {decay}")
        self.network, self.decay, self.warmup = network, decay, warmup
        self.num_updates = 0
        self.average = {
            name: value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
            for name, value in _weights(network).items()
        }

    @torch.no_grad()
    def update(self) -> None:
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        # All weights in one call: one kernel a dtype instead of one a tensor.
        averages = [local(value) for value in self.average.values()]
        weights = zip(_weights(self.network).values(), averages, strict=True)
        live = [local(value).to(average.dtype) for value, average in weights]
        torch._foreach_lerp_(averages, live, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network holds the averaged weights inside this context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # In place: optimizers, DDP and compiled graphs keep hold of the same tensors.
        for name, live in _weights(self.network).items():
            try:
                kept = live.clone()
            except torch.OutOfMemoryError:  # halfway, weights would stay swapped
                kept = live.cpu()
            live.copy_(self.average[name])
            self.average[name].copy_(kept)

    @torch.no_grad()
    def restart(self) -> None:
        self.num_updates = 0
        for name, live in _weights(self.network).items():
            self.average[name].copy_(live)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.average)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes an average with or without ``module.`` before its names."""
        state = {name.removeprefix("module."): value for name, value in state.items()}
        if missing := sorted(self.average.keys() - state.keys()):
            raise ValueError(
                f"EMA of the checkpoint lacks {len(missing)} weights, first {missing[0]}"
            )
        for name, value in self.average.items():
            value.copy_(placed_like(state[name], value))


class Averages(EMA):
    """Averages of one network with several decays; the first is the one to validate and export."""

    def __init__(self, network: nn.Module, decays: Sequence[float], warmup: bool = True):
        if not decays or len(set(decays)) < len(decays):
            raise ValueError(f"EMA needs decays that differ, got {list(decays)}")
        super().__init__(network, decays[0], warmup)
        self.others = OtherAverages([EMA(network, decay, warmup) for decay in decays[1:]])

    def update(self) -> None:
        super().update()
        for ema in self.others.averages:
            ema.update()

    def parts(self) -> dict:
        """What a checkpoint holds of them; the first under the name that every reader knows."""
        others = {"other_ema_state_dicts": self.others} if self.others.averages else {}
        return {"ema_state_dict": self} | others


class OtherAverages:
    """The averages after the first as a checkpoint sees them: by decay."""

    def __init__(self, averages: Sequence[EMA]):
        self.averages = averages

    def restart(self) -> None:
        for ema in self.averages:
            ema.restart()

    def state_dict(self) -> dict[str, dict]:
        return {
            str(ema.decay): {"num_updates": ema.num_updates, "average": ema.state_dict()}
            for ema in self.averages
        }

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Averages that the checkpoint lacks start from the network's present weights."""
        self.restart()
        for ema in self.averages:
            if str(ema.decay) in state:
                entry = state[str(ema.decay)]
                ema.load_state_dict(entry["average"])
                ema.num_updates = entry["num_updates"]
            else:
                log.warning("the checkpoint has no average of decay %s: it starts now", ema.decay)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return network.state_dict(keep_vars=True)
