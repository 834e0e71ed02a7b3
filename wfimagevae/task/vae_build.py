"""The parts of image-VAE training, each built from its options."""

import importlib
from pathlib import Path

import torch
from torch import nn

from wfimagevae.dataset import ValidImageDataset, valid_loader
from wfimagevae.dataset.open import open_images
from wfimagevae.engine.cost import count_macs, count_parameters, shapes_only
from wfimagevae.engine.distributed import World
from wfimagevae.engine.report.tracker import Tracker
from wfimagevae.eval.evaluator import Evaluator
from wfimagevae.eval.options import MetricOptions
from wfimagevae.model.losses import LossConfig
from wfimagevae.model.modeling_aebase import autoencoder_class
from wfimagevae.task.vae_sizes import check_training_sizes, check_validation_sizes
from wfimagevae.task.vae_validation import PictureOptions, Validator

_PLAYERS = ("generator", "discriminator")
# Flags that mean nothing where another one is 0.
_IDLE_WITHOUT = {
    "disc_weight": ("r1_weight", "instance_noise_std"),
    "kl_weight": ("kl_warmup_steps", "kl_free_bits"),
}


def build_vae(options: dict, device: torch.device) -> nn.Module:
    """The autoencoder on its device, from pretrained weights, a configuration or its defaults.

    Raises:
        ValueError: no image autoencoder, or weights or a configuration that do not fit it.
    """
    model_class = autoencoder_class(options["model_name"])
    config, pretrained = options["model_config"], options["pretrained_model_name_or_path"]
    if config and not Path(config).is_file():
        raise ValueError(f"--model_config {config}: no such file")
    if pretrained:
        vae = model_class.from_pretrained(
            pretrained,
            model_config=config,
            ignore_mismatched_sizes=options["ignore_mismatched_sizes"],
        )
    elif config:
        vae = model_class.from_config(config)
    else:
        vae = model_class()
    if options["resolution"] % vae.spatial_factor:
        raise ValueError(
            f"--resolution {options['resolution']} must be a multiple of {vae.spatial_factor}"
        )
    if options["freeze_encoder"] and options["freeze_decoder"]:
        raise ValueError("nothing to train: leave out --freeze_encoder or --freeze_decoder")
    if options["freeze_encoder"]:
        vae.freeze_encoder()
    if options["freeze_decoder"]:
        vae.freeze_decoder()
    if options["gradient_checkpointing"]:
        vae.enable_gradient_checkpointing()
    vae.to(device, memory_format=torch.channels_last).train()
    if options["compile"]:
        vae.compile_blocks(options["compile_mode"])
    return vae


def build_loss(options: dict, device: torch.device) -> nn.Module:
    """The class that ``--disc_cls`` names, with its weights, on the device.

    Raises:
        ValueError: no such class, weights that contradict each other, crops that are too small
            for its networks, or LPIPS without its backbone.
    """
    loss_class = _loss_class(options["disc_cls"])
    loss = loss_class(loss_config(options)).to(device, memory_format=torch.channels_last)
    check_training_sizes(options, loss)
    if options["compile"]:
        loss.compile_networks(options["compile_mode"])
    return loss


def _loss_class(path: str) -> type[nn.Module]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--disc_cls {path}: {error}") from None
    is_module = isinstance(found, type) and issubclass(found, nn.Module)
    if not is_module or not all(hasattr(found, f"{player}_loss") for player in _PLAYERS):
        raise ValueError(
            f"--disc_cls {path} is no class of losses: name a torch module with generator_loss and "
            "discriminator_loss, such as wfimagevae.model.losses.LPIPSWithDiscriminator2D"
        )
    return found


def loss_config(options: dict) -> LossConfig:
    """The losses' weights and schedules, as the flags of the same names say.

    Raises:
        ValueError: weights that contradict each other, or frozen halves.
    """
    values = {name: options[name] for name in LossConfig.model_fields}
    if options["freeze_decoder"] and options["disc_weight"] > 0 and options["adaptive_weight"]:
        raise ValueError(
            "the adaptive weight compares gradients at the decoder's last layer, which "
            "--freeze_decoder freezes; add --no_adaptive_weight"
        )
    return LossConfig(**values)


def trains_discriminator(options: dict) -> bool:
    """Whether the discriminator is a player."""
    return options["disc_weight"] > 0 and not options["freeze_discriminator"]


