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
from wfimagevae.engine.checkpoint import Stateful
from wfimagevae.engine.cost import count_parameters
from wfimagevae.engine.distributed import World
from wfimagevae.engine.ema import Averages
from wfimagevae.engine.loop import Task
from wfimagevae.engine.player import Player
from wfimagevae.engine.run import Watcher
from wfimagevae.engine.schedules import run_length
from wfimagevae.engine.train import run_training
from wfimagevae.objective.vae import (
    DiscriminatorObjective,
    GeneratorObjective,
    fresh_reconstruction,
)
from wfimagevae.task.vae_networks import build_loss, build_vae, check_sizes, count_arithmetic
from wfimagevae.task.vae_options import VaeOptions
from wfimagevae.task.vae_validation import VaeValidator, open_held_out

log = logging.getLogger("wfimagevae")

# Options that mean nothing where another one is 0.
_IDLE_WITHOUT = {
    "disc_weight": ("r1_weight", "instance_noise_std"),
    "kl_weight": ("kl_warmup_steps", "kl_free_bits"),
}


def train(options: VaeOptions, folder: Path | None = None, watcher: Watcher | None = None) -> bool:
    """Trains an image VAE; arguments, result and errors as `run_training`."""
    return run_training(options, _assemble, folder, watcher)


def _assemble(options: VaeOptions, process: World, folder: Path) -> "VaeTask":
    # Data and networks, checked against each other before anything is trained.
    device = process.device
    dataset = build_image_data(options, options.image_path)
    vae, loss = build_vae(options, device), build_loss(options, device)
    check_sizes(options, dataset.sizes, vae, loss)
    # The players, one or two, and what they learn from.
    max_steps, _ = run_length(options, len(dataset), process.size)
    players = build_players(options, vae, loss, max_steps)
    macs, flops = count_arithmetic(options, vae, loss)
    for player in players:
        player.flops_per_sample = flops[player.name]
    loader = train_loader(dataset, options.batch_size, options, device, process.rank, process.size)
    held_out = open_held_out(options)
    validator = None
    if held_out is not None:
        validator = VaeValidator(options, held_out, process, folder)
    # What the training is about to do, in a few lines.
    trained = sum(p.numel() for p in vae.parameters() if p.requires_grad)
    log.info(
        "%s: %s parameters (%s trained), %.1f GMAC an image of %d px; players: %s",
        *(options.model_name, f"{count_parameters(vae):,}", f"{trained:,}"),
        *(macs / 1e9, options.resolution, " + ".join(player.name for player in players)),
    )
    if options.perceptual_weight == 0:
        log.info("training without LPIPS (--perceptual_weight 0)")
    values = options.values()
    for switch, names in _IDLE_WITHOUT.items():
        idle = [f"--{name}" for name in names if values[name]]
        if idle and not values[switch]:
            log.info("%s: without effect at --%s 0", ", ".join(idle), switch)
    return VaeTask(options, players, vae, loss, loader, validator)


class VaeTask(Task):
    """The game of a generator and, unless its weight is zero, a discriminator.

    ``loss`` has both players' losses.
    """

    best_name = "best-psnr.ckpt"
    headline = (
        "train/rec_loss_per_pixel",
        "train/perceptual_loss",
        "train/kl_loss_per_pixel",
        "train/wl_loss_per_pixel",
        "train/g_loss",
        "train/disc_loss",
        "train/d_weight",
    )
    # Reconstruction this much worse than before the discriminator deserves a word.
    WORSE = 1.25

    def __init__(
        self,
        options: VaeOptions,
        players: Sequence[Player],
        vae: nn.Module,
        loss: nn.Module,
        loader: TrainLoader,
        validator: VaeValidator | None = None,
    ):
        super().__init__(players, vae, loader, validator)
        self.options, self.loss = options, loss
        self.weights = {"generator": "state_dict.gen_model"}
        if options.disc_weight > 0:
            self.weights["discriminator"] = "state_dict.disc_model"
        if options.not_resume_discriminator:
            self.fresh_parts = (
                *("state_dict.disc_model", "optimizer_state.disc_", "player_state.discriminator"),
            )
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

    def updates(self, steps: int) -> Sequence[int]:
        return count_updates(self.options, steps)[: len(self.players)]

    def validate(self, step: int) -> tuple[dict[str, float], float, dict[str, Path]]:
        """Figures over the held-out images, the PSNR of the weights that are used later, pictures.

        Those weights are the averaged ones, where there are any.
        """
        discriminator = self.loss.discriminator if len(self.players) > 1 else None
        ema = self.players[0].ema
        values, pictures = self.validator(self.network, ema, discriminator, step, self.pulse)
        return values, values.get("val_ema/psnr", values["val/psnr"]), pictures

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

    def parts(self) -> dict[str, Stateful]:
        # A discriminator that does not fit is told before its optimizer, which then does not, too.
        return {
            "state_dict.disc_model": LossWeights(self.loss),
            "task_state": self,
        } | super().parts()

    def state_dict(self) -> dict:
        return {"smooth_rec": self._smooth_rec, "rec_at_start": self._rec_at_start}

    def load_state_dict(self, state: dict) -> None:
        values = (state[name] for name in ("smooth_rec", "rec_at_start"))
        self._smooth_rec, self._rec_at_start = (v if v is None else float(v) for v in values)


def build_players(
    options: VaeOptions, vae: nn.Module, loss: nn.Module, max_steps: int
) -> list[Player]:
    """The generator and, unless it is frozen or its weight is zero, the discriminator.

    Learning-rate schedules end at ``max_steps``.
    """
    is_joint = options.gan_schedule == "joint"
    generator_updates, discriminator_updates = count_updates(options, max_steps)
    # In a joint step the discriminator takes the generator's reconstructions from this queue.
    queue = deque() if is_joint and options.trains_discriminator else None
    objective = GeneratorObjective(vae, loss, options.seed, queue)
    # The generator's loss is backpropagated per pixel value: limits in its units follow.
    divisor = 3 * options.resolution**2
    generator = Player("generator", objective, options, generator_updates, divisor)
    if options.ema:
        generator.ema = Averages(vae, options.ema_decay, options.ema_warmup)
    if not options.trains_discriminator:
        return [generator]
    take = (lambda batch: queue.popleft()) if is_joint else fresh_reconstruction(vae, options.seed)
    objective = DiscriminatorObjective(loss, take, options.seed, 1 if is_joint else 2)
    own_lr = {"lr": options.lr * options.disc_lr_ratio}
    changed = options.changed(**own_lr | options.discriminator_options)
    discriminator = Player("discriminator", objective, changed, discriminator_updates)
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
