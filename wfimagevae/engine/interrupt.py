"""Stopping and saving by signal or clock, agreed on by all processes."""

import signal
import time

import torch
import torch.distributed as dist

from wfimagevae.engine.distributed import is_distributed


class Interrupt:
    """Turns SIGTERM, SIGINT and the clock into decisions that every rank takes at one step.

    Each step reduces the ranks' wishes over a CPU group while the step computes, and the next
    step reads the outcome: no rank stops alone, none waits. A save is wished for every
    ``save_every_minutes`` by rank 0's clock; 0 is never.
    """

    def __init__(self, save_every_minutes: float = 0):
        self.interval = save_every_minutes * 60
        self.last_save = time.monotonic()
        self.signal: int | None = None
        self._signalled = 0.0
        self.group = dist.new_group(backend="gloo") if is_distributed() else None
        self._wishes = torch.zeros(2)  # stop, save
        self._pending = None
        self._handlers = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._pending is not None and exception[0] is None:
            self._pending.wait()

    def _on_signal(self, number: int, frame) -> None:
        # A second Ctrl-C means now; torchrun repeats the first one to its children at once.
        impatient = number == signal.SIGINT and time.monotonic() - self._signalled > 2
        if self.signal == signal.SIGINT and impatient:
            raise KeyboardInterrupt
        self.signal, self._signalled = number, time.monotonic()

    def poll(self) -> tuple[bool, bool]:
        """Whether to stop, and whether to save, as all ranks agreed; call once a step."""
        if self.group is None:
            return self.signal is not None, self._save_due()
        # What was agreed on while the last step computed.
        agreed = (False, False)
        if self._pending is not None:
            self._pending.wait()
            stop, save = self._wishes.tolist()
            agreed = bool(stop), bool(save)
            if save:  # or this step would wish for it once more
                self.saved()
        # The wishes of now, to be known by the next step.
        self._wishes[0] = self.signal is not None
        self._wishes[1] = dist.get_rank() == 0 and self._save_due()
        self._pending = dist.all_reduce(
            self._wishes, dist.ReduceOp.MAX, group=self.group, async_op=True
        )
        return agreed

    def _save_due(self) -> bool:
        return 0 < self.interval <= time.monotonic() - self.last_save

    def saved(self) -> None:
        self.last_save = time.monotonic()
