"""A training run: where it stands, and what happens between its steps."""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from wfimagevae.engine.checkpoint import (
    checkpoint_path,
    collect,
    link_or_copy,
    list_checkpoints,
    remove,
    write_checkpoint,
)
from wfimagevae.engine.distributed import World, broadcast_object, cpu_group, gather_objects
from wfimagevae.engine.interrupt import EarlyStop, Interrupt, LeftOff
from wfimagevae.engine.optim import run_length
from wfimagevae.engine.options import ShardingOptions, TrainingOptions
from wfimagevae.engine.report.progress import Means, Reporter
from wfimagevae.engine.report.tracker import Tracker
from wfimagevae.engine.seeding import random_state, set_random_state

if TYPE_CHECKING:
    from wfimagevae.engine.loop import Task

log = logging.getLogger("wfimagevae")


class Watcher(Protocol):
    """Looks on while a run trains. Every process has one.

    ``begin`` comes before the first step, or the first after resuming. In the main process alone,
    ``line`` makes a progress line, ``logged`` follows each, ``plots`` are calls that draw beside
    the run's own plots, and ``saved`` follows a step's checkpoint, with which samples belong if it
    ``draws``. To ``draw`` them is collective, with `Run.pulse` between their parts.
    """

    def begin(self, run: "Run", task: "Task") -> None: ...
    def line(self, step: int, values: dict[str, float]) -> str: ...
    def logged(self, step: int, values: dict[str, float]) -> None: ...
    def plots(self) -> list[tuple[Callable, tuple]]: ...
    def saved(self, step: int) -> None: ...
    def draws(self, step: int) -> bool: ...
    def draw(self, step: int) -> None: ...


