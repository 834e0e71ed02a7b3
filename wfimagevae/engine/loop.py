"""The training loop: updates in turn; reports, validations and checkpoints when they are due."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from wfimagevae.engine.player import Player
from wfimagevae.engine.run import Run


class Task(Protocol):
    """What a kind of training tells the loop.

    ``best_name`` is the file name of the checkpoint that scored best; ``validator``, what
    `validate` uses, is None where there is nothing to validate on.
    """

    players: Sequence[Player]
    best_name: str
    validator: object | None

    def turn(self, step: int) -> Sequence[Player]:
        """Whose update it is at ``step``, in order."""

    def validate(self, step: int) -> tuple[dict[str, float], float]:
        """Validation figures, and one score of which the highest is the best. Collective."""

    def watch(self, step: int, values: dict[str, float]) -> None:
        """Looks at logged means for what a person should be warned of."""

    def counters(self) -> dict[str, float]:
        """This process's running totals, such as unreadable files; logged summed over ranks."""

    def facts(self) -> dict:
        """Plain values to keep in checkpoints, such as the model's configuration."""


def fit(task: Task, batches: Iterator, run: Run) -> None:
    """Trains until the last step, or until a signal asks to stop.

    ``batches`` are this process's endless micro-batches; ``run`` is advanced in place.
    """
    run.reporter.begin(run.step, run.max_steps)
    if run.watcher:
        run.watcher.begin(run, task)
    run.finish_pending(task)
    while not run.ended:
        with run.reporter.waiting():
            micro_batches = [next(batches) for _ in range(run.options.grad_accum_steps)]
        # One update of each player whose turn it is, all from the same micro-batches.
        for player in task.turn(run.step):
            run.means.add(player.update(micro_batches, run.step))
            run.reporter.worked(player.flops_per_sample * run.samples_a_step)
        run.advance()
        if run.report_due():
            run.report(task)
        improved = run.validate_if_due(task)
        if run.due(run.options.save_ckpt_step) or run.save_wanted or run.ended:
            run.save(task, best=improved)
        elif improved:
            run.save(task, best=True, only_best=True)
