"""Autoencoders as Hugging Face folders, read back before use; one from the halves of two."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from wfimagevae.export.folder import option_table, write_card, write_model

# Training options that the card names; paths stay private.
_CARD_OPTIONS = (
    *("resolution", "train_crop", "max_steps", "epochs", "batch_size", "grad_accum_steps", "lr"),
    *("mix_precision", "ema", "ema_decay", "loss_type", "perceptual_weight", "kl_weight"),
    *("wavelet_loss", "wavelet_weight", "gan_schedule", "disc_start", "disc_weight"),
    *("adaptive_weight", "seed"),
)
# Settings that do not change what the halves say to each other.
_FREE = {"shift", "scale", "dropout"}
_OF_DECODER = ("decoder_", "spade")


def export_vae(vae: nn.Module, folder: Path, card: str) -> None:
    """Writes config.json, safetensors and README.md, and reads them back: see `check_reload`."""
    write_model(vae.cpu().eval(), folder, card)
    check_reload(vae, folder)


@torch.inference_mode()
def check_reload(vae: nn.Module, folder: Path) -> None:
    """Raises ValueError unless the folder gives a model with identical weights and output."""
    reloaded = type(vae).from_pretrained(str(folder)).eval()
    state, other = vae.state_dict(), reloaded.state_dict()
    wrong = state.keys() ^ other.keys()
    wrong |= {k for k in state.keys() & other.keys() if not torch.equal(state[k], other[k])}
    if wrong:
        raise ValueError(f"{folder}: {len(wrong)} tensors differ after reloading: {min(wrong)}")
    # Equal weights are not enough: the configuration decides what is done with them.
    size = 4 * vae.spatial_factor
    image = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    image = image.contiguous(memory_format=torch.channels_last)
    outputs = [m.decode(m.encode(image).latent_dist.mode()).sample for m in (vae, reloaded)]
    if not torch.equal(*outputs):
        raise ValueError(f"{folder}: the reloaded model's output differs")


def vae_card(
    vae: nn.Module, name: str, training: Mapping | None = None, evaluation: Mapping | None = None
) -> str:
    """Text of a model card; ``evaluation`` is what eval_image.py wrote, if measured."""
    factor, class_name = vae.spatial_factor, type(vae).__name__
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    text = f"""A wavelet image autoencoder: {factor}x downsampling, {vae.config.latent_dim} latent \
channels, {parameters:,} parameters.

```python
import torch
from wfimagevae.model.vae.modeling_wfvae2_image import {class_name}

vae = {class_name}.from_pretrained("path/to/this/folder").eval()
images = torch.zeros(1, 3, 256, 256)  # in [-1, 1], height and width multiples of {factor}
with torch.no_grad():
    latents = vae.encode(images).latent_dist.mode()
    reconstruction = vae.decode(latents).sample
    # What a generator sees: mean 0 and variance 1 per channel, if shift and scale were measured.
    normalized = vae.normalize_latents(latents)
```
"""
    figures = ""
    if evaluation:
        protocol = evaluation.get("protocol", {})
        lines = ["## Evaluation\n", "| metric | value |", "|---|---|"]
        for metric in ("psnr", "ssim", "lpips", "rfid"):
            if evaluation.get(metric) is not None:
                lines.append(f"| {metric} | {evaluation[metric]:.4f} |")
        count, size = protocol.get("count", "?"), protocol.get("size", "?")
        code = evaluation.get("protocol_hash", "?")
        lines.append(f"\n{count} images, {size}, protocol {code}.\n")
        figures = "\n".join(lines)
    sections = [text, figures, option_table(training, _CARD_OPTIONS)]
    return write_card(name, "image-to-image", ("autoencoder", "vae", "wavelet"), sections)


def merge(encoder_from: nn.Module, decoder_from: nn.Module) -> nn.Module:
    """A model with one's encoder, latent statistics included, and the other's decoder.

    Their latents must mean the same, which no configuration tells: usually the second one was
    trained further with the first one's encoder frozen. Other classes, or settings that both halves
    share and that differ, are a ValueError.
    """
    if type(encoder_from) is not type(decoder_from):
        raise ValueError(
            f"cannot merge a {type(encoder_from).__name__} with a {type(decoder_from).__name__}"
        )
    first, second = (
        {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
        for config in (encoder_from.config, decoder_from.config)
    )
    # The halves agree in all that both read.
    unlike = [
        f"{key} ({first[key]} and {second.get(key)})"
        for key in first
        if not key.startswith(("_", "encoder_", "base_", *_OF_DECODER))
        and key not in _FREE
        and first[key] != second.get(key)
    ]
    if unlike:
        raise ValueError(f"encoder and decoder do not fit: they differ in {', '.join(unlike)}")
    decoder = {key: value for key, value in second.items() if key.startswith(_OF_DECODER)}
    merged = type(encoder_from).from_config(first | decoder)
    merged.encoder.load_state_dict(encoder_from.encoder.state_dict())
    merged.decoder.load_state_dict(decoder_from.decoder.state_dict())
    return merged.eval()
