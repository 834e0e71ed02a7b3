"""What the discriminator thinks of each patch, drawn over the image."""

import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wfimagevae.eval.image_writer import save_image
from wfimagevae.eval.images import to_uint8

SUMMARY = ("step", "image", "real_mean", "fake_mean", "fake_min", "fake_max")


def overlay(image: Tensor, logits: Tensor, limit: float, opacity: float = 0.5) -> Tensor:
    """Patch logits as colours over an image: blue looks generated, red looks real.

    Args:
        image: In [-1, 1], (3, H, W).
        logits: Of its patches, (1, h, w).
        limit: Logit of the full colour.
        opacity: Of the colours, 0 to 1.

    Returns:
        An image in [-1, 1], (3, H, W).
    """
    from matplotlib import colormaps

    unit = (logits[None].float() / limit).clamp(-1, 1) * 0.5 + 0.5  # (1, 1, h, w)
    unit = F.interpolate(unit, image.shape[1:], mode="bilinear")[0, 0]
    colours = colormaps["coolwarm"](unit.cpu().numpy())[..., :3]  # (H, W, 3)
    colours = torch.from_numpy(colours).permute(2, 0, 1).float() * 2 - 1
    return (1 - opacity) * image.float().cpu() + opacity * colours


@torch.no_grad()
def save_patch_scores(
    path: Path, discriminator: torch.nn.Module, real: Tensor, fake: Tensor
) -> list[float]:
    """Draws the scores of an image and its reconstruction side by side.

    Args:
        path: PNG to write.
        discriminator: Images in [-1, 1] to patch logits.
        real: The image, (3, H, W).
        fake: Its reconstruction, (3, H, W).

    Returns:
        The image's mean logit; the reconstruction's mean, least and greatest.
    """
    scores = discriminator(torch.stack([real, fake])).float()  # (2, 1, h, w)
    limit = max(scores.abs().max().item(), 1e-6)
    pair = [overlay(x, s, limit) for x, s in zip((real, fake), scores, strict=True)]
    save_image(path, to_uint8(torch.cat(pair, dim=2)))
    fakes = scores[1]
    return [value.item() for value in (scores[0].mean(), fakes.mean(), fakes.min(), fakes.max())]


def append_summary(path: Path, rows: list[list]) -> None:
    """Adds rows of `SUMMARY` to a CSV file, with a header if it is new."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(SUMMARY)
        writer.writerows(rows)