class Run:
    """Where a training run stands, and what happens between its steps.

    Intervals of the options count iterations of the loop; ``folder`` is where checkpoints go.
    """

    def __init__(
        self,
        options: TrainingOptions,
        world: World,
        folder: Path,
        task: "Task",
        tracker: Tracker | None = None,
        watcher: Watcher | None = None,
    ):
        self.options, self.world, self.folder = options, world, folder
        self.task, self.parts, self.watcher = task, task.parts(), watcher
        self.samples_a_step = options.batch_size * options.grad_accum_steps * world.size
        num_samples = len(task.loader.dataset)
        self.max_steps, self.epoch_steps = run_length(options, num_samples, world.size)
        for player, updates in zip(task.players, task.updates(self.max_steps), strict=True):
            player.plan_rest(updates)
        self.early_stop = EarlyStop(options)
        self.interrupt = Interrupt(options.save_every_minutes, options.ddp_timeout)
        seen = task.headline, watcher, task.samples
        self.means, self.reporter = Means(), Reporter(options, folder, world, tracker, *seen)
        self.step = 0
        # Samples of an update as schedules count them, and what steps of another size were worth
        # besides their number.
        self.unit, self.step_offset = float(self.samples_a_step), 0.0
        self.best_score = float("-inf")
        self.stopping = self.saved_as_finished = False
        self.saved_step = self.validated_step = -1
        # What belongs to this step and is not made yet; why there is no more data.
        self.validation_owed = self.samples_owed = False
        self.failure: Exception | None = None
        task.pulse = self.pulse
        # Step and file of the last checkpoint that no bad update preceded.
        self.last_good: tuple[int, Path] | None = None
        self.writer, self._written = ThreadPoolExecutor(1, "checkpoint"), None
        # Of the processes' writers, which write shards while training talks in its own groups.
        shards = isinstance(options, ShardingOptions) and options.fsdp_checkpoints
        self.writers = cpu_group(options.ddp_timeout) if shards else None

    @property
    def finished(self) -> bool:
        return self.early_stop.reached or self.step >= self.max_steps

    @property
    def ended(self) -> bool:
        """True after the last step, or when asked to stop."""
        return self.stopping or self.finished

    def due(self, interval: int) -> bool:
        """True every ``interval`` steps and at the end; never for 0."""
        return interval > 0 and (self.step % interval == 0 or self.ended)

    def begin(self) -> None:
        """Opens the records, and does what the run's checkpoint left to do. Collective."""
        self.reporter.begin(self.step, self.max_steps, self.epoch_steps, self.step_offset)
        if self.watcher:
            self.watcher.begin(self, self.task)
        self.saved_step = self.step
        self.validation_owed &= self.options.eval_steps > 0
        self.samples_owed &= self.watcher is not None
        made, improved = self._make_up()
        shortened = self.finished and not self.saved_as_finished
        if shortened or made:
            self.save(best=improved)
        self.interrupt.wish(late=True)

    def draw(self) -> list[dict]:
        """The micro-batches of a step; none where the run has ended. Collective.

        Before that, and while they are awaited, does what signals and the clock ask for. Data that
        fails ends the run, after a save.
        """
        loader, count = self.task.loader, self.options.grad_accum_steps
        wishes = None if self.ended else self.interrupt.outcome()
        while wishes:
            self.stopping = wishes.stop or wishes.failed
            if (wishes.save or wishes.look or self.stopping) and self.saved_step != self.step:
                self.save()
            if wishes.look:
                log.info("SIGUSR1: draws what there is to draw at step %d", self.step)
                self.interrupt.look = False
                self.validation_owed = self.task.validator is not None
                self.validation_owed &= self.validated_step != self.step
                self.samples_owed = self.watcher is not None
                self._make_up(counts=False)
                self.validation_owed = self.samples_owed = False
            if self.failure:
                raise self.failure
            if self.stopping:
                break
            with self.reporter.waiting():
                if not wishes.late:
                    # The first step may compile for minutes.
                    self.interrupt.may_end = not self.reporter.steps
                    return list(itertools.islice(loader, count))
                self._ask(0.2)
                wishes = self.interrupt.outcome()
        return []

    def _ask(self, seconds: float) -> None:
        """Begins to agree on the next step, whose data may be late by some seconds, or fail."""
        late = True
        try:
            late = not self.task.loader.ready(self.options.grad_accum_steps, seconds)
        except Exception as error:  # `draw` raises it, when all processes know
            self.failure = error
        self.interrupt.wish(late, failed=self.failure is not None)

    def advance(self, flops_per_sample: float) -> None:
        """Counts a step, and begins to hear what signals and the clock ask for."""
        self.step += 1
        self.interrupt.may_end = False
        self.reporter.count(self.samples_a_step, flops_per_sample)
        self._ask(0.0)

    def leave_off(self) -> None:
        """After LeftOff: a process alone stops; of several, the others are yet to hear of it."""
        if self.interrupt.group and not self.ended:  # in the first step, the launcher ends them
            raise KeyboardInterrupt from None
        self.stopping = self.interrupt.group is None

    def report(self) -> None:
        """Fetches the means since the last report, checks and writes them, if due. Collective."""
        task, options = self.task, self.options
        # Not when a signal ends the run: one cut short would shift the means after it.
        is_due = any(self.step % n == 0 for n in (options.log_steps, options.csv_log_steps))
        if not (is_due or self.finished):
            return
        skipped = {f"skipped/{p.name}": p.skipped[0] for p in task.players}
        in_a_row = {f"skipped_in_a_row/{p.name}": p.skipped[1] for p in task.players}
        # A mean over processes, as all are: times their number it is the sum.
        unreadable = float(task.loader.num_unreadable * self.world.size)
        files = {"data/unreadable": torch.full((), unreadable, device=self.world.device)}
        self.means.add(skipped | in_a_row | files)
        values = self.means.fetch()
        for player in task.players:
            values |= player.named_lrs()
        to_log, to_csv = self.due(options.log_steps), self.due(options.csv_log_steps)
        self.reporter.report(self.step, self.max_steps, values, to_log, to_csv)
        task.watch(self.step, values)
        # The values are equal on all processes, and so is the decision to end.
        stop = self.early_stop
        if to_log and self.step % options.log_steps == 0 and stop.observe(values):
            line = "%s is %.6g on average over %d lines, below %g: the run ends at step %d"
            log.info(line, stop.metric, stop.mean, stop.window, stop.below, self.step)
        if to_log and self.finished and stop.metric and not stop.recent:
            log.warning("%s was never logged: nothing could end by it", stop.metric)
        for player in task.players:
            if values[f"skipped_in_a_row/{player.name}"] >= options.max_bad_updates:
                self.finish_writing()
                last_good = broadcast_object(self.last_good)  # the main process knows it
                none = "there is no checkpoint from before them"
                good = f"the last good checkpoint is {last_good[1]}" if last_good else none
                raise ValueError(
                    f"{options.max_bad_updates} updates of the {player.name} in a row were "
                    f"not finite by step {self.step}, and were skipped; {good}. Resume from it "
                    "with a lower learning rate, --mix_precision bf16 or fp32, or (image VAEs) a "
                    "smaller --disc_weight"
                )

    def conclude(self) -> None:
        """Saves what is due at this step, and then validates and draws. Collective."""
        every = self.options.eval_steps
        self.validation_owed = every > 0 and (self.step % every == 0 or self.finished)
        saves = self.ended or self.due(self.options.save_ckpt_step)
        if self.validation_owed and not saves:  # which may take its time
            wishes = self.interrupt.agree()
            self.stopping, saves = wishes.stop, wishes.save or wishes.stop
        self.samples_owed = bool(saves and self.watcher and self.watcher.draws(self.step))
        if saves:
            self.save()
        made, improved = self._make_up()
        if made if saves else self.stopping:
            self.save(best=improved)
        elif improved:
            self.save(best=True, only_best=True)

    def _make_up(self, counts: bool = True) -> tuple[bool, bool]:
        """Makes what is owed, until a signal.

        Returns whether something was made, and whether a score that counts is the best so far.
        """
        made = improved = False
        if self.validation_owed and not self.stopping:
            outcome = self._attempt("validation", lambda: self.task.validate(self.step))
            self.validation_owed, made = self.stopping, not self.stopping
            if outcome:
                values, score, pictures = outcome
                self.validated_step = self.step
                self.reporter.validation(self.step, values, pictures)
            if outcome and counts:
                for player in self.task.players:
                    player.observe(score)
                improved = score > self.best_score
                self.best_score = max(score, self.best_score)
        if self.samples_owed and not self.stopping:
            self._attempt("samples", lambda: self.watcher.draw(self.step))
            self.samples_owed, made = self.stopping, made or not self.stopping
        return made, improved

    def _attempt(self, what: str, work: Callable[[], Any]) -> Any:
        """What ``work()`` gives; None where a signal ended it, or a failure, which is a warning.

        Whatever pictures and figures cost, they do not cost the training. Collective: a process
        that fails joins the others at their next pulse, where they leave off too.
        """
        network, hook = self.task.network, None
        was_training = network.training
        if self.interrupt.group is None:  # alone it can leave off wherever it calls the network
            hook = network.register_forward_pre_hook(lambda *_: self.pulse())
        try:
            with self.reporter.paused():
                result = work()
                self.pulse()
            return result
        except LeftOff as left:
            self.stopping = left.args[0]
        except Exception as error:
            self.stopping = self.interrupt.agree(failed=True).stop
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            log.warning("%s of step %d failed, training goes on: %s", what, self.step, reason)
        finally:
            network.train(was_training)
            if hook:
                hook.remove()
        return None

    def pulse(self, ready: Callable | None = None, what: str = "", *place: int) -> None:
        """Between parts of a validation, or of drawing; LeftOff where it ends. Collective.

        Waits until ``ready(seconds)`` on all processes, and shows the ``place``: done, in all. What
        may fail comes before a pulse, other collectives come after it.
        """
        late = True
        while late:
            wishes = self.interrupt.agree(ready is not None and not ready(0.2))
            if wishes.stop or wishes.failed:
                raise LeftOff(wishes.stop)
            late = wishes.late
        if place:
            self.reporter.progress(what, *place)

    def save(self, best: bool = False, only_best: bool = False) -> None:
        """Copies the state and has it written to a checkpoint, the best one's, or both. Collective.

        Training goes on meanwhile, unless it is about to end: see `finish_writing`.
        """
        with contextlib.suppress(OSError):  # of an earlier step, and told: this one may be saved
            self.finish_writing()
        best_path = self.folder / self.task.best_name
        path = checkpoint_path(self.folder, self.step)
        target = best_path if only_best else path
        is_good = not any(player.skipped[1] for player in self.task.players)
        last_good = (self.step, target) if is_good else self.last_good
        facts = self.task.facts() | self.facts() | {"last_good": last_good and last_good[0]}
        facts |= {"samples_owed": True} if self.samples_owed else {}
        is_main, shards = self.world.is_main, self.writers is not None
        content = collect(self.parts, is_main or shards, shards, **facts)
        sampler = content.get("sampler_state")
        if sampler and sampler["position"] != self.unit * self.step:  # updates of two sizes
            content["schedule_unit"] = self.unit
        is_first = self.saved_step != self.step
        if not only_best:
            self.interrupt.last_save = time.monotonic()
            self.saved_step = self.step
        if not (is_main or shards):
            return

        def write(step: int = self.step) -> None:
            try:
                write_checkpoint(target, content, self.writers)
                if is_main and best and not only_best:
                    link_or_copy(path, best_path)
            except OSError as error:
                if is_main:  # all processes heard of it
                    log.error("the checkpoint of step %d was not saved: %s", step, error)
                raise
            if is_first or only_best:
                log.info("saved %s", target)
            if is_main and not only_best and is_good:
                self.last_good = last_good
                for old in list_checkpoints(self.folder)[: -self.options.keep_last]:  # none of [:0]
                    remove(old)

        self._written = self.writer.submit(write)
        if self.ended:
            self.finish_writing()
        if is_main and is_first and not only_best and self.watcher:
            self.watcher.saved(self.step)

    def finish_writing(self) -> None:
        """Waits until a checkpoint is written; an OSError of that only when training is to end."""
        written, self._written = self._written, None
        with contextlib.suppress(*[] if self.ended else [OSError]):
            if written:
                written.result()

    def facts(self) -> dict:
        """Where it stands, as checkpoints hold it. Collective."""
        return {
            "current_step": self.step,
            "last_good": None,
            "finished": self.finished,
            "early_stop": self.early_stop.state_dict(),
            "best_score": self.best_score,
            "validation_owed": self.validation_owed,
            "rng_state": gather_objects(random_state()),
            "means": gather_objects(self.means.state_dict()),
        }

    def restore(self, content: dict, path: Path) -> None:
        """Takes up what `save` wrote of the run itself to the checkpoint ``path``."""
        self.step = content["current_step"]
        self.best_score = content.get("best_score", self.best_score)
        self.validation_owed = content.get("validation_owed", False)
        self.samples_owed = content.get("samples_owed", False)
        self.saved_as_finished = content.get("finished", False)
        good = content.get("last_good", self.step)
        if good is not None:
            is_own = good == self.step
            self.last_good = good, path if is_own else checkpoint_path(path.parent, good)
        if "early_stop" in content:  # not in older checkpoints
            self.early_stop.load_state_dict(content["early_stop"])
        states = content.get("rng_state", [])
        if self.world.rank < len(states):
            set_random_state(states[self.world.rank])
        means = content.get("means", [])
        if len(means) == self.world.size:
            self.means.load_state_dict(means[self.world.rank], self.world.device)
