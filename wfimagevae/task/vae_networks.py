"""The networks of image-VAE training: autoencoder and losses, the sizes they take, their cost."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from wfimagevae.engine.cost import count_macs, shapes_only
from wfimagevae.eval.lpips import MIN_SIZES
from wfimagevae.eval.ssim import TAPS
from wfimagevae.model.modeling_aebase import autoencoder_class
from wfimagevae.task.vae_options import VaeOptions


def build_vae(options: VaeOptions, device: torch.device) -> nn.Module:
    """The autoencoder on its device, from pretrained weights, a configuration or its defaults.

    Raises:
        ValueError: no image autoencoder, or weights or a configuration that do not fit it.
    """
    model_class = autoencoder_class(options.model_name)
    config, pretrained = options.network_config, options.pretrained_model_name_or_path
    if config and not Path(config).is_file():
        raise ValueError(f"--model_config {config}: no such file")
    if pretrained:
        vae = model_class.from_pretrained(
            pretrained,
            model_config=config,
            ignore_mismatched_sizes=options.ignore_mismatched_sizes,
        )
    elif config:
        vae = model_class.from_config(config)
    else:
        vae = model_class()
    if options.resolution % vae.spatial_factor:
        raise ValueError(
            f"--resolution {options.resolution} must be a multiple of {vae.spatial_factor}"
        )
    if options.freeze_encoder:
        vae.freeze_encoder()
    if options.freeze_decoder:
        vae.freeze_decoder()
    if options.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    vae.to(device, memory_format=torch.channels_last).train()
    if options.compile:
        vae.compile_blocks(options.compile_mode)
    return vae


def build_loss(options: VaeOptions, device: torch.device) -> nn.Module:
    """The class that ``--disc_cls`` names, with its weights, on the device.

    Raises:
        ValueError: no such class, crops that are too small for its networks, or LPIPS without
            its backbone.
    """
    loss_class = _loss_class(options.disc_cls)
    loss = loss_class(options).to(device, memory_format=torch.channels_last)
    _require_losses("--resolution", options.resolution, options, loss)
    if options.reduced_min_sizes:
        _require_losses("--reduced_min_sizes", min(options.reduced_min_sizes), options, loss)
    if options.compile:
        loss.compile_networks(options.compile_mode)
    return loss


def _loss_class(path: str) -> type[nn.Module]:
    module, _, name = path.rpartition(".")
    try:
        loss_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--disc_cls {path}: {error}") from None
    is_module = isinstance(loss_class, type) and issubclass(loss_class, nn.Module)
    methods = ("generator_loss", "discriminator_loss")
    if not is_module or not all(hasattr(loss_class, method) for method in methods):
        raise ValueError(
            f"--disc_cls {path} is no class of losses: name a torch module with generator_loss and "
            "discriminator_loss, such as wfimagevae.model.losses.LPIPSWithDiscriminator2D"
        )
    return loss_class


def check_crop_sizes(
    options: VaeOptions, sizes: Sequence[tuple[int, int]], vae: nn.Module, loss: nn.Module
) -> None:
    """Refuses shapes of training crops that the autoencoder or the losses' networks cannot take.

    Args:
        options: Of the training.
        sizes: Height and width of all training crops.
        vae: The autoencoder.
        loss: Both players' losses.

    Raises:
        ValueError: a shape, and what would do.
    """
    factor = vae.spatial_factor
    for height, width in sizes:
        if height % factor or width % factor:
            raise ValueError(
                f"--aspect_buckets or --reduced_min_sizes gives crops of {width} x {height} px: "
                f"make them multiples of {factor}, as this autoencoder needs"
            )
    short, long = sorted(min(sizes, key=min))
    place = f"--resolution {options.resolution} with a bucket of {long} x"
    _require_losses(place, short, options, loss)


def check_validation_sizes(options: VaeOptions, loss: nn.Module, draws_scores: bool) -> None:
    """Refuses crops of held-out images that validation could not measure.

    Args:
        options: Of the training.
        loss: Both players' losses.
        draws_scores: Whether maps of the discriminator's patch scores are drawn.

    Raises:
        ValueError: a size, and what would do.
    """
    size = options.eval_crop_size
    if size > options.eval_resolution:
        raise ValueError(
            f"--eval_crop_size must be at least 1 px and at most --eval_resolution, got {size} and "
            f"{options.eval_resolution}"
        )
    if not options.eval_steps:
        return
    flag, otherwise = "--eval_crop_size", "validate never (--eval_steps 0)"
    _require(flag, size, TAPS, "SSIM", otherwise)
    if options.perceptual_weight > 0:
        _require(flag, size, MIN_SIZES["vgg"], "LPIPS", otherwise)
    if draws_scores:
        _require_discriminator(flag, size, loss, "--disable_patch_score_vis")


def _require_losses(flag: str, size: int, options: VaeOptions, loss: nn.Module) -> None:
    if options.disc_weight > 0:
        _require_discriminator(flag, size, loss, "--disc_weight 0")
    if options.perceptual_weight > 0:
        _require(flag, size, MIN_SIZES["vgg"], "LPIPS", "train with --perceptual_weight 0")


def _require_discriminator(flag: str, size: int, loss: nn.Module, without: str) -> None:
    least = getattr(loss.discriminator, "min_size", 1)  # --disc_cls may have one of its own
    layers = (size // 3).bit_length() - 1
    fewer = f"--disc_num_layers {layers} or " if layers > 0 else ""
    _require(flag, size, least, "the discriminator", f"train with {fewer}{without}")


def _require(flag: str, size: int, least: int, whom: str, otherwise: str) -> None:
    if size < least:
        raise ValueError(
            f"{flag} {size} is too small for {whom}, which needs {least} px: raise it, or "
            f"{otherwise}"
        )


def vae_macs(vae: nn.Module, size: int) -> int:
    """Multiply-accumulates of a round trip, for one square image."""
    with shapes_only():
        image = _blank(vae, size)
        return count_macs(lambda: vae(image, sample_posterior=False))


def update_flops(
    vae: nn.Module, loss: nn.Module, options: VaeOptions, macs: int
) -> dict[str, float]:
    """Arithmetic of one update of each player for one image, in FLOP.

    Counted on shapes alone: a forward pass once, a backward pass twice (once to the input
    alone). Recomputation by gradient checkpointing does not count: it is no progress.

    Args:
        vae: The network in training.
        loss: Both players' losses.
        options: Of the training.
        macs: As `vae_macs` counts them.
    """
    forward_backward, critic, features = 3 * macs, 0, 0
    with shapes_only():
        image = _blank(vae, options.resolution)
        if options.freeze_encoder or options.freeze_decoder:
            encoder = count_macs(lambda: vae.encode(image))
            forward_backward -= 2 * encoder if options.freeze_encoder else macs - encoder
        if options.disc_weight:
            critic = count_macs(lambda: loss.discriminator(image))
        if loss.perceptual_loss:
            features = count_macs(lambda: loss.perceptual_loss.features(image))
    generator = forward_backward + 3 * features + 2 * critic
    discriminator = 6 * critic + (macs if options.gan_schedule == "alternate" else 0)
    if options.r1_weight:
        discriminator += 6 * critic / options.r1_interval
    return {"generator": 2.0 * generator, "discriminator": 2.0 * discriminator}


def _blank(vae: nn.Module, size: int) -> torch.Tensor:
    weight = vae.last_layer
    return torch.empty(1, 3, size, size, dtype=weight.dtype, device=weight.device)
