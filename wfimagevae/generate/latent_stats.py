"""Statistics of latents: what turns them into unit-variance inputs of a flow model."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World, all_reduce_sum
from wfimagevae.files import read_json, write_json
from wfimagevae.model.vae.modeling_wfvae2_image import pad_to_multiple


def add_posteriors(sums: Tensor, mean: Tensor, logvar: Tensor | None) -> None:
    """Adds to the sums of z, of z^2 and of ones, per channel, float64 (3, C).

    Of the posterior's samples, not of means only: Var[z] = Var[mean] + E[var]. Sums of parts add
    up.

    Args:
        sums: Where they are added.
        mean: The posteriors' means, (B, C, h, w).
        logvar: Log-variances of that shape; None is no variance.
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
    vae: nn.Module, loader: DataLoader, world: World, precision: str = "fp32"
) -> tuple[list[float], list[float], list[tuple[str, str]]]:
    """Statistics of a model's latents over the images of all processes.

    Args:
        vae: One of our models; it is moved to the device.
        loader: This process's share of the images, as `valid_loader` reads them.
        world: This process and the others.
        precision: Arithmetic of the encoder: fp32, bf16 or fp16.

    Returns:
        What `mean_and_std` gives, the same on all processes, and (path, reason) of this process's
        unreadable images.
    """
    vae.to(world.device, memory_format=torch.channels_last)
    sums = torch.zeros(3, vae.config.latent_dim, dtype=torch.float64)
    unreadable, total = [], len(loader.dataset)
    with tqdm(total=total, unit="img", desc="encode", disable=not world.is_main) as bar:
        for batch in loader:
            unreadable += batch["unreadable"]
            bar.update(len(batch["path"]) + len(batch["unreadable"]))
            if batch["image"] is None:
                continue
            images = batch["image"].to(world.device, memory_format=torch.channels_last)
            images, _ = pad_to_multiple(images, vae.spatial_factor)
            with autocast(world.device, precision):
                posterior = vae.encode(images).latent_dist
            add_posteriors(sums, posterior.mean, posterior.logvar)
    sums = sums.to(world.device) if world.device.type == "cuda" else sums  # NCCL needs it there
    return *mean_and_std(all_reduce_sum(sums).cpu()), unreadable


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
