"""Ending, saving and drawing by signals, the clock or a logged value: all processes agree on it."""

import math
import signal
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist

from wfimagevae.engine.distributed import cpu_group
from wfimagevae.engine.options import DDP_TIMEOUT, StopOptions

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOOK = signal.SIGUSR1


class Wishes(NamedTuple):
    """What some process asks for, and says of itself: that its data is late, its part failed."""

    stop: bool
    save: bool
    look: bool
    late: bool
    failed: bool


class LeftOff(BaseException):
    """What all processes did together ends here: a signal asks for that, or one of them failed."""


Pulse = Callable[..., None]  # as `Run.pulse`


class Interrupt:
    """Turns signals and the clock into decisions that every rank takes at one place.

    Each step reduces the ranks' wishes over a CPU group while the device computes, and the outcome
    is read before the next step: no rank stops alone. A save is wished for every
    ``save_every_minutes`` by rank 0's clock; 0 is never. A rank waits ``timeout_minutes`` for the
    others. SIGHUP means nothing where it meant nothing before, under nohup. While what runs
    ``may_end``, as nothing would be lost, LeftOff ends it two seconds after a signal.
    """

    def __init__(self, save_every_minutes: float = 0, timeout_minutes: float = DDP_TIMEOUT):
        self.interval = save_every_minutes * 60
        self.last_save = time.monotonic()
        self.signal: int | None = None
        self.look = self.may_end = False
        self._signalled = 0.0
        self.group = cpu_group(timeout_minutes)
        self._pending: list[tuple] = []
        self._handlers = {}

    def __enter__(self):
        for number in (*STOP, LOOK, signal.SIGALRM):
            self._handlers[number] = signal.signal(number, self._on_signal)
            if number == signal.SIGHUP and self._handlers[number] == signal.SIG_IGN:
                signal.signal(number, signal.SIG_IGN)
        return self

    def __exit__(self, *exception) -> None:
        signal.alarm(0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        while self._pending and exception[0] is None:
            self.outcome()

    def _on_signal(self, number: int, frame) -> None:
        if number in (LOOK, signal.SIGALRM):
            self.look |= number == LOOK
            if self.may_end and number == signal.SIGALRM:
                raise LeftOff(True)
            return
        # A second Ctrl-C means now; torchrun repeats the first one to its children at once.
        impatient = number == signal.SIGINT and time.monotonic() - self._signalled > 2
        if self.signal == signal.SIGINT and impatient:
            raise KeyboardInterrupt
        self.signal, self._signalled = number, time.monotonic()
        signal.alarm(2)

    def wish(self, late: bool = False, failed: bool = False) -> None:
        """Begins to agree; nothing waits for the other processes before `outcome`."""
        saves = 0 < self.interval <= time.monotonic() - self.last_save
        if self.group is not None:
            saves &= dist.get_rank() == 0
        wishes = torch.tensor([self.signal is not None, saves, self.look, late, failed]).float()
        work = None
        if self.group is not None:
            work = dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self._pending.append((work, wishes))

    def outcome(self) -> Wishes:
        """What was agreed on since `wish` began to; a process alone hears of signals till now."""
        work, wishes = self._pending.pop()
        if work is not None:
            work.wait()
        else:
            wishes[0] = self.signal is not None
        return Wishes(*map(bool, wishes.tolist()))

    def agree(self, late: bool = False, failed: bool = False) -> Wishes:
        """`wish` and its `outcome`. Collective."""
        self.wish(late, failed)
        return self.outcome()


class EarlyStop:
    """Watches one logged value, until its mean over a window is below a bound, once and for all.

    Its memory and its decision are part of a checkpoint.
    """

    def __init__(self, options: StopOptions):
        self.metric, self.below = options.stop_metric, options.stop_below
        self.window = options.stop_window
        self.recent: list[float] = []
        self.mean, self.reached = math.nan, False

    def observe(self, values: Mapping[str, float]) -> bool:
        """Takes one line's values; True where the mean is below for the first time."""
        value = values.get(self.metric)
        if self.metric is None or self.reached or value is None or not math.isfinite(value):
            return False
        self.recent = [*self.recent, value][-self.window :]
        self.mean = math.fsum(self.recent) / len(self.recent)
        self.reached = len(self.recent) == self.window and self.mean < self.below
        return self.reached

    def state_dict(self) -> dict:
        return {"metric": self.metric, "recent": list(self.recent), "reached": self.reached}

    def load_state_dict(self, state: dict) -> None:
        """Goes on where it stood; another metric, or none, starts anew."""
        if state["metric"] == self.metric:
            self.recent = state["recent"][-self.window :]
            self.reached = state["reached"]
