"""The networks of image-VAE training: autoencoder and losses, the sizes they take, their cost."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from wfimagevae.engine.cost import count_macs, shapes_only
from wfimagevae.eval.ssim import TAPS
from wfimagevae.model.losses.lpips_network import MIN_SIZES
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

    def require(place: str, size: int, whom: str, least: int, otherwise: str) -> None:
        if size < least:
            raise ValueError(
                f"{place} {size} is too small for {whom}, which needs {least} px: raise it, or "
                f"{otherwise}"
            )

    def require_for_discriminator(place: str, size: int, without: str) -> None:
        least = getattr(loss.discriminator, "min_size", 1)  # --disc_cls may have one of its own
        layers = (size // 3).bit_length() - 1
        fewer = f"--disc_num_layers {layers} or " if layers > 0 else ""
        require(place, size, "the discriminator", least, f"train with {fewer}{without}")

    # Crops of training.
    factor, lpips_size = vae.spatial_factor, MIN_SIZES["vgg"]
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
    for place, size in smallest.items():
        if options.disc_weight > 0:
            require_for_discriminator(place, size, "--disc_weight 0")
        if options.perceptual_weight > 0:
            require(place, size, "LPIPS", lpips_size, "train with --perceptual_weight 0")
    # Crops of held-out images.
    place, size = "--eval_crop_size", options.eval_crop_size
    if options.eval_image_path and size > options.eval_resolution:
        raise ValueError(
            f"{place} must be at least 1 px and at most --eval_resolution, got {size} and "
            f"{options.eval_resolution}"
        )
    if options.eval_image_path and options.eval_steps:
        never = "validate never (--eval_steps 0)"
        require(place, size, "SSIM", TAPS, never)
        if options.perceptual_weight > 0:
            require(place, size, "LPIPS", lpips_size, never)
        if options.trains_discriminator and all(options.num_pictures):
            require_for_discriminator(place, size, "--disable_patch_score_vis")


def count_arithmetic(
    options: VaeOptions, vae: nn.Module, loss: nn.Module
) -> tuple[int, dict[str, float]]:
    """Multiply-accumulates of an image's round trip, and FLOP of an update of each player for it.

    Counted on shapes alone: a forward pass once, a backward pass twice (once to the input
    alone). Recomputation by gradient checkpointing does not count: it is no progress.
    """
    size, weight = options.resolution, vae.last_layer
    critic = features = 0
    with shapes_only():
        image = torch.empty(1, 3, size, size, dtype=weight.dtype, device=weight.device)
        macs = count_macs(lambda: vae(image, sample_posterior=False))
        forward_backward = 3 * macs
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
    return macs, {"generator": 2.0 * generator, "discriminator": 2.0 * discriminator}
