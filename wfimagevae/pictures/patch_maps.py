"""What the discriminator thinks of each patch, drawn over the image."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wfimagevae.engine.report.progress import CsvLog
from wfimagevae.pictures.pixels import to_uint8
from wfimagevae.pictures.writer import save_image

SUMMARY = ("step", "image", "real_mean", "fake_mean", "fake_min", "fake_max")


def _overlay(image: Tensor, logits: Tensor, limit: float) -> Tensor:
    """Patch logits, (1, h, w), as colours over an image: blue looks generated, red looks real.

    Both images are in [-1, 1], (3, H, W); ``limit`` is the logit of the full colour.
    """
    from matplotlib import colormaps

    unit = (logits[None].float() / limit).clamp(-1, 1) * 0.5 + 0.5  # (1, 1, h, w)
    unit = F.interpolate(unit, image.shape[1:], mode="bilinear")[0, 0]
    colours = colormaps["coolwarm"](unit.cpu().numpy())[..., :3]  # (H, W, 3)
    colours = torch.from_numpy(colours).permute(2, 0, 1).float() * 2 - 1
    return 0.5 * image.float().cpu() + 0.5 * colours


@torch.no_grad()
def save_patch_scores(
    path: Path, discriminator: torch.nn.Module, real: Tensor, fake: Tensor
) -> list[float]:
    """Draws the scores of an image and its reconstruction, (3, H, W) in [-1, 1], side by side.

    Gives the image's mean logit, and the reconstruction's mean, least and greatest.
    """
    scores = discriminator(torch.stack([real, fake])).float()  # (2, 1, h, w)
    limit = max(scores.abs().max().item(), 1e-6)
    pair = [_overlay(x, s, limit) for x, s in zip((real, fake), scores, strict=True)]
    save_image(path, to_uint8(torch.cat(pair, dim=2)))
    fakes = scores[1]
    return [value.item() for value in (scores[0].mean(), fakes.mean(), fakes.min(), fakes.max())]


def append_summary(path: Path, rows: list[list]) -> None:
    """Adds a step's rows of `SUMMARY` to a CSV file, in place of any of that step or later ones.

    Those are of a run that went back to a checkpoint before them.
    """
    log = CsvLog(path, rows[0][0] - 1)
    for step, name, *scores in rows:
        name = name.encode("utf-8", "backslashreplace").decode()  # it need not be a text
        log.write(dict(zip(SUMMARY, (step, name, *scores), strict=True)))
