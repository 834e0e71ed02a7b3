"""Exponential moving averages of a network's weights."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wfimagevae.engine.checkpoint import Part
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
            for name, value in network.state_dict(keep_vars=True).items()
        }
        # The dictionaries in which modules keep these tensors, and their names there: a state dict
        # of each update would take longer than the arithmetic, and what is replaced is found.
        self._places = []
        for name in self.average:
            path, _, leaf = name.rpartition(".")
            module = network.get_submodule(path)
            kept = module._parameters if leaf in module._parameters else module._buffers
            self._places.append((kept, leaf))

    @torch.no_grad()
    def update(self) -> None:
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        # All weights in one call: one kernel a dtype instead of one a tensor.
        averages = [local(value) for value in self.average.values()]
        live = [local(tensors[name]) for tensors, name in self._places]
        pairs = zip(live, averages, strict=True)
        live = [value if value.dtype == own.dtype else value.to(own.dtype) for value, own in pairs]
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
        for name, live in self.network.state_dict(keep_vars=True).items():
            try:
                kept = live.clone()
            except torch.OutOfMemoryError:  # halfway, weights would stay swapped
                kept = live.cpu()
            live.copy_(self.average[name])
            self.average[name].copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.average)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes an average with or without ``module.`` before its names; none starts anew."""
        if not state:
            state, self.num_updates = self.network.state_dict(), 0
        state = {name.removeprefix("module."): value for name, value in state.items()}
        if missing := sorted(self.average.keys() - state.keys()):
            raise ValueError(f"the checkpoint's EMA lacks {len(missing)} weights, as {missing[0]}")
        for name, value in self.average.items():
            value.copy_(placed_like(state[name], value))


class Averages(EMA):
    """Averages of one network with several decays; the first is the one to validate and export."""

    def __init__(self, network: nn.Module, decays: Sequence[float], warmup: bool = True):
        if not decays or len(set(decays)) < len(decays):
            raise ValueError(f"EMA needs decays that differ, got {list(decays)}")
        super().__init__(network, decays[0], warmup)
        self.others = [EMA(network, decay, warmup) for decay in decays[1:]]

    def update(self) -> None:
        super().update()
        for ema in self.others:
            ema.update()

    def parts(self) -> dict[str, Part]:
        """What a checkpoint holds of them; the first under the name that every reader knows."""
        others = {"other_ema_state_dicts": Part(self._others_state, self._load_others)}
        return {"ema_state_dict": self} | (others if self.others else {})

    def _others_state(self) -> dict[str, dict]:
        return {
            str(ema.decay): {"num_updates": ema.num_updates, "average": ema.state_dict()}
            for ema in self.others
        }

    def _load_others(self, state: dict[str, dict]) -> None:
        for ema in self.others:
            entry = state.get(str(ema.decay), {"average": {}, "num_updates": 0})
            ema.load_state_dict(entry["average"])
            ema.num_updates = entry["num_updates"]
            if not entry["average"]:
                log.warning("the checkpoint has no average of decay %s: it starts now", ema.decay)
