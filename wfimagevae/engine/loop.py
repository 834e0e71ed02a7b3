"""The training loop, and the run that it advances."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from wfimagevae.engine.checkpoint import (
    Checkpoint,
    checkpoint_path,
    link_or_copy,
    prune_checkpoints,
    write_checkpoint,
)
from wfimagevae.engine.distributed import World, broadcast_object, gather_objects
from wfimagevae.engine.early_stop import EarlyStop, StopRule
from wfimagevae.engine.interrupt import Interrupt
from wfimagevae.engine.player import Player
from wfimagevae.engine.report.metrics import Means
from wfimagevae.engine.report.progress import Reporter
from wfimagevae.engine.seeding import RandomState

log = logging.getLogger("wfimagevae")


class Task(Protocol):
    """What a kind of training tells the loop.

    Attributes:
        players: All who are trained.
        best_name: File name of the checkpoint that scored best.
        validator: What `validate` uses; None where there is nothing to validate on.
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


class Watcher(Protocol):
    """Looks on while a run trains. Every process has one, called alike on all of them."""

    def begin(self, run: "Run", task: Task) -> None:
        """Before the first step, or the first after resuming."""

    def line(self, step: int, values: dict[str, float]) -> str:
        """The progress line of a step; main process only."""

    def logged(self, step: int, values: dict[str, float]) -> None:
        """After each progress line."""

    def saving(self, step: int) -> None:
        """Before the checkpoint of a step is written."""


class Diverged(ValueError):
    """Update after update was not finite."""


@dataclass(frozen=True)
class Schedule:
    """Lengths and intervals of a run, in steps (iterations of the loop) unless said otherwise.

    Attributes:
        max_steps: Where the run ends.
        accum_steps: Micro-batches a step.
        batch_size: Samples of a micro-batch, on one process.
        log_steps: Between progress lines.
        csv_log_steps: Between rows of the CSV file; 0 none.
        eval_steps: Between validations; 0 none.
        save_steps: Between checkpoints; 0 the last only.
        keep_last: Checkpoints kept; 0 all.
        max_bad_updates: Non-finite updates in a row that stop the run.
        epoch_steps: Steps that make an epoch, not always whole.
        stop: What ends the run before ``max_steps``.
    """

    max_steps: int
    accum_steps: int = 1
    batch_size: int = 1
    log_steps: int = 10
    csv_log_steps: int = 10
    eval_steps: int = 0
    save_steps: int = 0
    keep_last: int = 0
    max_bad_updates: int = 50
    epoch_steps: float = 1.0
    stop: StopRule = field(default_factory=StopRule)


