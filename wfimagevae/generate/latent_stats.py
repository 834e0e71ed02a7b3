"""Statistics of latents: what turns them into unit-variance inputs of a flow model."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World, all_reduce_sum
from wfimagevae.files import read_json, write_json
from wfimagevae.model.vae.modeling_wfvae2_image import pad_to_multiple


def add_posteriors(sums: Tensor, mean: Tensor, logvar: Tensor | None) -> None:
    """Adds to the sums of z, of z^2 and of ones, per channel, float64 (3, C).

    Of the posterior's samples, not of means only: Var[z] = Var[mean] + E[var]. Means and
    log-variances are (B, C, h, w); None is no variance.
    """
    mean = mean.detach().cpu().double().transpose(0, 1).flatten(1)  # (C, B h w)
    sums[0] += mean.sum(1)
    sums[1] += mean.square().sum(1)
    sums[2] += mean.shape[1]
    if logvar is not None:
        variance = logvar.detach().cpu().double().exp()
        sums[1] += variance.transpose(0, 1).flatten(1).sum(1)


def mean_and_std(sums: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, from what `add_posteriors` summed.

    Raises ValueError for no latents, some that are not finite, or a channel that does not vary.
    """
    total, squares, count = sums
    if not count.all():
        raise ValueError("no image could be encoded")
    if not sums.isfinite().all():
        raise ValueError("latents are not finite; try --mixed_precision bf16 or fp32")
    mean = total / count
    variance = squares / count - mean.square()
    dead = (variance <= 0).nonzero().flatten().tolist()
    if dead:
        raise ValueError(f"latent channels {dead} do not vary: their scale would be infinite")
    return mean.tolist(), variance.sqrt().tolist()


@torch.inference_mode()
def measure_latents(
    vae: nn.Module, batches: Iterable[Tensor], world: World, precision: str = "fp32"
) -> tuple[list[float], list[float]]:
    """`mean_and_std` of a model's latents over the images of all processes, the same on all.

    The model, one of ours, is moved to the device; batches, (B, 3, H, W) in [-1, 1], are this
    process's share; the precision is that of the encoder.
    """
    vae.to(world.device, memory_format=torch.channels_last)
    sums = torch.zeros(3, vae.config.latent_dim, dtype=torch.float64)
    for images in batches:
        images = images.to(world.device, memory_format=torch.channels_last)
        images, _ = pad_to_multiple(images, vae.spatial_factor)
        with autocast(world.device, precision):
            posterior = vae.encode(images).latent_dist
        add_posteriors(sums, posterior.mean, posterior.logvar)
    sums = sums.to(world.device) if world.device.type == "cuda" else sums  # NCCL needs it there
    return mean_and_std(all_reduce_sum(sums).cpu())


def write_normalization(config: Path, mean: list[float], std: list[float]) -> None:
    """Puts ``shift`` and ``scale`` into a model's config.json; ValueError for another one."""
    content = read_json(config)
    if content.get("latent_dim") != len(mean):
        raise ValueError(
            f"{config} has latent_dim {content.get('latent_dim')}, the statistics {len(mean)}"
        )
    write_json(config, content | normalization(mean, std))


def normalization(mean: list[float], std: list[float]) -> dict[str, list[float]]:
    """What turns latents into ``(z - shift) * scale``, of mean 0 and variance 1."""
    return {"shift": mean, "scale": [1 / value for value in std]}
