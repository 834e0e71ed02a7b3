"""Small velocity models for tests, and their inputs."""

import torch

from wfimagevae.model.registry import ModelRegistry

_TRANSFORMER = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 4}
_SMALL = {
    "UNet": {
        "input_size": 16,
        "base_channels": 16,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [8],
    },
    "SmallCNN": {"input_size": 8, "base_channels": 16},
    "MLP": {"hidden_size": 32, "depth": 2},
}
KINDS = ("DiT-S/2", "FlowDiT-S/2", "UNet", "SmallCNN", "MLP")
FLOW_MODELS = [name for name in ModelRegistry.names() if name != "WFVAE2Image"]


def small_model(name, **options):
    """A registered model cut down to test size; its outputs are not zero as at initialisation."""
    model = ModelRegistry.get_model(name)(**(_SMALL.get(name, _TRANSFORMER) | options))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def inputs_for(model, batch_size=3, dtype=torch.float32):
    """State, time, labels or None, and a later end time or None."""
    x = torch.randn(batch_size, *model.sample_shape, dtype=dtype)
    t = torch.rand(batch_size, dtype=dtype)
    labels = torch.arange(batch_size) % model.num_classes if model.num_classes else None
    return x, t, labels, (t + (1 - t) / 2 if model.has_average_velocity else None)
