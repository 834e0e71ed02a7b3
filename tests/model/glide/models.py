"""Small GLIDE networks for tests, their inputs, and weights that a name alone decides."""

import hashlib
import math

import numpy as np
import torch

from wfimagevae.model.registry import ModelRegistry

GLIDE_MODELS = [name for name in ModelRegistry.names() if name.lower().startswith("glide")]
_TEXT = {"vocab_size": 40, "text_length": 6, "text_width": 32, "text_depth": 2, "text_heads": 2}
SMALL = {"base_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "head_width": 16}
SMALL |= {"input_size": 16, "attention_resolutions": (8,), **_TEXT}


def small_glide(name="GLIDE-base", **options):
    """A registered model cut down to test size; its outputs are not zero as at initialisation."""
    sizes = SMALL | ({"clip_width": 12} if name == "GLIDE-latent" else {})
    model = ModelRegistry.get_model(name)(**(sizes | options))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def condition_for(model, batch_size=3, size=None):
    """Random texts of different lengths, of which the second is empty, and what else it reads."""
    condition = model.null_condition(batch_size, "cpu")
    length, (channels, *own) = model.config.text_length, model.sample_shape
    lengths = torch.tensor([length // 2, 0, length])[torch.arange(batch_size) % 3]
    mask = torch.arange(length) < lengths[:, None]
    words = torch.randint(0, model.config.vocab_size - 1, mask.shape)
    condition |= {"ids": torch.where(mask, words, condition["ids"]), "mask": mask}
    if model.config.clip_width:
        condition["clip"] = torch.randn(batch_size, model.config.clip_width)
    height, width = size or own
    if model.config.upsamples:
        condition["low_res"] = torch.randn(batch_size, channels, height // 4, width // 4)
    if model.config.inpaints:
        condition["inpaint_image"] = torch.randn(batch_size, channels, height, width)
        condition["inpaint_mask"] = torch.randint(0, 2, (batch_size, 1, height, width)).float()
    return condition


def inputs_for(model, batch_size=3):
    """State, discrete times, fractional too, and condition."""
    x = torch.randn(batch_size, *model.sample_shape)
    return x, torch.tensor([17.0, 801.5, 0.0])[torch.arange(batch_size) % 3], condition_for(model)


def drawn(key, shape):
    """Standard normal numbers that a name decides, float64."""
    seed = int.from_bytes(hashlib.sha256(f"glide-golden-v1:{key}".encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape)


@torch.no_grad()
def fill_by_names(model):
    """Weights that their names decide, as the golden values were made with."""
    for key, parameter in model.state_dict().items():
        values = drawn(key, parameter.shape)
        if key.endswith("_embedding") or key == "token_embedding.weight":
            values = 0.02 * values
        elif parameter.dim() > 1:
            values = values / math.sqrt(math.prod(parameter.shape[1:]))
        elif key.endswith(".weight"):
            values = 1 + 0.1 * values
        else:
            values = 0.05 * values
        parameter.copy_(torch.from_numpy(values))
    return model