def build_held_out(options: dict, loss: nn.Module) -> ValidImageDataset | None:
    """The images to validate on; None without a path to them.

    Args:
        options: The trainer's flags.
        loss: Both players' losses.

    Raises:
        ValueError: there are none, none is readable, or they are too small to validate on.
    """
    if not options["eval_image_path"]:
        if options["eval_steps"]:
            raise ValueError("give --eval_image_path to validate on, or --eval_steps 0")
        return None
    pictures = _picture_options(options, Path())
    scores = pictures.num_images and pictures.num_patch_scores and trains_discriminator(options)
    check_validation_sizes(options, loss, bool(scores))
    held_out = ValidImageDataset(
        open_images(options, options["eval_image_path"]),
        options["eval_resolution"],
        options["eval_crop_size"],
        options["eval_subset_size"],
    )
    if options["eval_steps"]:
        _check_readable(held_out)
    return held_out


def _check_readable(held_out: ValidImageDataset) -> None:
    """Reads images until one is whole, which is the first as a rule."""
    for i in range(len(held_out)):
        sample = held_out[i]
        if sample["error"] is None:
            return
    raise ValueError(
        f"--eval_image_path: none of {len(held_out)} images is readable, the last is "
        f"{sample['path']}: {sample['error']}; give others, or validate never (--eval_steps 0)"
    )


def build_validator(
    options: dict, here: World, folder: Path, held_out: ValidImageDataset, tracker: Tracker
) -> Validator:
    """What evaluates the VAE on held-out images while it trains."""
    workers = min(options["dataset_num_worker"], 4)
    loader = valid_loader(held_out, options["eval_batch_size"], workers, here.rank, here.size)
    metrics = ["psnr", "ssim"] + (["lpips"] if options["perceptual_weight"] > 0 else [])
    networks = MetricOptions().changed(lpips_weights=options["lpips_weights"])
    evaluator = Evaluator(metrics, here.device, networks)
    pictures = _picture_options(options, folder)
    return Validator(loader, evaluator, here, options["mix_precision"], pictures, tracker)


def _picture_options(options: dict, folder: Path) -> PictureOptions:
    return PictureOptions(
        folder,
        0 if options["disable_val_image_dump"] else options["eval_num_image_log"],
        0 if options["disable_patch_score_vis"] else options["patch_score_vis_max_samples"],
    )


def update_flops(vae: nn.Module, loss: nn.Module, options: dict) -> dict[str, float]:
    """Arithmetic of one update of each player for one image, in FLOP.

    Counted on shapes alone: a forward pass once, a backward pass twice (once to the input
    alone). Recomputation by gradient checkpointing does not count: it is no progress.
    """
    whole, encoder = vae_macs(vae, options["resolution"])
    forward_backward = 3 * whole
    if options["freeze_encoder"]:
        forward_backward -= 2 * encoder
    if options["freeze_decoder"]:
        forward_backward -= whole - encoder
    with shapes_only():
        image = _blank(vae, options["resolution"])
        critic = count_macs(lambda: loss.discriminator(image)) if options["disc_weight"] else 0
        perceptual = loss.perceptual_loss
        features = count_macs(lambda: perceptual.features(image)) if perceptual else 0
    generator = forward_backward + 3 * features + (2 * critic if options["disc_weight"] else 0)
    discriminator = 6 * critic + (whole if options["gan_schedule"] == "alternate" else 0)
    if options["r1_weight"]:
        discriminator += 6 * critic / options["r1_interval"]
    return {"generator": 2.0 * generator, "discriminator": 2.0 * discriminator}


def vae_macs(vae: nn.Module, size: int) -> tuple[int, int]:
    """Multiply-accumulates of a round trip, and of its encoder alone, for one square image."""
    with shapes_only():
        image = _blank(vae, size)
        encoder = count_macs(lambda: vae.encode(image))
        return count_macs(lambda: vae(image, sample_posterior=False)), encoder


def _blank(vae: nn.Module, size: int) -> torch.Tensor:
    weight = vae.last_layer
    return torch.empty(1, 3, size, size, dtype=weight.dtype, device=weight.device)


def describe(task, options: dict) -> list[str]:
    """What an image VAE's training is about to do, in a few lines."""
    size, vae = options["resolution"], task.vae
    parameters = count_parameters(vae)
    trained = sum(p.numel() for p in vae.parameters() if p.requires_grad)
    macs = vae_macs(vae, size)[0]
    names = " + ".join(player.name for player in task.players)
    lines = [
        f"{options['model_name']}: {parameters:,} parameters ({trained:,} trained), "
        f"{macs / 1e9:.1f} GMAC an image of {size} px; players: {names}",
    ]
    if options["perceptual_weight"] == 0:
        lines.append("training without LPIPS (--perceptual_weight 0)")
    for switch, names in _IDLE_WITHOUT.items():
        idle = [f"--{name}" for name in names if options[name]]
        if idle and not options[switch]:
            lines.append(f"{', '.join(idle)}: without effect at --{switch} 0")
    return lines
