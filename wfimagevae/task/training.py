"""From options to a finished run: what every kind of training shares."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from wfimagevae.dataset import TrainLoader
from wfimagevae.dataset.protocol import TrainData
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
from wfimagevae.engine.early_stop import StopRule
from wfimagevae.engine.interrupt import Interrupt
from wfimagevae.engine.loop import Run, Schedule, Task, Watcher, fit
from wfimagevae.engine.optim import OptimizerOptions, build_optimizer, combine
from wfimagevae.engine.player import Player, UpdateRule
from wfimagevae.engine.report.metrics import check_csv_log
from wfimagevae.engine.report.progress import Reporter, ReportOptions
from wfimagevae.engine.report.tracker import Tracker, open_tracker
from wfimagevae.engine.run_folder import find_resume, run_name, save_options
from wfimagevae.engine.schedules import LrSchedule, ScheduleOptions
from wfimagevae.engine.seeding import seed_everything
from wfimagevae.task.starting_point import resume_run, take_weights

log = logging.getLogger("wfimagevae")


@dataclass(frozen=True)
class Assembly:
    """A kind of training, put together.

    Attributes:
        task: Players, whose turn it is, validation.
        loader: Training data.
        tracker: Where figures and pictures go, besides.
        parts: What a checkpoint holds: dotted path in the file -> what has the state.
        headline: Names shown in the progress line.
        description: What the run is about to do, in a few lines.
        weights: Player -> part of the checkpoint with the weights that it trains; those of
            another run can be taken up from there.
    """

    task: Task
    loader: TrainLoader
    tracker: Tracker
    parts: dict[str, Stateful]
    headline: tuple[str, ...]
    description: list[str]
    weights: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlayerPart:
    """Parameters of a player that are trained in a way of their own.

    Attributes:
        name: Of their learning rate in logs.
        parameters: Which.
        options: Flags of the optimizer and its schedule that are different for them.
    """

    name: str
    parameters: list[nn.Parameter]
    options: dict


def run_training(
    options: dict,
    assemble: Callable[[dict, World, Path], Assembly],
    folder: Path | None = None,
    watcher: Watcher | None = None,
) -> bool:
    """Trains until the last step, or until a signal; resumes where the options say so.

    Args:
        options: Every flag's value, by name.
        assemble: Builds the training from the options, this process and the run's folder.
        folder: Of the run, which goes on where it stands; None finds it as the options say.
        watcher: Looks on, if given.

    Returns:
        True if training is finished, False if a signal stopped it.

    Raises:
        ValueError: options that cannot be met, or training that diverged.
    """
    options = _with_absolute_paths(options)
    given = folder is not None
    with world(options["device"]) as here:
        logging.getLogger("wfimagevae").setLevel(logging.INFO if here.is_main else logging.WARNING)
        seed_everything(options["seed"])
        kernels = enable_fast_kernels(here.device)
        found = _find_run(options, folder) if here.is_main else None
        folder, resume = broadcast_object(found)
        if here.is_main:
            if path := _csv_path(options, folder):
                check_csv_log(path)
            folder.mkdir(parents=True, exist_ok=True)  # trackers write there when they start
            remove_leftovers(folder)
        built = assemble(options, here, folder)
        barrier()
        schedule = run_schedule(options, here, len(built.loader.dataset))
        _check_plateau(built.task, schedule)
        with Interrupt(options["save_every_minutes"]) as interrupt:
            reporter = _reporter(options, here, folder, built, watcher)
            checkpoint = Checkpoint(built.parts)
            run = Run(here, schedule, folder, checkpoint, interrupt, reporter, watcher)
            lines = [*built.description, *_describe(schedule, here, kernels, options)]
            log.info("%s", "\n".join(lines))
            seed_everything(options["seed"], here.rank)
            _start(run, built, resume, options)
            with logging_redirect_tqdm():
                fit(built.task, built.loader, run)
            reporter.summary()
        if run.stopping:
            how = "" if given else " with --resume_from_checkpoint auto"
            done = f"stopped by a signal after step {run.step}"
            log.info("%s; run the same command%s to go on", done, how)
        built.loader.close()
        built.tracker.close()
        return run.finished


def _start(run: Run, built: Assembly, resume: Path | None, options: dict) -> None:
    """Puts a run where it goes on; from then on the folder is this run's. Collective."""
    if resume:
        resume_run(run, read_checkpoint(resume), resume, options)
    elif options["weights_from"]:
        fresh = {"discriminator"} if options.get("not_resume_discriminator") else set()
        weights = {name: part for name, part in built.weights.items() if name not in fresh}
        take_weights(built.parts, weights, options["weights_from"])
    best_name = built.task.best_name
    if run.world.is_main:
        for path in set_aside_later(run.folder, run.step, best_name):
            log.warning("goes back to step %d: %s is set aside", run.step, path)
        save_options(run.folder, options)
    # The best may have been set aside, and a score that no file has is no bar for later ones.
    if not broadcast_object((run.folder / best_name).exists()):
        run.best_score = -math.inf


def _check_plateau(task: Task, schedule: Schedule) -> None:
    kinds = {part.options.kind for player in task.players for part in player.schedules}
    if "plateau" in kinds and not (schedule.eval_steps and task.validator):
        raise ValueError(
            "--lr_schedule plateau follows validations, and this run makes none: give --eval_steps "
            "above 0 and held-out data, or another schedule"
        )


def _with_absolute_paths(options: dict) -> dict:
    """Whoever reads options.json may stand elsewhere."""
    if not options["csv_log_path"]:
        return options
    return options | {"csv_log_path": str(Path(options["csv_log_path"]).expanduser().absolute())}


