"""Ending a run by one of its logged values. No torch here."""

import math
from collections.abc import Mapping

from wfimagevae.engine.options import StopOptions


class EarlyStop:
    """Watches one logged value; its memory and its decision are part of a checkpoint.

    Args:
        options: Which value, and below what.

    Attributes:
        reached: The mean has been below, once and for all.
    """

    def __init__(self, options: StopOptions):
        self.metric, self.below = options.stop_metric, options.stop_below
        self.window = options.stop_window
        self.recent: list[float] = []
        self.reached = False

    def observe(self, values: Mapping[str, float]) -> bool:
        """Takes one line's values; True where the mean is below for the first time."""
        value = values.get(self.metric)
        if self.metric is None or self.reached or value is None or not math.isfinite(value):
            return False
        self.recent = [*self.recent, value][-self.window :]
        full = len(self.recent) == self.window
        self.reached = full and self.mean < self.below
        return self.reached

    @property
    def mean(self) -> float:
        """Of the values in the window so far."""
        return math.fsum(self.recent) / len(self.recent)

    def state_dict(self) -> dict:
        return {"metric": self.metric, "recent": list(self.recent), "reached": self.reached}

    def load_state_dict(self, state: dict) -> None:
        """Goes on where it stood; another metric, or none, starts anew."""
        if state["metric"] == self.metric:
            self.recent = state["recent"][-self.window :]
            self.reached = state["reached"]
