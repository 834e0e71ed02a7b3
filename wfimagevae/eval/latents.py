"""Statistics of latents: what turns them into unit-variance inputs of a flow model."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World, all_reduce_sum
from wfimagevae.eval.report import write_json
from wfimagevae.model.vae.modeling_wfvae2_image import pad_to_multiple


class LatentStatistics:
    """Mean and standard deviation per channel of the posterior's samples, streamed.

    Of samples, not of means only: Var[z] = Var[mean] + E[var].

    Args:
        num_channels: Latent channels.
    """

    def __init__(self, num_channels: int):
        self._sums = torch.zeros(3, num_channels, dtype=torch.float64)  # z, z^2, positions

    def update(self, mean: Tensor, logvar: Tensor) -> None:
        """Adds posteriors: ``mean`` and ``logvar``, (B, C, h, w)."""
        mean = mean.detach().cpu().double().transpose(0, 1).flatten(1)  # (C, B h w)
        variance = logvar.detach().cpu().double().exp().transpose(0, 1).flatten(1)
        self._sums[0] += mean.sum(1)
        self._sums[1] += (mean.square() + variance).sum(1)
        self._sums[2] += mean.shape[1]

    def compute(self, device: torch.device) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, over all processes.

        Args:
            device: Where processes can exchange tensors.

        Raises:
            ValueError: no latent was seen, or a channel does not vary.
        """
        sums = self._sums.to(device) if device.type == "cuda" else self._sums.clone()
        total, squares, count = all_reduce_sum(sums).cpu()
        if not count.all():
            raise ValueError("no image could be encoded")
        mean = total / count
        variance = squares / count - mean.square()
        dead = (variance <= 0).nonzero().flatten().tolist()
        if dead:
            raise ValueError(f"latent channels {dead} do not vary: their scale would be infinite")
        return mean.tolist(), variance.sqrt().tolist()


@torch.inference_mode()
def measure_latents(
    vae: nn.Module, loader: DataLoader, here: World, precision: str = "fp32"
) -> tuple[list[float], list[float], list[tuple[str, str]]]:
    """Statistics of a model's latents over the images of all processes.

    Args:
        vae: One of our models; it is moved to the device.
        loader: Of `valid_loader`: this process's share of the images.
        here: This process and the others.
        precision: Of the encoder: fp32, bf16 or fp16.

    Returns:
        Mean and standard deviation per channel, the same on all processes, and (path, reason) of
        this process's unreadable images.

    Raises:
        ValueError: no image could be encoded, or a channel does not vary.
    """
    vae.to(here.device, memory_format=torch.channels_last)
    statistics, unreadable = LatentStatistics(vae.config.latent_dim), []
    with tqdm(
        total=len(loader.dataset), unit="img", desc="encode", disable=not here.is_main
    ) as bar:
        for batch in loader:
            unreadable += batch["unreadable"]
            bar.update(len(batch["path"]) + len(batch["unreadable"]))
            if batch["image"] is None:
                continue
            images = batch["image"].to(here.device, memory_format=torch.channels_last)
            images, _ = pad_to_multiple(images, vae.spatial_factor)
            with autocast(here.device, precision):
                posterior = vae.encode(images).latent_dist
            statistics.update(posterior.mean, posterior.logvar)
    return *statistics.compute(here.device), unreadable


def write_normalization(config: Path, mean: list[float], std: list[float]) -> None:
    """Puts ``shift = mean`` and ``scale = 1 / std`` into a model's config.json, atomically.

    Raises:
        ValueError: the file is no configuration with as many latent channels.
    """
    content = json.loads(config.read_text(encoding="utf-8"))
    if content.get("latent_dim") != len(mean):
        raise ValueError(
            f"{config} has latent_dim {content.get('latent_dim')}, the statistics {len(mean)}"
        )
    write_json(config, content | normalization(mean, std))


def normalization(mean: list[float], std: list[float]) -> dict[str, list[float]]:
    """What turns latents into ``(z - shift) * scale``, of mean 0 and variance 1."""
    return {"shift": mean, "scale": [1 / value for value in std]}