def run_schedule(options: dict, here: World, num_samples: int) -> Schedule:
    """Lengths and intervals as the options say; ``num_samples`` make an epoch."""
    samples = options["batch_size"] * options["grad_accum_steps"] * here.size
    epoch_steps = min(num_samples / samples, options["max_steps_per_epoch"] or math.inf)
    max_steps = options["max_steps"] or math.ceil(options["epochs"] * epoch_steps)
    return Schedule(
        max_steps=max_steps,
        accum_steps=options["grad_accum_steps"],
        batch_size=options["batch_size"],
        log_steps=options["log_steps"],
        csv_log_steps=options["csv_log_steps"],
        eval_steps=options["eval_steps"],
        save_steps=options["save_ckpt_step"],
        keep_last=options["keep_last"],
        max_bad_updates=options["max_bad_updates"],
        epoch_steps=epoch_steps,
        stop=StopRule(options["stop_metric"], options["stop_below"], options["stop_window"]),
    )


def train_loader(options: dict, dataset: TrainData, here: World) -> TrainLoader:
    """This process's endless batches, read as the options say."""
    return TrainLoader(
        dataset,
        options["batch_size"],
        rank=here.rank,
        world_size=here.size,
        num_workers=options["dataset_num_worker"],
        prefetch_factor=options["dataloader_prefetch_factor"],
        device=here.device,
    )


def run_tracker(options: dict, here: World, folder: Path) -> Tracker:
    """The tracker asked for, on the main process. Opened last: it may start processes."""
    kind = options["tracker"] if here.is_main else "none"
    return open_tracker(kind, folder, options["exp_name"], options)


def build_player(
    options: dict,
    name: str,
    objective: nn.Module,
    updates: int,
    lr: float,
    divisor: float = 1.0,
    blocks: Sequence[nn.Module] = (),
    parts: Sequence[PlayerPart] = (),
) -> Player:
    """A player whose optimizer, schedule and precision are as the options say.

    Args:
        options: Every flag's value, by name.
        name: Prefix of its log entries.
        objective: What it trains.
        updates: How many it makes in all: schedules end there.
        lr: Peak learning rate.
        divisor: What the objective divides its logged loss by before it is backpropagated.
        blocks: The network's hidden layers, whose matrices muon trains.
        parts: Parameters that have options of their own.
    """
    apart = {parameter for part in parts for parameter in part.parameters}
    rest = [p for p in objective.parameters() if p.requires_grad and p not in apart]
    groups = [PlayerPart(name, rest, {"lr": lr})] if rest or not parts else []
    optimizers, schedules, names = [], [], []
    for part in [*groups, *parts]:
        own = options | {"lr": lr} | part.options
        built = build_optimizer(_optimizer_options(own), part.parameters, blocks, divisor)
        optimizers.append(built)
        schedules += [LrSchedule(_schedule_options(own, updates))] * len(built.param_groups)
        names += [part.name] * len(built.param_groups)
    rule = UpdateRule(
        options["mix_precision"],
        options["clip_grad_norm"] / divisor,
        options["find_unused_parameters"],
    )
    player = Player(name, objective, combine(optimizers), schedules, rule)
    player.group_names = names
    return player


def _optimizer_options(options: dict) -> OptimizerOptions:
    return OptimizerOptions(
        options["optimizer"],
        options["lr"],
        options["weight_decay"],
        options["beta1"],
        options["beta2"],
        options["momentum"],
    )


def _schedule_options(options: dict, updates: int) -> ScheduleOptions:
    return ScheduleOptions(
        options["lr_schedule"],
        options["warmup_steps"],
        updates,
        options["min_lr_ratio"],
        options["lr_step_updates"],
        options["lr_gamma"],
        options["plateau_patience"],
    )


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


def _find_run(options: dict, folder: Path | None) -> tuple[Path, Path | None]:
    if folder is not None:
        saved = list_checkpoints(folder)
        return folder, saved[-1] if saved else None
    name = run_name(
        options["exp_name"],
        options["lr"],
        options["batch_size"],
        options["grad_accum_steps"],
        options["resolution"],
    )
    folder = Path(options["ckpt_dir"]).expanduser() / name
    return find_resume(options["resume_from_checkpoint"], folder, options["exp_name"])


def _describe(schedule: Schedule, here: World, kernels: str, options: dict) -> list[str]:
    batch = schedule.batch_size * schedule.accum_steps * here.size
    return [
        f"effective batch {batch} = {schedule.batch_size} x {schedule.accum_steps} micro-batches "
        f"x {here.size} processes; {schedule.max_steps} steps",
        f"device {here.device}, precision {options['mix_precision']}"
        + (", compiled" if options["compile"] else "")
        + (f"; {kernels}" if kernels else ""),
        library_versions(),
    ]


def _csv_path(options: dict, folder: Path) -> Path | None:
    path = Path(options["csv_log_path"] or folder / "training_losses.csv")
    return None if options["disable_csv_log"] else path


def _reporter(
    options: dict,
    here: World,
    folder: Path,
    built: Assembly,
    watcher: Watcher | None,
) -> Reporter:
    plot_every = 0 if options["disable_live_plot"] else options["live_plot_every_steps"]
    report = ReportOptions(
        folder,
        _csv_path(options, folder),
        plot_every,
        built.headline,
        options["mix_precision"],
        watcher.line if watcher else None,
    )
    return Reporter(report, here, built.tracker)
