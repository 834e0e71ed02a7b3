"""Image-VAE training: a game of generator and discriminator, assembled from its options."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from wfimagevae.dataset import TrainImageDataset, TrainLoader
from wfimagevae.engine.checkpoint import Checkpoint, read_checkpoint, remove_leftovers
from wfimagevae.engine.device import enable_fast_kernels
from wfimagevae.engine.distributed import World, barrier, broadcast_object, world
from wfimagevae.engine.ema import EMA
from wfimagevae.engine.interrupt import Interrupt
from wfimagevae.engine.loop import Run, Schedule, fit
from wfimagevae.engine.optim import adamw, lr_schedule
from wfimagevae.engine.player import OptimizerState, Player, UpdateRule
from wfimagevae.engine.report import Reporter, ReportOptions
from wfimagevae.engine.run_folder import find_resume, run_name, save_options
from wfimagevae.engine.seeding import seed_everything
from wfimagevae.engine.tracker import open_tracker
from wfimagevae.objective.vae import (
    DiscriminatorObjective,
    GeneratorObjective,
    fresh_reconstruction,
)
from wfimagevae.task.vae_build import (
    NetworkWeights,
    build_loss,
    build_vae,
    build_validator,
    describe,
    plain_config,
    update_flops,
)

log = logging.getLogger("wfimagevae")

HEADLINE = (
    "train/rec_loss_per_pixel",
    "train/perceptual_loss",
    "train/kl_loss_per_pixel",
    "train/wl_loss_per_pixel",
    "train/g_loss",
    "train/disc_loss",
    "train/d_weight",
)


@dataclass(frozen=True)
class GameRules:
    """Whose turn it is when.

    Attributes:
        alternate: Even steps are the generator's, odd steps the discriminator's; otherwise
            each step is both's.
        disc_train_start: Step from which the discriminator learns.
    """

    alternate: bool
    disc_train_start: int

    def updates(self, max_steps: int) -> tuple[int, int]:
        """How often the generator and the discriminator update in a run with both."""
        start = min(self.disc_train_start, max_steps)
        if not self.alternate:
            return max_steps, max_steps - start
        odd_steps = max_steps // 2 - start // 2
        return max_steps - odd_steps, odd_steps


class VaeTask:
    """Whose turn it is, and what validation says.

    Args:
        players: The generator and, unless its weight is zero, the discriminator.
        vae: The network in training.
        loss: Both players' losses.
        validator: Makes figures and pictures of held-out images.
        loader: Training data; it counts the files it could not read.
        rules: Whose turn it is when.
    """

    # Reconstruction this much worse than before the discriminator deserves a word.
    WORSE = 1.25

    def __init__(
        self,
        players: Sequence[Player],
        vae: nn.Module,
        loss: nn.Module,
        validator,
        loader: TrainLoader,
        rules: GameRules,
    ):
        self.players, self.vae, self.loss, self.validator = players, vae, loss, validator
        self.loader, self.rules = loader, rules
        self._smooth_rec = self._rec_at_start = None
        self._warned = False

    def turn(self, step: int) -> Sequence[Player]:
        """The players who update at ``step``, in order."""
        if len(self.players) == 1 or step < self.rules.disc_train_start:
            return self.players[:1]
        if not self.rules.alternate:
            return self.players
        return self.players[step % 2 :][:1]

    def validate(self, step: int) -> tuple[dict[str, float], float]:
        """Figures over the held-out images, and the best PSNR among raw and averaged weights."""
        discriminator = self.loss.discriminator if len(self.players) > 1 else None
        values = self.validator(self.vae, self.players[0].ema, discriminator, step)
        return values, max(v for name, v in values.items() if name.endswith("/psnr"))

    def watch(self, step: int, values: dict[str, float]) -> None:
        """Warns, once, where reconstruction gets clearly worse after the discriminator starts."""
        rec = values.get("train/rec_loss_per_pixel")
        if rec is None or not math.isfinite(rec):
            return
        old = self._smooth_rec
        self._smooth_rec = rec if old is None else 0.9 * old + 0.1 * rec
        if self.loss.disc_factor(step) == 0:
            self._rec_at_start = self._smooth_rec
        elif self._rec_at_start and self._smooth_rec > self.WORSE * self._rec_at_start:
            if not self._warned:
                log.warning(
                    "reconstruction error is %.0f %% above its value before the discriminator "
                    "started: lower --disc_weight, or raise --disc_start or --disc_ramp_steps",
                    100 * (self._smooth_rec / self._rec_at_start - 1),
                )
            self._warned = True

    def counters(self) -> dict[str, float]:
        """Files that could not be read so far."""
        return {"data/unreadable": self.loader.num_unreadable}

    def facts(self) -> dict:
        """The model's configuration: a checkpoint alone brings the model back."""
        return {"config": plain_config(self.vae)}

    def state_dict(self) -> dict:
        return {"smooth_rec": self._smooth_rec, "rec_at_start": self._rec_at_start}

    def load_state_dict(self, state: dict) -> None:
        self._smooth_rec, self._rec_at_start = state["smooth_rec"], state["rec_at_start"]


