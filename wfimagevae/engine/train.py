"""From options to a finished run: what every kind of training shares."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from wfimagevae.engine.checkpoint import (
    Checkpoint,
    Stateful,
    list_checkpoints,
    read_checkpoint,
    remove_leftovers,
    set_aside_later,
)
from wfimagevae.engine.device import enable_fast_kernels, library_versions
from wfimagevae.engine.distributed import World, barrier, broadcast_object, world
from wfimagevae.engine.interrupt import Interrupt
from wfimagevae.engine.loop import Task, fit
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.report.metrics import check_csv_log, csv_log_path
from wfimagevae.engine.report.progress import Reporter
from wfimagevae.engine.report.tracker import Tracker, open_tracker
from wfimagevae.engine.resume import find_resume, resume_run, run_name, take_weights
from wfimagevae.engine.run import Run, Watcher, run_length
from wfimagevae.engine.seeding import seed_everything
from wfimagevae.files import write_text

log = logging.getLogger("wfimagevae")


class Loader(Protocol):
    """Endless micro-batches of this process, over a data set of known size."""

    dataset: Sequence

    def __iter__(self) -> Iterator: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Assembly:
    """A kind of training, put together.

    Attributes:
        parts: What a checkpoint holds: dotted path in the file -> what has the state.
        headline: Names shown in the progress line.
        description: What the run is about to do, in a few lines.
        weights: Player -> part of the checkpoint with the weights that it trains; those of another
            run can be taken up from there.
        fresh_parts: How the names of parts begin that start anew, whatever a checkpoint holds.
    """

    task: Task
    loader: Loader
    tracker: Tracker
    parts: dict[str, Stateful]
    headline: tuple[str, ...]
    description: list[str]
    weights: dict[str, str] = field(default_factory=dict)
    fresh_parts: tuple[str, ...] = ()


_Options = TypeVar("_Options", bound=TrainingOptions)


def run_training(
    options: _Options,
    assemble: Callable[[_Options, World, Path], Assembly],
    folder: Path | None = None,
    watcher: Watcher | None = None,
) -> bool:
    """Trains until the last step, or until a signal; resumes where the options say so.

    ``assemble`` builds the training from the options, this process and the run's folder. A run in a
    ``folder`` goes on where it stands; None finds the folder as the options say. Returns True if
    training is finished, False if a signal stopped it.
    """
    if options.csv_log_path:  # whoever reads options.json may stand elsewhere
        path = Path(options.csv_log_path).expanduser().absolute()
        options = options.changed(csv_log_path=str(path))
    has_folder = folder is not None
    with world(options.device) as process:
        log.setLevel(logging.INFO if process.is_main else logging.WARNING)
        seed_everything(options.seed)
        kernels = enable_fast_kernels(process.device)
        # The main process alone looks for the run: the others could see half of what it makes.
        place = _find_run(options, folder) if process.is_main else None
        folder, resume = broadcast_object(place)
        if process.is_main:
            check_csv_log(csv_log_path(options, folder))
            folder.mkdir(parents=True, exist_ok=True)  # trackers write there when they start
            remove_leftovers(folder)
        built = assemble(options, process, folder)
        barrier()
        length = run_length(options, len(built.loader.dataset), process.size)
        schedules = (schedule for player in built.task.players for schedule in player.schedules)
        follows = any(schedule.options.lr_schedule == "plateau" for schedule in schedules)
        if follows and not (options.eval_steps and built.task.validator):
            raise ValueError(
                "--lr_schedule plateau follows validations, and this run makes none: give "
                "--eval_steps above 0 and held-out data, or another schedule"
            )
        with Interrupt(options.save_every_minutes) as interrupt:
            line = watcher.line if watcher else None
            reporter = Reporter(options, folder, process, built.tracker, built.headline, line)
            checkpoint = Checkpoint(built.parts)
            run = Run(process, options, length, folder, checkpoint, interrupt, reporter)
            run.watcher = watcher
            compiled, kernels = ", compiled" * options.compile, f"; {kernels}" if kernels else ""
            lines = [
                f"effective batch {run.samples_a_step} = {options.batch_size} x "
                f"{options.grad_accum_steps} micro-batches x {process.size} processes; "
                f"{length.max_steps} steps",
                f"device {process.device}, precision {options.mix_precision}{compiled}{kernels}",
                library_versions(),
            ]
            log.info("%s", "\n".join([*built.description, *lines]))
            seed_everything(options.seed, process.rank)
            _start(run, built, resume, options)
            with logging_redirect_tqdm():
                fit(built.task, built.loader, run)
            reporter.summary()
        if run.stopping:
            how = "" if has_folder else " with --resume_from_checkpoint auto"
            done = f"stopped by a signal after step {run.step}"
            log.info("%s; run the same command%s to go on", done, how)
        built.loader.close()
        built.tracker.close()
        return run.finished


def _find_run(options: TrainingOptions, folder: Path | None) -> tuple[Path, Path | None]:
    if folder is not None:
        saved = list_checkpoints(folder)
        return folder, saved[-1] if saved else None
    sizes = options.batch_size, options.grad_accum_steps, options.resolution
    name = run_name(options.exp_name, options.lr, *sizes)
    folder = Path(options.ckpt_dir).expanduser() / name
    return find_resume(options.resume_from_checkpoint, folder, options.exp_name)


def _start(run: Run, built: Assembly, resume: Path | None, options: TrainingOptions) -> None:
    """Puts a run where it goes on; from then on the folder is this run's. Collective."""
    if resume:
        anew = ("optimizer_state", "player_state") if options.not_resume_optimizer else ()
        resume_run(run, read_checkpoint(resume), resume, (*built.fresh_parts, *anew))
    elif options.weights_from:
        weights = built.weights.items()
        kept = {player: part for player, part in weights if not part.startswith(built.fresh_parts)}
        take_weights(built.parts, kept, options.weights_from)
    best_name = built.task.best_name
    if run.world.is_main:
        for path in set_aside_later(run.folder, run.step, best_name):
            log.warning("goes back to step %d: %s is set aside", run.step, path)
        text = json.dumps(options.values(), indent=2, sort_keys=True)
        write_text(run.folder / "options.json", text)
    # The best may have been set aside, and a score that no file has is no bar for later ones.
    if not broadcast_object((run.folder / best_name).exists()):
        run.best_score = -math.inf


def run_tracker(options: TrainingOptions, process: World, folder: Path) -> Tracker:
    """The tracker asked for, on the main process. Opened last: it may start processes."""
    kind = options.tracker if process.is_main else "none"
    return open_tracker(kind, folder, options.exp_name, options.values())


def plain_config(network: nn.Module) -> dict:
    """The model's configuration as a checkpoint can hold it and `from_config` takes it."""
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    return {"_class_name": network.class_name()} | json.loads(json.dumps(config))


class NetworkWeights:
    """A network as a checkpoint sees it: bare names, and old names accepted."""

    def __init__(self, network: nn.Module):
        self.network = network

    def state_dict(self) -> dict:
        return self.network.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.network.load_weights(state)
