"""From options to a finished run: what every kind of training shares."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from wfimagevae.dataset import TrainLoader
from wfimagevae.dataset.protocol import TrainData
from wfimagevae.engine.checkpoint import Checkpoint, Stateful, read_checkpoint, remove_leftovers
from wfimagevae.engine.device import enable_fast_kernels
from wfimagevae.engine.distributed import World, barrier, broadcast_object, world
from wfimagevae.engine.ema import EMA, OtherAverages
from wfimagevae.engine.interrupt import Interrupt
from wfimagevae.engine.loop import Run, Schedule, Task, fit
from wfimagevae.engine.optim import OptimizerOptions, build_optimizer
from wfimagevae.engine.player import Player, UpdateRule
from wfimagevae.engine.report import Reporter, ReportOptions
from wfimagevae.engine.run_folder import find_resume, run_name, save_options
from wfimagevae.engine.schedules import LrSchedule, ScheduleOptions
from wfimagevae.engine.seeding import seed_everything
from wfimagevae.engine.tracker import Tracker, open_tracker

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
    """

    task: Task
    loader: TrainLoader
    tracker: Tracker
    parts: dict[str, Stateful]
    headline: tuple[str, ...]
    description: list[str]


def run_training(options: dict, assemble: Callable[[dict, World, Path], Assembly]) -> None:
    """Trains until the last step, or until a signal; resumes where the options say so.

    Args:
        options: Every flag's value, by name.
        assemble: Builds the training from the options, this process and the run's folder.

    Raises:
        ValueError: options that cannot be met, or training that diverged.
    """
    if options["csv_log_path"]:  # whoever reads options.json may stand elsewhere
        csv_path = Path(options["csv_log_path"]).expanduser().absolute()
        options = options | {"csv_log_path": str(csv_path)}
    with world(options["device"]) as here:
        logging.getLogger("wfimagevae").setLevel(logging.INFO if here.is_main else logging.WARNING)
        seed_everything(options["seed"])
        kernels = enable_fast_kernels(here.device)
        folder, resume = broadcast_object(_find_run(options) if here.is_main else None)
        if here.is_main:
            folder.mkdir(parents=True, exist_ok=True)  # trackers write there when they start
            remove_leftovers(folder)
        built = assemble(options, here, folder)
        barrier()
        content = read_checkpoint(resume) if resume else {}
        schedule = run_schedule(options, here, len(built.loader.dataset))
        with Interrupt(options["save_every_minutes"]) as interrupt:
            reporter = _reporter(options, here, folder, built, content.get("current_step", 0))
            checkpoint = Checkpoint(built.parts)
            run = Run(here, schedule, folder, checkpoint, interrupt, reporter)
            if here.is_main:
                save_options(folder, options)
            lines = [*built.description, *_describe(schedule, here, kernels, options)]
            log.info("%s", "\n".join(lines))
            seed_everything(options["seed"], here.rank)
            if resume:
                _resume(run, content, resume, options)
            with logging_redirect_tqdm():
                fit(built.task, built.loader, run)
            reporter.summary()
        if run.stopping:
            log.info(
                "stopped by a signal after step %d; run the same command with "
                "--resume_from_checkpoint auto to go on",
                run.step,
            )
        built.loader.close()
        built.tracker.close()


def run_schedule(options: dict, here: World, num_samples: int) -> Schedule:
    """Lengths and intervals as the options say; ``num_samples`` make an epoch."""
    samples = options["batch_size"] * options["grad_accum_steps"] * here.size
    max_steps = options["max_steps"] or math.ceil(options["epochs"] * num_samples / samples)
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
    """
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = OptimizerOptions(
        options["optimizer"],
        lr,
        options["weight_decay"],
        options["beta1"],
        options["beta2"],
        options["momentum"],
    )
    schedule = ScheduleOptions(
        options["lr_schedule"],
        options["warmup_steps"],
        updates,
        options["min_lr_ratio"],
        options["lr_step_updates"],
        options["lr_gamma"],
        options["plateau_patience"],
    )
    rule = UpdateRule(
        options["mix_precision"],
        options["clip_grad_norm"] / divisor,
        options["find_unused_parameters"],
    )
    built = build_optimizer(optimizer, trained, blocks, divisor)
    return Player(name, objective, built, LrSchedule(schedule), rule)


def plain_config(network: nn.Module) -> dict:
    """The model's configuration as a checkpoint can hold it and `from_config` takes it."""
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    # Sharding puts a class of its own in front.
    own = next(c for c in type(network).__mro__ if c.__module__.startswith("wfimagevae."))
    return {"_class_name": own.__name__} | json.loads(json.dumps(config))


class NetworkWeights:
    """A network as a checkpoint sees it: bare names, and old names accepted."""

    def __init__(self, network: nn.Module):
        self.network = network

    def state_dict(self) -> dict:
        return self.network.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.network.load_weights(state)


def _find_run(options: dict) -> tuple[Path, Path | None]:
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
    ]


def _reporter(
    options: dict, here: World, folder: Path, built: Assembly, resume_step: int
) -> Reporter:
    csv_path = Path(options["csv_log_path"] or folder / "training_losses.csv")
    plot_every = 0 if options["disable_live_plot"] else options["live_plot_every_steps"]
    report = ReportOptions(
        folder,
        None if options["disable_csv_log"] else csv_path,
        plot_every,
        built.headline,
        options["mix_precision"],
    )
    return Reporter(report, here, built.tracker, resume_step)


def _resume(run: Run, content: dict, path: Path, options: dict) -> None:
    skip = []
    parts = run.checkpoint.parts
    if "player_state" not in content:
        log.warning(
            "%s was not written by this repository: weights, average and discriminator are "
            "resumed; its optimizer, data position and randomness are not",
            path,
        )
        foreign = ("optimizer", "player", "sampler", "task", "generator")
        skip += [p for p in parts if p.startswith(foreign)]
    if options["not_resume_optimizer"]:
        skip += [p for p in parts if p.startswith(("optimizer_state", "player_state"))]
    if options.get("not_resume_discriminator"):
        names = ("state_dict.disc_model", "optimizer_state.disc_", "player_state.discriminator")
        skip += [p for p in parts if p.startswith(names)]
    averages = [name for name in parts if name in ("ema_state_dict", "other_ema_state_dicts")]
    run.restore(content, (*skip, *averages))
    for name in averages:
        _resume_average(parts[name], content.get(name), path)
    log.info("resumed %s at step %d", path, run.step)


def _resume_average(ema: EMA | OtherAverages, state: dict | None, path: Path) -> None:
    if state:
        ema.load_state_dict(state)
    else:
        log.warning("%s holds no average of the weights: it starts from the raw weights", path)
        ema.restart()
