"""Ending a run by one of its logged values. No torch here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StopRule:
    """When a run has learned enough.

    Attributes:
        metric: Name of a logged value; None never stops.
        below: Its mean must be below this.
        window: Progress lines that the mean is over.

    Raises:
        ValueError: a metric without a threshold, or the other way round.
    """

    metric: str | None = None
    below: float | None = None
    window: int = 20

    def __post_init__(self):
        if (self.metric is None) != (self.below is None):
            raise ValueError("--stop_metric and --stop_below go together: give both or neither")


class EarlyStop:
    """Watches one logged value; its memory and its decision are part of a checkpoint.

    Args:
        rule: When to stop.

    Attributes:
        reached: The rule has been met, once and for all.
    """

    def __init__(self, rule: StopRule):
        self.rule = rule
        self.recent: list[float] = []
        self.reached = False

    def observe(self, values: Mapping[str, float]) -> bool:
        """Takes one line's values; True where this one meets the rule for the first time."""
        value = values.get(self.rule.metric)
        if self.rule.metric is None or self.reached or value is None or not math.isfinite(value):
            return False
        self.recent = [*self.recent, value][-self.rule.window :]
        full = len(self.recent) == self.rule.window
        self.reached = full and self.mean < self.rule.below
        return self.reached

    @property
    def mean(self) -> float:
        """Of the values in the window so far."""
        return math.fsum(self.recent) / len(self.recent)

    def state_dict(self) -> dict:
        return {"metric": self.rule.metric, "recent": list(self.recent), "reached": self.reached}

    def load_state_dict(self, state: dict) -> None:
        """Goes on where it stood; another metric, or none, starts anew."""
        if state["metric"] == self.rule.metric:
            self.recent = state["recent"][-self.rule.window :]
            self.reached = state["reached"]
