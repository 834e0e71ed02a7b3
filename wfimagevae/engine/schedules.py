"""How long a run is, and its learning rates: warm-up, then a decay. No torch here."""

import math

from wfimagevae.engine.options import OptimizerOptions, TrainingOptions


def run_length(
    options: TrainingOptions,
    num_samples: int,
    num_processes: int,
    step: int = 0,
    position: float = 0,
) -> tuple[int, float]:
    """The step at which a run ends, and the steps that make an epoch, not always whole.

    ``--epochs`` counts samples, of which ``step`` steps have seen ``position``; but epochs of
    ``--max_steps_per_epoch``, as ``--max_steps``, count steps.
    """
    samples_a_step = options.batch_size * options.grad_accum_steps * num_processes
    epoch_steps = min(num_samples / samples_a_step, options.max_steps_per_epoch or math.inf)
    done = step if epoch_steps == options.max_steps_per_epoch else position / samples_a_step
    # Exact where all steps were of this size: a sum of whole numbers stays outside of ceil.
    length = step + math.ceil(options.epochs * epoch_steps - done)
    return options.max_steps or length, epoch_steps


class LrSchedule:
    """Factor of the learning rate at each update of a player: linear warm-up, then the decay.

    ``linear`` and ``cosine`` end at ``total_updates``, warm-up included. ``step`` multiplies by
    ``lr_gamma`` every ``lr_step_updates``, ``exponential`` does the same smoothly, ``plateau``
    after ``plateau_patience`` validations in a row without a better score.
    """

    def __init__(self, options: OptimizerOptions, total_updates: int = 1):
        self.options, self.total_updates = options, total_updates
        self.best, self.num_worse, self.num_drops = float("-inf"), 0, 0

    def __call__(self, update: int) -> float:
        options = self.options
        kind, gamma, least = options.lr_schedule, options.lr_gamma, options.min_lr_ratio
        done = update - options.warmup_steps
        if done < 0:
            return (update + 1) / (options.warmup_steps + 1)
        if kind == "constant":
            return 1.0
        if kind == "plateau":
            return max(least, gamma**self.num_drops)
        if kind == "step":
            return max(least, gamma ** (done // options.lr_step_updates))
        if kind == "exponential":
            return max(least, gamma ** (done / options.lr_step_updates))
        span = max(self.total_updates - options.warmup_steps, 1)
        done = min(done / span, 1.0)
        left = 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return least + (1 - least) * left

    def observe(self, score: float) -> None:
        """Tells ``plateau`` a validation's score; higher is better, NaN is not."""
        if self.options.lr_schedule != "plateau":
            return
        self.num_worse = 0 if score > self.best else self.num_worse + 1
        self.best = max(self.best, score)
        if self.num_worse == self.options.plateau_patience:
            self.num_worse, self.num_drops = 0, self.num_drops + 1

    def state_dict(self) -> dict:
        return {"best": self.best, "num_worse": self.num_worse, "num_drops": self.num_drops}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.num_worse = state["best"], state["num_worse"]
        self.num_drops = state["num_drops"]
