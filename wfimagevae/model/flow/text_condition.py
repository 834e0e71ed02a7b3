"""Conditions that hold a text: what they are made of, for a config of the flow transformer."""

from collections.abc import Mapping

import torch
from torch import Tensor


def text_parts(config: Mapping) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape, without the batch, and type of each part of a text."""
    length = config["text_length"]
    if config["text_encoder"] == "bytes":
        return {"ids": ((length,), torch.int64)}
    return {
        "tokens": ((length, config["text_width"]), torch.float32),
        "mask": ((length,), torch.bool),
        "pooled": ((config["pooled_width"],), torch.float32),
    }


def check_text(condition: object, batch_size: int, config: Mapping) -> None:
    """Raises ValueError for a condition that is not what a model of this config takes."""
    parts = text_parts(config)
    names = sorted(parts) + (["label"] if config["num_classes"] else [])
    if not isinstance(condition, dict):
        raise ValueError(
            f"this model takes text: its condition is a dict of {', '.join(names)}, "
            f"got {type(condition).__name__}; null_condition() means none"
        )
    if condition.keys() != set(names):
        raise ValueError(
            f"the condition must hold {', '.join(names)}, got {', '.join(sorted(condition))}"
        )
    for name, (shape, dtype) in parts.items():
        value, shape = condition[name], (batch_size, *shape)
        if value.shape != shape:
            raise ValueError(f"condition[{name!r}] must be {shape}, got {tuple(value.shape)}")
        if value.dtype != dtype and not (value.is_floating_point() and dtype.is_floating_point):
            raise ValueError(f"condition[{name!r}] must be {dtype}, got {value.dtype}")


def masked_mean(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, D) with zeros outside the mask, bool (B, L), and the mean (B, D) inside."""
    tokens = tokens.masked_fill(~mask[..., None], 0)
    return tokens, tokens.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)  # zero without a text


def is_text_weight(name: str) -> bool:
    """Whether a parameter of the flow transformer is there for texts alone."""
    return any(part.startswith("text_") for part in name.split("."))
