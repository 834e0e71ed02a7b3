"""Models as Hugging Face folders: configuration, weights and a card, read back before use."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from wfimagevae.files import read_json, write_json

# Training options worth telling; paths stay private.
_TOLD_OPTIONS = (
    *("resolution", "train_crop", "max_steps", "epochs", "batch_size", "grad_accum_steps", "lr"),
    *("mix_precision", "ema", "ema_decay", "loss_type", "perceptual_weight", "kl_weight"),
    *("wavelet_loss", "wavelet_weight", "gan_schedule", "disc_start", "disc_weight"),
    *("adaptive_weight", "seed"),
)
_log = logging.getLogger("wfimagevae")


def check_target(folder: Path, *sources: str) -> None:
    """Raises ValueError if an export would overwrite its source, or never be read again."""
    if any(Path(source).resolve() == folder.resolve() for source in sources):
        raise ValueError(f"--save_dir {folder} is where the model comes from; choose another")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--save_dir {folder} is a file; name a folder")
    if any(folder.glob("*.ckpt")):
        raise ValueError(
            f"--save_dir {folder} holds .ckpt files, which would be loaded instead of the export; "
            "choose another"
        )


def save_model(vae: nn.Module, folder: Path, card: str) -> None:
    """Writes config.json, safetensors and README.md, and reads them back.

    Args:
        vae: The model.
        folder: Where to; files of an earlier export are replaced.
        card: Text of README.md.

    Raises:
        ValueError: what was written does not give the same model.
    """
    vae = vae.cpu().eval()
    write_weights(vae, folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    check_reload(vae, folder)


def write_weights(network: nn.Module, folder: Path) -> None:
    """Writes config.json, without the path of this machine that it would name, and safetensors."""
    path, replaced = folder / "config.json", {}
    with contextlib.suppress(FileNotFoundError, ValueError):  # a first export, a broken file
        replaced = read_json(path)
    network.save_pretrained(folder)
    config = read_json(path)
    config.pop("_name_or_path", None)
    write_json(path, config)
    if any(key in replaced and replaced[key] != config.get(key) for key in ("shift", "scale")):
        _log.warning("%s had another shift and scale: run latent_stats.py --write again", path)


@torch.inference_mode()
def check_reload(vae: nn.Module, folder: Path) -> None:
    """Raises ValueError unless the folder gives a model with identical weights and output."""
    reloaded = type(vae).from_pretrained(str(folder)).eval()
    state, other = vae.state_dict(), reloaded.state_dict()
    wrong = state.keys() ^ other.keys()
    wrong |= {k for k in state.keys() & other.keys() if not torch.equal(state[k], other[k])}
    if wrong:
        raise ValueError(f"{folder}: {len(wrong)} tensors differ after reloading: {min(wrong)}")
    size = 4 * vae.spatial_factor
    image = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    image = image.contiguous(memory_format=torch.channels_last)
    outputs = [m.decode(m.encode(image).latent_dist.mode()).sample for m in (vae, reloaded)]
    if not torch.equal(*outputs):
        raise ValueError(f"{folder}: the reloaded model's output differs")


def model_card(
    vae: nn.Module, name: str, options: Mapping | None = None, evaluation: Mapping | None = None
) -> str:
    """Text of a Hugging Face model card.

    Args:
        vae: The model.
        name: Title.
        options: Resolved training options, if known.
        evaluation: What eval_image.py wrote, if measured.
    """
    factor, channels = vae.spatial_factor, vae.config.latent_dim
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    sections = [_FRONT_MATTER, f"# {name}\n", _describe(vae, factor, channels, parameters)]
    if evaluation:
        sections.append(_evaluation_section(evaluation))
    if options:
        sections.append(option_table(options, _TOLD_OPTIONS))
    return "\n".join(sections)


def option_table(options: Mapping, names: Sequence[str]) -> str:
    """Section of a model card: those of the options that are there and counted."""
    idle = "epochs" if options.get("max_steps") else "max_steps"  # the one wins over the other
    told = [f"| {n} | {options[n]} |" for n in names if n in options and n != idle]
    return "\n".join(["## Training\n", "| option | value |", "|---|---|", *told, ""])


_FRONT_MATTER = """---
library_name: wfimagevae
pipeline_tag: image-to-image
tags: [autoencoder, vae, wavelet]
---
"""


def _describe(vae: nn.Module, factor: int, channels: int, parameters: int) -> str:
    class_name = type(vae).__name__
    return f"""A wavelet image autoencoder: {factor}x downsampling, {channels} latent channels, \
{parameters:,} parameters.

```python
import torch
from {type(vae).__module__} import {class_name}

vae = {class_name}.from_pretrained("path/to/this/folder").eval()
images = torch.zeros(1, 3, 256, 256)  # in [-1, 1], height and width multiples of {factor}
with torch.no_grad():
    latents = vae.encode(images).latent_dist.mode()
    reconstruction = vae.decode(latents).sample
    # What a generator sees: mean 0 and variance 1 per channel, if shift and scale were measured.
    normalized = vae.normalize_latents(latents)
```
"""


def _evaluation_section(evaluation: Mapping) -> str:
    protocol = evaluation.get("protocol", {})
    lines = ["## Evaluation\n", "| metric | value |", "|---|---|"]
    for metric in ("psnr", "ssim", "lpips", "rfid"):
        if evaluation.get(metric) is not None:
            lines.append(f"| {metric} | {evaluation[metric]:.4f} |")
    count, size = protocol.get("count", "?"), protocol.get("size", "?")
    lines.append(f"\n{count} images, {size}, protocol {evaluation.get('protocol_hash', '?')}.\n")
    return "\n".join(lines)
