"""Learning-rate schedules: linear warm-up, then a decay. No torch here."""

import math
from dataclasses import dataclass

SCHEDULES = ("constant", "linear", "cosine", "step", "exponential", "plateau")


@dataclass(frozen=True)
class ScheduleOptions:
    """How the learning rate moves, in updates of its player.

    Attributes:
        kind: One of `SCHEDULES`. ``linear`` and ``cosine`` end at ``total_updates``. ``step``
            multiplies by ``gamma`` every ``step_updates``, ``exponential`` does the same
            smoothly, ``plateau`` after ``patience`` validations in a row without a better score.
        warmup_updates: Updates of linear warm-up, from which the decay counts.
        total_updates: All of them, warm-up included.
        min_factor: Share of the peak that no decay goes below.
        step_updates: See ``kind``.
        gamma: See ``kind``.
        patience: See ``kind``.

    Raises:
        ValueError: an unknown kind, or a number out of its range.
    """

    kind: str = "constant"
    warmup_updates: int = 0
    total_updates: int = 1
    min_factor: float = 0.0
    step_updates: int = 10_000
    gamma: float = 0.5
    patience: int = 5

    def __post_init__(self):
        if self.kind not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.kind!r}; use one of {', '.join(SCHEDULES)}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"a schedule's gamma must be in (0, 1], got {self.gamma}")
        if min(self.step_updates, self.patience) < 1:
            raise ValueError(
                "a schedule's step_updates and patience must be at least 1, "
                f"got {self.step_updates} and {self.patience}"
            )


class LrSchedule:
    """Factor of the learning rate at each update: linear warm-up, then the decay.

    Args:
        options: Which decay.
    """

    def __init__(self, options: ScheduleOptions):
        self.options = options
        self.best, self.num_worse, self.num_drops = float("-inf"), 0, 0

    def __call__(self, update: int) -> float:
        warmup = self.options.warmup_updates
        return (update + 1) / (warmup + 1) if update < warmup else self._decay(update - warmup)

    def _decay(self, done: int) -> float:
        """Factor ``done`` updates after the warm-up."""
        kind, gamma, least = self.options.kind, self.options.gamma, self.options.min_factor
        if kind == "constant":
            return 1.0
        if kind == "plateau":
            return max(least, gamma**self.num_drops)
        if kind == "step":
            return max(least, gamma ** (done // self.options.step_updates))
        if kind == "exponential":
            return max(least, gamma ** (done / self.options.step_updates))
        span = max(self.options.total_updates - self.options.warmup_updates, 1)
        done = min(done / span, 1.0)
        left = 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return least + (1 - least) * left

    def observe(self, score: float) -> None:
        """Tells ``plateau`` a validation's score; higher is better, NaN is not."""
        if self.options.kind != "plateau":
            return
        self.num_worse = 0 if score > self.best else self.num_worse + 1
        self.best = max(self.best, score)
        if self.num_worse == self.options.patience:
            self.num_worse, self.num_drops = 0, self.num_drops + 1

    def state_dict(self) -> dict:
        return {"best": self.best, "num_worse": self.num_worse, "num_drops": self.num_drops}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.num_worse = state["best"], state["num_worse"]
        self.num_drops = state["num_drops"]
