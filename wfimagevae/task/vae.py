"""Image-VAE training: a game of generator and discriminator, assembled from its options."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from wfimagevae.dataset import TrainLoader
from wfimagevae.dataset.loader import train_loader
from wfimagevae.dataset.open import build_image_data
from wfimagevae.engine.cost import count_parameters
from wfimagevae.engine.distributed import World
from wfimagevae.engine.ema import Averages
from wfimagevae.engine.player import OptimizerState, Player, build_player
from wfimagevae.engine.run import Watcher, run_length
from wfimagevae.engine.train import (
    Assembly,
    NetworkWeights,
    plain_config,
    run_tracker,
    run_training,
)
from wfimagevae.objective.vae import (
    DiscriminatorObjective,
    GeneratorObjective,
    fresh_reconstruction,
)
from wfimagevae.task.vae_networks import (
    build_loss,
    build_vae,
    check_crop_sizes,
    update_flops,
    vae_macs,
)
from wfimagevae.task.vae_options import VaeOptions
from wfimagevae.task.vae_validation import build_held_out, build_validator

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
# Options that mean nothing where another one is 0.
_IDLE_WITHOUT = {
    "disc_weight": ("r1_weight", "instance_noise_std"),
    "kl_weight": ("kl_warmup_steps", "kl_free_bits"),
}


def train(options: VaeOptions, folder: Path | None = None, watcher: Watcher | None = None) -> bool:
    """Trains an image VAE; arguments, result and errors as `run_training`."""
    return run_training(options, _assemble, folder, watcher)


def _assemble(options: VaeOptions, process: World, folder: Path) -> Assembly:
    # Data and networks, each checked against the other before anything is trained.
    dataset = build_image_data(options, options.image_path)
    vae = build_vae(options, process.device)
    loss = build_loss(options, process.device)
    check_crop_sizes(options, dataset.sizes, vae, loss)
    # The players, one or two.
    max_steps = run_length(options, len(dataset), process.size).max_steps
    players = build_players(options, vae, loss, max_steps)
    macs = vae_macs(vae, options.resolution)
    flops = update_flops(vae, loss, options, macs)
    for player in players:
        player.flops_per_sample = flops[player.name]
    batch_size, device = options.batch_size, process.device
    loader = train_loader(dataset, batch_size, options, device, process.rank, process.size)
    # Validation; the tracker comes last, as it may start processes.
    held_out = build_held_out(options, loss)
    tracker = run_tracker(options, process, folder)
    validator = None
    if held_out is not None:
        validator = build_validator(options, process, folder, held_out, tracker)
    task = VaeTask(players, vae, loss, validator, loader, options)
    weights = {"generator": "state_dict.gen_model"}
    if options.disc_weight > 0:
        weights["discriminator"] = "state_dict.disc_model"
    fresh = ()
    if options.not_resume_discriminator:
        fresh = ("state_dict.disc_model", "optimizer_state.disc_", "player_state.discriminator")
    lines = _describe(task, options, macs)
    return Assembly(task, loader, tracker, _parts(task), HEADLINE, lines, weights, fresh)


class VaeTask:
    """Whose turn it is, and what validation says.

    Args:
        players: The generator and, unless its weight is zero, the discriminator.
        vae: The network in training.
        loss: Both players' losses.
        validator: Makes figures and pictures of held-out images.
        loader: Training data; it counts the files it could not read.
        options: Of the training.
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
        options: VaeOptions,
    ):
        self.players, self.vae, self.loss, self.validator = players, vae, loss, validator
        self.loader = loader
        self.alternates = options.gan_schedule == "alternate" and options.trains_discriminator
        self.disc_learns_from = options.disc_learns_from
        self._smooth_rec = self._rec_at_start = None
        self._warned: set[str] = set()

    def turn(self, step: int) -> Sequence[Player]:
        """The players who update at ``step``, in order."""
        if len(self.players) == 1 or step < self.disc_learns_from:
            return self.players[:1]
        if not self.alternates:
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


def build_players(
    options: VaeOptions, vae: nn.Module, loss: nn.Module, max_steps: int
) -> list[Player]:
    """The generator and, unless it is frozen or its weight is zero, the discriminator.

    Args:
        options: Of the training.
        vae: The network in training, on its device.
        loss: Both players' losses.
        max_steps: Where learning-rate schedules end.
    """
    is_joint = options.gan_schedule == "joint"
    generator_updates, discriminator_updates = count_updates(options, max_steps)
    # In a joint step the discriminator takes the generator's reconstructions from this queue.
    queue = deque() if is_joint and options.trains_discriminator else None
    objective = GeneratorObjective(vae, loss, options.seed, queue)
    # The generator's loss is backpropagated per pixel value: limits in its units follow.
    divisor = 3 * options.resolution**2
    generator = build_player("generator", objective, options, generator_updates, divisor)
    if options.ema:
        generator.ema = Averages(vae, options.ema_decay, options.ema_warmup)
    if not options.trains_discriminator:
        return [generator]
    take = (lambda batch: queue.popleft()) if is_joint else fresh_reconstruction(vae, options.seed)
    objective = DiscriminatorObjective(loss, take, options.seed, 1 if is_joint else 2)
    own_lr = {"lr": options.lr * options.disc_lr_ratio}
    changed = options.changed(**own_lr | options.discriminator_options)
    discriminator = build_player("discriminator", objective, changed, discriminator_updates)
    return [generator, discriminator]


def count_updates(options: VaeOptions, max_steps: int) -> tuple[int, int]:
    """How often the generator and the discriminator update in a run of ``max_steps``."""
    start = min(options.disc_learns_from, max_steps)
    if options.gan_schedule == "joint" or not options.trains_discriminator:
        return max_steps, max_steps - start
    odd_steps = max_steps // 2 - start // 2
    return max_steps - odd_steps, odd_steps


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


def _describe(task: VaeTask, options: VaeOptions, macs: int) -> list[str]:
    """What the training is about to do, in a few lines."""
    vae, size = task.vae, options.resolution
    trained = sum(p.numel() for p in vae.parameters() if p.requires_grad)
    names = " + ".join(player.name for player in task.players)
    lines = [
        f"{options.model_name}: {count_parameters(vae):,} parameters ({trained:,} trained), "
        f"{macs / 1e9:.1f} GMAC an image of {size} px; players: {names}",
    ]
    if options.perceptual_weight == 0:
        lines.append("training without LPIPS (--perceptual_weight 0)")
    values = options.values()
    for switch, names in _IDLE_WITHOUT.items():
        idle = [f"--{name}" for name in names if values[name]]
        if idle and not values[switch]:
            lines.append(f"{', '.join(idle)}: without effect at --{switch} 0")
    return lines