def train(options: dict) -> None:
    """Trains an image VAE as the flags of `vae_args` and `run_args` say.

    Args:
        options: Every flag's value, by name.

    Raises:
        ValueError: options that cannot be met, or training that diverged.
    """
    with world(options["device"]) as here:
        logging.getLogger("wfimagevae").setLevel(logging.INFO if here.is_main else logging.WARNING)
        seed_everything(options["seed"])
        kernels = enable_fast_kernels(here.device)
        folder, resume = broadcast_object(_find_run(options) if here.is_main else None)
        task, tracker = _assemble(options, here, folder)
        if here.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        barrier()
        content = read_checkpoint(resume) if resume else {}
        schedule = _schedule(options, here, len(task.loader.dataset))
        with Interrupt(options["save_every_minutes"]) as interrupt:
            reporter = _reporter(options, here, folder, tracker, content.get("current_step", 0))
            checkpoint = Checkpoint(_parts(task))
            run = Run(here, schedule, folder, checkpoint, interrupt, reporter)
            if here.is_main:
                save_options(folder, options)
            log.info("%s", describe(task, schedule, here, kernels, options))
            seed_everything(options["seed"], here.rank)
            if resume:
                _resume(run, content, resume, options)
            with logging_redirect_tqdm():
                fit(task, task.loader, run)
            reporter.summary()
        if run.stopping:
            log.info(
                "stopped by a signal after step %d; run the same command with "
                "--resume_from_checkpoint auto to go on",
                run.step,
            )
        task.loader.close()
        tracker.close()


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


def _schedule(options: dict, here: World, num_images: int) -> Schedule:
    samples = options["batch_size"] * options["grad_accum_steps"] * here.size
    max_steps = options["max_steps"] or math.ceil(options["epochs"] * num_images / samples)
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


def _assemble(options: dict, here: World, folder: Path):
    """Data, networks, objectives and players; the tracker comes last: it may start processes."""
    dataset = TrainImageDataset(
        options["image_path"],
        options["resolution"],
        seed=options["seed"],
        train_crop=options["train_crop"],
        use_manifest=options["use_manifest"],
        cache_dir=options["index_cache_dir"],
    )
    vae = build_vae(options, here.device)
    loss = build_loss(options, here.device)
    max_steps = _schedule(options, here, len(dataset)).max_steps
    players = build_players(options, vae, loss, max_steps)
    loader = TrainLoader(
        dataset,
        options["batch_size"],
        rank=here.rank,
        world_size=here.size,
        num_workers=options["dataset_num_worker"],
        prefetch_factor=options["dataloader_prefetch_factor"],
        device=here.device,
    )
    kind = options["tracker"] if here.is_main else "none"
    tracker = open_tracker(kind, folder, options["exp_name"], options)
    validator = build_validator(options, here, folder, loss, tracker)
    return VaeTask(players, vae, loss, validator, loader, game_rules(options)), tracker


def game_rules(options: dict) -> GameRules:
    """Whose turn it is when, as the trainer's flags say."""
    start = options["disc_train_start"]
    start = options["disc_start"] if start is None else start
    alternate = options["gan_schedule"] == "alternate" and options["disc_weight"] > 0
    return GameRules(alternate, start)


