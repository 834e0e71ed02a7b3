"""Image-VAE training: a game of generator and discriminator, assembled from its options."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name

import torch
from torch import nn

from wfimagevae.dataset.loader import TrainLoader
from wfimagevae.dataset.open import build_image_data
from wfimagevae.engine.checkpoint import Part
from wfimagevae.engine.cost import count_macs
from wfimagevae.engine.distributed import World
from wfimagevae.engine.ema import Averages
from wfimagevae.engine.loop import Task
from wfimagevae.engine.player import Player
from wfimagevae.engine.run import Watcher
from wfimagevae.engine.train import run_training
from wfimagevae.eval.ssim import TAPS
from wfimagevae.model.losses.lpips_network import MIN_SIZES
from wfimagevae.model.modeling_aebase import autoencoder_class
from wfimagevae.objective.vae import (
    DiscriminatorObjective,
    GeneratorObjective,
    fresh_reconstruction,
)
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
    players, macs = build_players(options, vae, loss)
    loader = TrainLoader(dataset, options.batch_size, options, device, process.rank, process.size)
    held_out = open_held_out(options)
    validator = None
    if held_out is not None:
        discriminator = loss.discriminator if len(players) > 1 else None
        validator = VaeValidator(options, held_out, process, folder, vae, discriminator)
    # What the training is about to do, in a few lines.
    numbers = vae.num_parameters(), vae.num_parameters(only_trainable=True)
    log.info(
        "%s: %s parameters (%s trained), %.1f GMAC an image of %d px; players: %s",
        *(options.model_name, *map("{:,}".format, numbers)),
        *(macs / 1e9, options.resolution, " + ".join(player.name for player in players)),
    )
    if options.perceptual_weight == 0:
        log.info("training without LPIPS (--perceptual_weight 0)")
    for switch, names in _IDLE_WITHOUT.items():
        idle = [f"--{name}" for name in names if getattr(options, name)]
        if idle and not getattr(options, switch):
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
        # A discriminator that does not fit is told before its optimizer, which then does not, too.
        weights = Part(loss.state_dict, self._load_loss)
        own = {"state_dict.disc_model": weights, "task_state": self}
        super().__init__(players, vae, loader, validator, own)
        self.options, self.loss = options, loss
        self.weights = {"generator": "state_dict.gen_model"}
        if options.disc_weight > 0:
            self.weights["discriminator"] = "state_dict.disc_model"
        fresh = "state_dict.disc_model", "optimizer_state.disc_", "player_state.discriminator"
        self.fresh_parts = fresh if options.not_resume_discriminator else ()
        self.alternates = options.gan_schedule == "alternate" and options.trains_discriminator
        start = options.disc_train_start
        self.disc_learns_from = options.disc_start if start is None else start
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
        start = min(self.disc_learns_from, steps)
        if self.alternates:
            odd_steps = steps // 2 - start // 2
            return [steps - odd_steps, odd_steps]
        return [steps, steps - start][: len(self.players)]

    def score(self, values: dict[str, float]) -> float:
        return values.get("val_ema/psnr", values["val/psnr"])

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

    def _load_loss(self, state: dict) -> None:
        # All layers but two have stride 2; a loss of --disc_cls may name them otherwise.
        layers = sum(name.endswith(".weight_orig") for name in state) - 2
        own = self.loss.config.disc_num_layers
        if layers > 0 and layers != own:
            raise ValueError(
                f"a discriminator of --disc_num_layers {layers} does not fit this run's of {own}: "
                f"give {layers}, or --not_resume_discriminator to start it anew"
            )
        self.loss.load_state_dict(state)

    def state_dict(self) -> dict:
        return {"smooth_rec": self._smooth_rec, "rec_at_start": self._rec_at_start}

    def load_state_dict(self, state: dict) -> None:
        values = (state[name] for name in ("smooth_rec", "rec_at_start"))
        self._smooth_rec, self._rec_at_start = (v if v is None else float(v) for v in values)


def build_players(options: VaeOptions, vae: nn.Module, loss: nn.Module) -> tuple[list[Player], int]:
    """The generator and, unless it is frozen or its weight is zero, the discriminator.

    Also multiply-accumulates of an image's round trip.
    """
    is_joint, has_two = options.gan_schedule == "joint", options.trains_discriminator
    # In a joint step the discriminator takes the generator's reconstructions from this queue.
    queue = deque() if is_joint and has_two else None
    objective = GeneratorObjective(vae, loss, options.seed, queue)
    # The generator's loss is backpropagated per pixel value: limits in its units follow.
    players = [Player("generator", objective, options, 3 * options.resolution**2)]
    if options.ema:
        players[0].ema = Averages(vae, options.ema_decay, options.ema_warmup)
    if has_two:
        take = (lambda _: queue.popleft()) if is_joint else fresh_reconstruction(vae, options.seed)
        objective = DiscriminatorObjective(loss, take, options.seed, 1 if is_joint else 2)
        own_lr = {"lr": options.lr * options.disc_lr_ratio}
        changed = options.changed(**own_lr | options.discriminator_options)
        players.append(Player("discriminator", objective, changed))
    # Arithmetic of an image, counted on shapes alone: a forward pass once, a backward pass twice
    # (once to the input alone). Recomputation by gradient checkpointing is no progress.
    size, weight = options.resolution, vae.last_layer
    image = torch.empty(1, 3, size, size, dtype=weight.dtype, device=weight.device)
    macs = count_macs(vae, image)
    critic, features, forward_backward = 0, 0, 3 * macs
    if options.freeze_encoder or options.freeze_decoder:
        encoder = count_macs(vae.encode, image)
        forward_backward -= 2 * encoder if options.freeze_encoder else macs - encoder
    if options.disc_weight:
        critic = count_macs(loss.discriminator, image)
    if loss.perceptual_loss:
        features = count_macs(loss.perceptual_loss.features, image)
    players[0].flops_per_sample = 2.0 * (forward_backward + 3 * features + 2 * critic)
    if has_two:
        regularised = 6 * critic / options.r1_interval if options.r1_weight else 0
        again = 0 if is_joint else macs
        players[1].flops_per_sample = 2.0 * (6 * critic + again + regularised)
    return players, macs


def build_vae(options: VaeOptions, device: torch.device) -> nn.Module:
    """The autoencoder on its device, from pretrained weights, a configuration or its defaults.

    Raises:
        ValueError: no image autoencoder, or weights or a configuration that do not fit it.
    """
    model_class = autoencoder_class(options.model_name)
    config, pretrained = options.network_config, options.pretrained_model_name_or_path
    if isinstance(config, str) and not Path(config).is_file():
        raise ValueError(f"--model_config {config}: no such file")
    overrides = {"spade": True} if options.train_spade else {}
    if pretrained:
        vae = model_class.from_pretrained(
            pretrained,
            model_config=config,
            ignore_mismatched_sizes=options.ignore_mismatched_sizes,
            overrides=overrides,
        )
    elif config:
        vae = model_class.from_config(config, **overrides)
    else:
        vae = model_class(**overrides)
    if options.resolution % vae.spatial_factor:
        raise ValueError(
            f"--resolution {options.resolution} must be a multiple of {vae.spatial_factor}"
        )
    if options.freeze_encoder:
        vae.encoder.requires_grad_(False)
    if options.freeze_decoder:
        vae.decoder.requires_grad_(False)
    if options.train_spade is False:  # the identity, until a training changes it
        for name, parameter in vae.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and ".spade" not in name)
    if options.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    vae.to(device, memory_format=torch.channels_last).train()
    if options.compile:
        vae.compile_blocks(options.compile_mode)
    return vae


def build_loss(options: VaeOptions, device: torch.device) -> nn.Module:
    """The class that ``--disc_cls`` names, with its weights, on the device.

    Raises:
        ValueError: no such class, or LPIPS without its backbone.
    """
    path = options.disc_cls
    try:
        loss_class = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--disc_cls {path}: {error}") from None
    is_module = isinstance(loss_class, type) and issubclass(loss_class, nn.Module)
    if not is_module or not {"generator_loss", "discriminator_loss"} <= {*dir(loss_class)}:
        raise ValueError(
            f"--disc_cls {path} is no class of losses: name a torch module with generator_loss and "
            "discriminator_loss, such as wfimagevae.model.losses.LPIPSWithDiscriminator2D"
        )
    if options.dry_run:  # no figure depends on what LPIPS has learned
        options = options.changed(lpips_weights=False)
    loss = loss_class(options).to(device, memory_format=torch.channels_last)
    if options.compile:
        loss.compile_networks(options.compile_mode)
    return loss


def check_sizes(
    options: VaeOptions, sizes: Sequence[tuple[int, int]], vae: nn.Module, loss: nn.Module
) -> None:
    """Refuses crops that the autoencoder, the losses' networks or validation cannot take.

    ``sizes`` are height and width of all training crops.

    Raises:
        ValueError: a size, and what would do.
    """
    factor, lpips_size = vae.spatial_factor, MIN_SIZES["vgg"]
    # --disc_cls may have a discriminator of its own, or none.
    critic_size = getattr(getattr(loss, "discriminator", None), "min_size", 1)
    for height, width in sizes:
        if height % factor or width % factor:
            raise ValueError(
                f"--aspect_buckets or --reduced_min_sizes gives crops of {width} x {height} px: "
                f"make them multiples of {factor}, as this autoencoder needs"
            )
    short, long = sorted(min(sizes, key=min))
    smallest = {"--resolution": options.resolution}
    if options.reduced_min_sizes:
        smallest["--reduced_min_sizes"] = min(options.reduced_min_sizes)
    smallest[f"--resolution {options.resolution} with a bucket of {long} x"] = short
    # What has to suffice for whom, and how to do without.
    needs: list[tuple[str, int, str, int, str]] = []
    for place, size in smallest.items():
        if options.disc_weight > 0:
            needs.append((place, size, "the discriminator", critic_size, "--disc_weight 0"))
        if options.perceptual_weight > 0:
            needs.append((place, size, "LPIPS", lpips_size, "--perceptual_weight 0"))
    place, size = "--eval_crop_size", options.eval_crop_size
    if options.eval_image_path and size > options.eval_resolution:
        raise ValueError(
            f"{place} must be at most --eval_resolution, got {size} and {options.eval_resolution}"
        )
    if options.eval_image_path and options.eval_steps:
        needs.append((place, size, "SSIM", TAPS, "--eval_steps 0"))
        if options.perceptual_weight > 0:
            needs.append((place, size, "LPIPS", lpips_size, "--eval_steps 0"))
        if options.trains_discriminator and all(options.num_pictures):
            without = "--disable_patch_score_vis"
            needs.append((place, size, "the discriminator", critic_size, without))
    for place, size, whom, least, without in needs:
        if size < least:
            layers = (size // 3).bit_length() - 1 if whom == "the discriminator" else 0
            fewer = f"--disc_num_layers {layers} or " if layers > 0 else ""
            raise ValueError(
                f"{place} {size} is too small for {whom}, which needs {least} px: raise it, or "
                f"train with {fewer}{without}"
            )
