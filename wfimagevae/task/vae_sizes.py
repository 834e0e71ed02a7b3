"""Sizes of images that a VAE training's networks and metrics can take, checked before it starts."""

from collections.abc import Sequence

from torch import nn

from wfimagevae.eval.lpips import MIN_SIZES
from wfimagevae.eval.ssim import TAPS


def check_training_sizes(options: dict, loss: nn.Module) -> None:
    """Refuses training crops that are too small for the networks of the losses.

    Args:
        options: The trainer's flags.
        loss: Both players' losses.

    Raises:
        ValueError: a crop is too small; the flag, and what would do.
    """
    sizes = {"--resolution": options["resolution"]}
    if options["reduced_min_sizes"]:
        sizes["--reduced_min_sizes"] = min(options["reduced_min_sizes"])
    for flag, size in sizes.items():
        _require_losses(flag, size, options, loss)


def check_bucket_sizes(
    options: dict, sizes: Sequence[tuple[int, int]], vae: nn.Module, loss: nn.Module
) -> None:
    """Refuses shapes of training crops that the autoencoder or the losses' networks cannot take.

    Args:
        options: The trainer's flags.
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
    place = f"--resolution {options['resolution']} with a bucket of {long} x"
    _require_losses(place, short, options, loss)


def check_validation_sizes(options: dict, loss: nn.Module, draws_scores: bool) -> None:
    """Refuses crops of held-out images that validation could not measure.

    Args:
        options: The trainer's flags.
        loss: Both players' losses.
        draws_scores: Whether maps of the discriminator's patch scores are drawn.

    Raises:
        ValueError: as for `check_training_sizes`.
    """
    size, resolution = options["eval_crop_size"], options["eval_resolution"]
    if not 1 <= size <= resolution:
        raise ValueError(
            f"--eval_crop_size must be at least 1 px and at most --eval_resolution, got {size} and "
            f"{resolution}"
        )
    if not options["eval_steps"]:
        return
    flag, otherwise = "--eval_crop_size", "validate never (--eval_steps 0)"
    _require(flag, size, TAPS, "SSIM", otherwise)
    if options["perceptual_weight"] > 0:
        _require(flag, size, MIN_SIZES["vgg"], "LPIPS", otherwise)
    if draws_scores:
        _require_discriminator(flag, size, loss, "--disable_patch_score_vis")


def _require_losses(flag: str, size: int, options: dict, loss: nn.Module) -> None:
    if options["disc_weight"] > 0:
        _require_discriminator(flag, size, loss, "--disc_weight 0")
    if options["perceptual_weight"] > 0:
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