class Run:
    """Where a training run stands, and what happens between its steps.

    Args:
        world: This process and the others.
        schedule: Lengths and intervals.
        folder: Where checkpoints go.
        checkpoint: All the state there is, but for this run's own.
        interrupt: Signals and the clock.
        reporter: Progress lines, files, plots and trackers.
        watcher: Looks on, if given.
    """

    def __init__(
        self,
        world: World,
        schedule: Schedule,
        folder: Path,
        checkpoint: Checkpoint,
        interrupt: Interrupt,
        reporter: Reporter,
        watcher: Watcher | None = None,
    ):
        self.world, self.schedule, self.folder = world, schedule, folder
        self.checkpoint, self.interrupt, self.reporter = checkpoint, interrupt, reporter
        self.watcher, self.early_stop = watcher, EarlyStop(schedule.stop)
        self.step = 0
        self.best_score = float("-inf")
        self.stopping = self.save_wanted = False
        self.validation_owed = self.saved_as_finished = False
        # Step and file of the last checkpoint that no bad update preceded.
        self.last_good: tuple[int, Path] | None = None
        self.means = Means()
        self.random = RandomState()

    @property
    def samples_a_step(self) -> int:
        """Samples that one step consumes on all processes."""
        return self.schedule.batch_size * self.schedule.accum_steps * self.world.size

    @property
    def finished(self) -> bool:
        """True after the last step: there is nothing left to train."""
        return self.early_stop.reached or self.step >= self.schedule.max_steps

    @property
    def ended(self) -> bool:
        """True after the last step, or when asked to stop."""
        return self.stopping or self.finished

    def due(self, interval: int) -> bool:
        """True every ``interval`` steps and at the end; never for 0."""
        return interval > 0 and (self.step % interval == 0 or self.ended)

    def advance(self) -> None:
        """Counts a step, and hears what signals and the clock ask for."""
        self.step += 1
        self.reporter.count(self.samples_a_step)
        self.stopping, self.save_wanted = self.interrupt.poll()

    def report_due(self) -> bool:
        """Whether a report is due; one cut short by a signal would shift the means after it."""
        intervals = self.schedule.log_steps, self.schedule.csv_log_steps
        return self.finished or any(n and self.step % n == 0 for n in intervals)

    def report(self, task: Task) -> None:
        """Fetches the means since the last report, checks and writes them. Collective."""
        skipped = {f"skipped/{p.name}": p.skipped[0] for p in task.players}
        in_a_row = {f"skipped_in_a_row/{p.name}": p.skipped[1] for p in task.players}
        totals = {
            name: torch.tensor(float(total * self.world.size), device=self.world.device)
            for name, total in task.counters().items()
        }
        self.means.add(skipped | in_a_row | totals)
        values = self.means.fetch()
        for player in task.players:
            values |= player.named_lrs()
        to_log, to_csv = self.due(self.schedule.log_steps), self.due(self.schedule.csv_log_steps)
        steps = self.step, self.schedule.max_steps
        measured = self.reporter.report(*steps, values, to_log, to_csv)
        task.watch(self.step, values)
        if to_log:
            self._hear(values)
        if to_log and self.watcher:
            self.watcher.logged(self.step, measured)
        for player in task.players:
            if values[f"skipped_in_a_row/{player.name}"] >= self.schedule.max_bad_updates:
                raise Diverged(self._divergence(player))

    def _hear(self, values: dict[str, float]) -> None:
        """Ends the run where a progress line's values, equal on all processes, say so."""
        if self.step % self.schedule.log_steps == 0 and self.early_stop.observe(values):
            stop = self.early_stop
            log.info(
                "%s is %.6g on average over %d lines, below %g: the run ends at step %d",
                stop.rule.metric,
                stop.mean,
                stop.rule.window,
                stop.rule.below,
                self.step,
            )
        if self.finished and self.early_stop.rule.metric and not self.early_stop.recent:
            log.warning("%s was never logged: nothing could end by it", self.early_stop.rule.metric)

    def _divergence(self, player: Player) -> str:
        good = "there is no checkpoint from before them"
        if known := broadcast_object(self.last_good):  # the main process knows what was written
            good = f"the last good checkpoint is {known[1]}"
        return (
            f"{self.schedule.max_bad_updates} updates of the {player.name} in a row were not "
            f"finite by step {self.step}, and were skipped; {good}. Resume from it with a lower "
            "learning rate, --mix_precision bf16 or fp32, or (image VAEs) a smaller --disc_weight"
        )

    def validate_if_due(self, task: Task) -> bool:
        """As `validate` where that is due; what a signal leaves no time for is owed. Collective."""
        every = self.schedule.eval_steps
        due = every > 0 and (self.step % every == 0 or self.finished)
        self.validation_owed = due and self.stopping
        return due and not self.stopping and self.validate(task)

    def catch_up(self, task: Task) -> None:
        """Does what the run's checkpoint says is left to do at its step. Collective."""
        owed = self.validation_owed and self.schedule.eval_steps > 0
        self.validation_owed = False
        improved = owed and self.validate(task)
        shortened = self.finished and not self.saved_as_finished
        if owed or shortened:
            self.save(task, best=improved)

    def validate(self, task: Task) -> bool:
        """Validates; True where the score is the best so far. Collective."""
        with self.reporter.paused():
            values, score = task.validate(self.step)
        self.reporter.validation(self.step, values)
        for player in task.players:
            player.observe(score)
        improved = score > self.best_score
        self.best_score = max(score, self.best_score)
        return improved

    def save(self, task: Task, best: bool = False, only_best: bool = False) -> None:
        """Writes a checkpoint, the best one's copy, or both. Collective.

        Raises:
            OSError: it could not be written, and the run is about to end. Before that it is
                logged as an error, and training goes on.
        """
        if self.watcher and not only_best:
            self.watcher.saving(self.step)
        best_path, path = self.folder / task.best_name, checkpoint_path(self.folder, self.step)
        target = best_path if only_best else path
        is_good = not any(player.skipped[1] for player in task.players)
        last_good = (self.step, target) if is_good else self.last_good
        facts = task.facts() | {
            "current_step": self.step,
            "last_good": last_good and last_good[0],
            "finished": self.finished,
            "early_stop": self.early_stop.state_dict(),
            "best_score": self.best_score,
            "validation_owed": self.validation_owed,
            "rng_state": gather_objects(self.random.state_dict()),
            "means": gather_objects(self.means.state_dict()),
        }
        content = self.checkpoint.collect(keep=self.world.is_main, **facts)
        if not only_best:
            self.interrupt.saved()
        if not self.world.is_main:
            return
        try:
            write_checkpoint(target, content)
            if best and not only_best:
                link_or_copy(path, best_path)
        except OSError as error:
            log.error("the checkpoint of step %d was not saved: %s", self.step, error)
            if self.ended:
                raise
            return
        log.info("saved %s", target)
        if not only_best and is_good:
            self.last_good = last_good
            prune_checkpoints(self.folder, self.schedule.keep_last)

    def restore(self, content: dict, skip: tuple[str, ...]) -> None:
        """Continues where a checkpoint's content stands."""
        self.checkpoint.load(content, skip)
        self.step = content["current_step"]
        self.best_score = content.get("best_score", self.best_score)
        self.validation_owed = content.get("validation_owed", False)
        self.saved_as_finished = content.get("finished", False)
        if "early_stop" in content:  # not in older checkpoints
            self.early_stop.load_state_dict(content["early_stop"])
        states = content.get("rng_state", [])
        if self.world.rank < len(states):
            self.random.load_state_dict(states[self.world.rank])
        means = content.get("means", [])
        if len(means) == self.world.size:
            self.means.load_state_dict(means[self.world.rank], self.world.device)


def fit(task: Task, batches: Iterator, run: Run) -> None:
    """Trains until the last step, or until a signal asks to stop.

    Args:
        task: The players and whose turn it is.
        batches: Endless micro-batches of this process.
        run: Where training stands; advanced in place.
    """
    schedule = run.schedule
    run.reporter.begin(run.step, schedule.max_steps)
    if run.watcher:
        run.watcher.begin(run, task)
    run.catch_up(task)
    while not run.ended:
        with run.reporter.waiting():
            micro = [next(batches) for _ in range(schedule.accum_steps)]
        for player in task.turn(run.step):
            run.means.add(player.update(micro, run.step))
            run.reporter.worked(player.flops_per_sample * run.samples_a_step)
        run.advance()
        if run.report_due():
            run.report(task)
        improved = run.validate_if_due(task)
        if run.due(schedule.save_steps) or run.save_wanted or run.ended:
            run.save(task, best=improved)
        elif improved:
            run.save(task, best=True, only_best=True)
