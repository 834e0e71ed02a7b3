"""Small velocity models for tests, and their inputs."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from wfimagevae.model.flow.flow_transformer import FlowTransformer
from wfimagevae.model.registry import ModelRegistry

SIT = Path(__file__).parents[2] / "golden" / "sit_tiny"  # of its public code
_TRANSFORMER = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 4}
_SMALL = {
    "UNet": {"input_size": 16, "base_channels": 16, "channel_mult": [1, 2], "num_res_blocks": 1}
    | {"attention_resolutions": [8]},
    "SmallCNN": {"input_size": 8, "base_channels": 16},
    "MLP": {"hidden_size": 32, "depth": 2},
    "FlowTransformer": _TRANSFORMER,
}
# "cross" and "joint" behind a name: it also reads texts, of an encoder "external" or its own.
TEXT_KINDS = ("DiT-S/2 cross", "FlowDiT-S/2 joint")
EXTERNAL_KINDS = ("FlowDiT-S/2 cross external", "DiT-S/2 joint external")
EXTERNAL = {"text_encoder": "external", "text_width": 24, "pooled_width": 10}
_TEXT = {"text_encoder": "bytes", "text_length": 12, "byte_width": 32, "byte_depth": 2}
KINDS = ("DiT-S/2", "FlowDiT-S/2", "UNet", "SmallCNN", "MLP")
_OTHERS = {"WFVAE2Image", "Glide"}  # and the presets of the latter: see tests/model/glide
FLOW_MODELS = [
    name for name in ModelRegistry.names() if name not in _OTHERS and not name.startswith("GLIDE-")
]


def golden_sit():
    config = json.loads((SIT / "config.json").read_text())
    del config["class_dropout_prob"]  # how it was trained, not what it is
    model = FlowTransformer(**config)
    model.load_weights(load_file(SIT / "weights.safetensors"))
    return model.eval()


def small_model(name, **options):
    """A registered model cut down to test size; its outputs are not zero as at initialisation."""
    name, *text = name.split()
    sizes = _SMALL.get(name, _TRANSFORMER if "DiT" in name else {})
    if text:
        sizes = sizes | _TEXT | {"text_attention": text[0]} | (EXTERNAL if text[1:] else {})
    if name.endswith("/8"):  # more than one token
        sizes = sizes | {"input_size": 16}
    model = ModelRegistry.get_model(name)(**(sizes | options))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def inputs_for(model, batch_size=3, dtype=torch.float32):
    """State, time, condition or None, and a later end time or None."""
    x = torch.randn(batch_size, *model.sample_shape, dtype=dtype)
    t = torch.rand(batch_size, dtype=dtype)
    labels = torch.arange(batch_size) % model.num_classes if model.num_classes else None
    condition = text_for(model, labels, dtype) if model.takes_text else labels
    return x, t, condition, (t + (1 - t) / 2 if model.has_average_velocity else None)


def text_for(model, labels=None, dtype=torch.float32, batch_size=3):
    """Random texts of different lengths, of which the second is empty."""
    condition = model.null_condition(batch_size, "cpu")
    length = model.config.text_length
    lengths = torch.tensor([length // 2, 0, length])[torch.arange(batch_size) % 3]
    mask = torch.arange(length) < lengths[:, None]
    if "ids" in condition:
        condition["ids"] = torch.randint(1, 257, mask.shape) * mask
    else:
        tokens = torch.randn(condition["tokens"].shape, dtype=dtype) * mask[..., None]
        condition |= {"tokens": tokens, "mask": mask, "pooled": tokens.mean(1)}
        condition["pooled"] = condition["pooled"][:, : model.config.pooled_width]
    return condition if labels is None else condition | {"label": labels}
