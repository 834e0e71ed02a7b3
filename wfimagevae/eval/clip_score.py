"""CLIP score: how well images show what their prompts say."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wfimagevae.model.clip import Clip


@torch.inference_mode()
def clip_scores(clip: Clip, pixels: Tensor, prompts: Sequence[str], batch_size: int) -> Tensor:
    """Cosine of CLIP's embeddings of each image and its prompt, float32 (B,), on the CPU.

    It is in [-1, 1], without CLIP's scale; good pictures have 0.2 to 0.35. Images are 8-bit,
    (B, 3, H, W); the network works where it is. Values that are not finite are a ValueError.

    Source: Hessel et al. 2021, arXiv:2104.08718, without the factor of 2.5.
    """
    texts, parts = list(dict.fromkeys(prompts)), []
    embedded = [
        clip.embed_texts(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)
    ]
    table = dict(zip(texts, F.normalize(torch.cat(embedded)), strict=True))
    for i in range(0, len(pixels), batch_size):
        images = F.normalize(clip.embed_images(pixels[i : i + batch_size]))
        shown = torch.stack([table[prompt] for prompt in prompts[i : i + batch_size]])
        parts.append((images * shown).sum(1).cpu())
    scores = torch.cat(parts)
    if not scores.isfinite().all():
        raise ValueError(f"CLIP scores of {clip.name} are not finite: its weights?")
    return scores
