"""Image-VAE training: a game of generator and discriminator, assembled from its options."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from wfimagevae.dataset import TrainLoader
from wfimagevae.dataset.open import build_image_data
from wfimagevae.engine.distributed import World
from wfimagevae.engine.ema import Averages
from wfimagevae.engine.loop import Watcher
from wfimagevae.engine.player import OptimizerState, Player
from wfimagevae.objective.vae import (
    DiscriminatorObjective,
    GeneratorObjective,
    fresh_reconstruction,
)
from wfimagevae.task.training import (
    Assembly,
    NetworkWeights,
    build_player,
    plain_config,
    run_schedule,
    run_tracker,
    run_training,
    train_loader,
)
from wfimagevae.task.vae_build import (
    build_held_out,
    build_loss,
    build_vae,
    build_validator,
    describe,
    trains_discriminator,
    update_flops,
)
from wfimagevae.task.vae_sizes import check_bucket_sizes

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

    best_name = "best-psnr.ckpt"
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
        self._warned: set[str] = set()

    def turn(self, step: int) -> Sequence[Player]:
        """The players who update at ``step``, in order."""
        if len(self.players) == 1 or step < self.rules.disc_train_start:
            return self.players[:1]
        if not self.rules.alternate:
            return self.players
        return self.players[step % 2 :][:1]

    def validate(self, step: int) -> tuple[dict[str, float], float]:
        """Figures over the held-out images, and the PSNR of the weights that are used later.

        Those are the averaged ones, where there are any.
        """
        discriminator = self.loss.discriminator if len(self.players) > 1 else None
        values = self.validator(self.vae, self.players[0].ema, discriminator, step)
        return values, values.get("val_ema/psnr", values["val/psnr"])

    def watch(self, step: int, values: dict[str, float]) -> None:
        """Warns, once each, of a KL term without effect and a discriminator with too much."""
        if values.get("train/kl_free_share", 0) >= 1:
            self._warn(
                "every latent value's KL divergence is below --kl_free_bits %g, so that term has "
                "no gradient: unless training has only begun, lower it",
                self.loss.config.kl_free_bits,
            )
        rec = values.get("train/rec_loss_per_pixel")
        if rec is None or not math.isfinite(rec):
            return
        old = self._smooth_rec
        self._smooth_rec = rec if old is None else 0.9 * old + 0.1 * rec
        # Where nothing was logged before the start, the first value after it stands in.
        if self.loss.config.disc_factor(step) == 0 or self._rec_at_start is None:
            self._rec_at_start = self._smooth_rec
        elif self._rec_at_start and self._smooth_rec > self.WORSE * self._rec_at_start:
            self._warn(
                "reconstruction error is %.0f %% above its value when the discriminator "
                "started: lower --disc_weight, or raise --disc_start or --disc_ramp_steps",
                100 * (self._smooth_rec / self._rec_at_start - 1),
            )

    def _warn(self, message: str, value: float) -> None:
        if message not in self._warned:
            log.warning(message, value)
        self._warned.add(message)

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


def train(options: dict, folder: Path | None = None, watcher: Watcher | None = None) -> bool:
    """Trains an image VAE as the flags of `vae_args` and `run_args` say.

    Args:
        options: Every flag's value, by name.
        folder: As for `run_training`, as is ``watcher``.

    Returns:
        True if training is finished, False if a signal stopped it.

    Raises:
        ValueError: options that cannot be met, or training that diverged.
    """
    return run_training(options, _assemble, folder, watcher)


def _assemble(options: dict, here: World, folder: Path) -> Assembly:
    """Data, networks, objectives and players; the tracker comes last: it may start processes."""
    dataset = build_image_data(options, options["image_path"])
    vae = build_vae(options, here.device)
    loss = build_loss(options, here.device)
    check_bucket_sizes(options, dataset.sizes, vae, loss)
    max_steps = run_schedule(options, here, len(dataset)).max_steps
    players = build_players(options, vae, loss, max_steps)
    loader = train_loader(options, dataset, here)
    held_out = build_held_out(options, loss)
    tracker = run_tracker(options, here, folder)
    validator = None
    if held_out is not None:
        validator = build_validator(options, here, folder, held_out, tracker)
    task = VaeTask(players, vae, loss, validator, loader, game_rules(options))
    weights = {"generator": "state_dict.gen_model"}
    if options["disc_weight"] > 0:
        weights["discriminator"] = "state_dict.disc_model"
    lines = describe(task, options)
    return Assembly(task, loader, tracker, _parts(task), HEADLINE, lines, weights)


def game_rules(options: dict) -> GameRules:
    """Whose turn it is when, as the trainer's flags say."""
    start = options["disc_train_start"]
    start = options["disc_start"] if start is None else start
    alternate = options["gan_schedule"] == "alternate" and trains_discriminator(options)
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
    queue = deque() if joint and trains_discriminator(options) else None
    generator = GeneratorObjective(vae, loss, options["seed"], queue)
    # The generator's loss is backpropagated per pixel value: limits in its units follow.
    divisor = 3 * options["resolution"] ** 2
    updates = game_rules(options).updates(max_steps)
    players = [build_player(options, "generator", generator, updates[0], options["lr"], divisor)]
    if options["ema"]:
        players[0].ema = Averages(vae, options["ema_decay"], options["ema_warmup"])
    if trains_discriminator(options):
        take = (lambda batch: queue.popleft()) if joint else None
        take = take or fresh_reconstruction(vae, options["seed"])
        steps_a_turn = 1 if joint else 2
        objective = DiscriminatorObjective(loss, take, options["seed"], steps_a_turn)
        own = options | options["discriminator_options"]
        lr = options["discriminator_options"].get("lr", options["lr"] * options["disc_lr_ratio"])
        players.append(build_player(own, "discriminator", objective, updates[1], lr, 1))
    flops = update_flops(vae, loss, options)
    for player in players:
        player.flops_per_sample = flops[player.name]
    return players


class LossWeights:
    """Both players' losses as a checkpoint sees them; what does not fit is told by its flag."""

    def __init__(self, loss: nn.Module):
        self.loss = loss

    def state_dict(self) -> dict:
        return self.loss.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the discriminator in ``state`` has another number of layers."""
        # All but two have stride 2; a loss of --disc_cls may name its layers otherwise.
        layers = sum(name.endswith(".weight_orig") for name in state) - 2
        own = self.loss.config.disc_num_layers
        if layers > 0 and layers != own:
            raise ValueError(
                f"a discriminator of --disc_num_layers {layers} does not fit this run's of {own}: "
                f"give {layers}, or --not_resume_discriminator to start it anew"
            )
        self.loss.load_state_dict(state)


def _parts(task: VaeTask) -> dict:
    """What a checkpoint holds, under the names that `from_pretrained` and old readers know."""
    parts = {
        "state_dict.gen_model": NetworkWeights(task.vae),
        "state_dict.disc_model": LossWeights(task.loss),
        "sampler_state": task.loader,
        "task_state": task,
    }
    for player in task.players:
        short = {"generator": "gen", "discriminator": "disc"}[player.name]
        parts[f"optimizer_state.{short}_optimizer"] = OptimizerState(player.optimizer)
        parts[f"player_state.{player.name}"] = player
    if task.players[0].ema is not None:
        parts |= task.players[0].ema.parts()
    return parts