def build_players(options: dict, vae: nn.Module, loss: nn.Module, max_steps: int) -> list[Player]:
    """The generator and, unless its weight is zero, the discriminator.

    Args:
        options: The trainer's flags.
        vae: The network in training, on its device.
        loss: Both players' losses.
        max_steps: Where learning-rate schedules end.
    """
    joint = options["gan_schedule"] == "joint"
    queue = deque() if joint and options["disc_weight"] > 0 else None
    generator = GeneratorObjective(vae, loss, options["seed"], queue)
    # The generator's loss is backpropagated per pixel value: limits in its units follow.
    divisor = 3 * options["resolution"] ** 2
    updates = game_rules(options).updates(max_steps)
    players = [_player(options, "generator", generator, updates[0], options["lr"], divisor)]
    if options["ema"]:
        players[0].ema = EMA(vae, options["ema_decay"], options["ema_warmup"])
    if options["disc_weight"] > 0:
        take = (lambda batch: queue.popleft()) if joint else None
        objective = DiscriminatorObjective(loss, take or fresh_reconstruction(vae, options["seed"]))
        lr = options["lr"] * options["disc_lr_ratio"]
        players.append(_player(options, "discriminator", objective, updates[1], lr, 1))
    flops = update_flops(vae, loss, options)
    for player in players:
        player.flops_per_sample = flops[player.name]
    return players


def _player(
    options: dict, name: str, objective: nn.Module, updates: int, lr: float, divisor: float
) -> Player:
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = adamw(trained, lr, options["weight_decay"], loss_divisor=divisor)
    schedule = lr_schedule(
        options["lr_schedule"], options["warmup_steps"], updates, options["min_lr_ratio"]
    )
    rule = UpdateRule(
        options["mix_precision"],
        options["clip_grad_norm"] / divisor,
        options["find_unused_parameters"],
    )
    return Player(name, objective, optimizer, schedule, rule)


def _parts(task: VaeTask) -> dict:
    """What a checkpoint holds, under the names that `from_pretrained` and old readers know."""
    parts = {
        "state_dict.gen_model": NetworkWeights(task.vae),
        "state_dict.disc_model": task.loss,
        "sampler_state": task.loader,
        "task_state": task,
    }
    for player in task.players:
        short = {"generator": "gen", "discriminator": "disc"}[player.name]
        parts[f"optimizer_state.{short}_optimizer"] = OptimizerState(player.optimizer)
        parts[f"player_state.{player.name}"] = player
    if task.players[0].ema is not None:
        parts["ema_state_dict"] = task.players[0].ema
    return parts


def _reporter(options: dict, here: World, folder: Path, tracker, resume_step: int) -> Reporter:
    csv_path = Path(options["csv_log_path"] or folder / "training_losses.csv")
    plot_every = 0 if options["disable_live_plot"] else options["live_plot_every_steps"]
    report = ReportOptions(
        folder,
        None if options["disable_csv_log"] else csv_path,
        plot_every,
        HEADLINE,
        options["mix_precision"],
    )
    return Reporter(report, here, tracker, resume_step)


def _resume(run: Run, content: dict, path: Path, options: dict) -> None:
    skip = []
    parts = run.checkpoint.parts
    if "player_state" not in content:
        log.warning(
            "%s was not written by this repository: weights, average and discriminator are "
            "resumed; its optimizer, data position and randomness are not",
            path,
        )
        skip += [p for p in parts if p.startswith(("optimizer", "player", "sampler", "task"))]
    if options["not_resume_optimizer"]:
        skip += [p for p in parts if p.startswith(("optimizer_state", "player_state"))]
    if options["not_resume_discriminator"]:
        names = ("state_dict.disc_model", "optimizer_state.disc_", "player_state.discriminator")
        skip += [p for p in parts if p.startswith(names)]
    ema = run.checkpoint.parts.get("ema_state_dict")
    run.restore(content, (*skip, *(["ema_state_dict"] if ema else [])))
    if ema is not None:
        _resume_average(ema, content.get("ema_state_dict"), path)
    log.info("resumed %s at step %d", path, run.step)


def _resume_average(ema: EMA, state: dict | None, path: Path) -> None:
    if state:
        ema.load_state_dict(state)
    else:
        log.warning("%s holds no average of the weights: it starts from the raw weights", path)
        ema.restart()
