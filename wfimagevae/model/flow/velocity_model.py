"""Base class of the networks that predict velocities."""

import logging
import math
import re
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from wfimagevae.model.flow.embed import MAX_PERIOD
from wfimagevae.model.modeling_base import CheckpointedBlocks, RegisteredModel, compile_each, naming
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.weight_files import StateDict

logger = logging.getLogger(__name__)

# Labels, or, of models that take text, a dict of tensors with the batch first.
Condition = Tensor | dict[str, Tensor]

# Radians per unit of time of the fastest feature, for networks of our own. Faster ones slow down
# MeanFlow, which learns from derivatives in time (10: twice the energy distance in 800 steps).
TIME_SCALE = 3.0
NUM_FREQUENCIES = 128


class TimeEmbedder(nn.Module):
    """A time to a vector: cosines and sines, then an MLP.

    ``scale`` is the highest frequency, in radians per unit of time; the lowest is 1 / 10000 of it.

    Source: Peebles and Xie 2023 (DiT), arXiv:2212.09748; SiT leaves times in [0, 1].
    """

    def __init__(self, width: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.mlp = nn.Sequential(
            nn.Linear(2 * NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Vectors, (B, width), of times, (B,); in the parameters' type under autocast, too."""
        with torch.autocast(t.device.type, enabled=False):
            # 128 frequencies, from the scale down to 1 / 10000 of it.
            features = time_features(self.scale * t, NUM_FREQUENCIES)
            return self.mlp(features.to(self.mlp[0].weight.dtype))


def time_features(t: Tensor, count: int) -> Tensor:
    """Cosines, then sines, of times, (B,), at ``count`` frequencies from 1 down: (B, 2 count)."""
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    exponents = torch.arange(count, device=t.device, dtype=t.dtype)
    frequencies = torch.exp(-math.log(MAX_PERIOD) * (exponents / count))
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class LabelEmbedder(nn.Module):
    """A vector for each class, the last for no class."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class VelocityModel(CheckpointedBlocks, RegisteredModel):
    """A velocity field ``model(x, t, condition, t_end)``; with ``t_end``, an average velocity.

    ``x`` is the state, (B, *sample_shape), and ``t`` its time, (B,): 0 is noise, 1 is data.
    ``condition`` holds class labels, int64 (B,), with `num_classes` for no class; of a model that
    takes text it is a dict (see `FlowTransformer`). A model built with ``average_velocity``
    predicts ``u`` such that ``x_s = x_t + (s - t) u`` for the end time s, (B,), at least t; without
    one it means s = t, where u is the velocity. Shapes are checked; that labels are in range is
    not, as it would wait for the device.

    A subclass, here or in a user's own module, sets `sample_shape`, calls `add_embedders`, and has
    `predict`, and ``blocks`` or `blocks_to_shard`. Its ``__init__`` is decorated with
    ``register_to_config`` and takes ``num_classes``, ``average_velocity``, and ``in_channels`` and
    ``input_size`` (of points: ``num_dims``).
    """

    sample_shape: tuple[int, ...]
    takes_text = False  # whether the condition is a dict with a text
    size_multiple: int | None = None  # of height and width of other sizes; None: takes no other
    needs: tuple[str, ...] = ()  # parts of the condition without a null: an image to enlarge
    _resized: ClassVar[set[str]] = {"y_embedder.embedding_table.weight"}

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def is_conditional(self) -> bool:
        """Whether there are classes, text or both."""
        return self.num_classes > 0 or self.takes_text

    @property
    def has_average_velocity(self) -> bool:
        return self.config.average_velocity

    @property
    def prediction(self) -> str:
        """``epsilon`` of GLIDE and of weights of a public DiT, which predict the noise at discrete
        times, 0 nearest to data; otherwise the output is a velocity."""
        return self.config.get("prediction", "velocity")

    def null_condition(self, batch_size: int, device: torch.device | str) -> Condition | None:
        """No class, which is the label `num_classes`, int64 (B,); None if unconditional."""
        if not self.num_classes:
            return None
        return torch.full((batch_size,), self.num_classes, dtype=torch.int64, device=device)

    def example_inputs(self, device: torch.device | str) -> tuple[Tensor, Tensor, Condition | None]:
        """State, time and condition of one sample, all of zeros or null."""
        x, t = torch.zeros(1, *self.sample_shape, device=device), torch.zeros(1, device=device)
        return x, t, self.null_condition(1, device)

    def encode_text(self, condition: Condition) -> Condition:
        """The condition with what all steps of a sampler can share computed once: here nothing."""
        return condition

    def add_embedders(
        self, width: int, time_scale: float = 1.0, init_std: float | None = None
    ) -> None:
        """Creates the embedders of times and classes that the config asks for, ``width`` wide.

        ``init_std`` is the standard deviation of the initial weights; None keeps PyTorch's.
        """
        has_end, num_classes = self.config.average_velocity, self.config.num_classes
        # Created in this order, as the initial weights are drawn in it.
        embedders = {"t_embedder": TimeEmbedder(width, time_scale)}
        if has_end:
            embedders["t_end_embedder"] = TimeEmbedder(width, time_scale)
        if num_classes:
            embedders["y_embedder"] = LabelEmbedder(num_classes, width)
        for name, embedder in embedders.items():
            self.add_module(name, embedder)
            for parameter in embedder.parameters() if init_std is not None else ():
                if parameter.dim() == 1:
                    nn.init.zeros_(parameter)
                else:
                    nn.init.normal_(parameter, std=init_std)
        if has_end:  # a pretrained model starts unchanged
            nn.init.zeros_(self.t_end_embedder.mlp[2].weight)
            nn.init.zeros_(self.t_end_embedder.mlp[2].bias)

    def forward(
        self, x: Tensor, t: Tensor, condition: Condition | None = None, t_end: Tensor | None = None
    ) -> Tensor:
        """Velocity at ``x``, (B, *sample_shape), as the class says; ValueError for other shapes."""
        self.check_inputs(x, t, condition, t_end)
        return self.predict(x, t, self.embed(t, condition, t_end))

    def predict(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """Velocity at ``x``, checked before; ``c`` is what `embed` makes of times and labels."""
        raise NotImplementedError

    def embed(self, t: Tensor, labels: Tensor | None, t_end: Tensor | None) -> Tensor:
        """The sum of what the embedders make of times and labels, (B, width)."""
        c = self.t_embedder(t)
        if self.config.average_velocity:
            c = c + self.t_end_embedder(torch.zeros_like(t) if t_end is None else t_end - t)
        return c if labels is None else c + self.y_embedder(labels)

    def check_inputs(
        self, x: Tensor, t: Tensor, condition: Condition | None, t_end: Tensor | None
    ) -> None:
        """Raises ValueError for inputs of another shape, or that this model does not take."""
        shape, batch_size, multiple = tuple(x.shape[1:]), len(x), self.size_multiple
        fits = shape == self.sample_shape
        if multiple and len(shape) == 3:  # takes other heights and widths too
            fits = shape[0] == self.sample_shape[0] and not any(n % multiple for n in shape[1:])
        if not fits:
            others = f", or H and W multiples of {multiple}" if multiple else ""
            raise ValueError(
                f"this {type(self).__name__} takes samples of {self.sample_shape}{others}, "
                f"got {shape}"
            )
        if isinstance(condition, dict):
            raise ValueError(
                f"this {type(self).__name__} takes labels alone, got a condition of "
                f"{', '.join(condition)}; text needs a FlowTransformer with text_encoder"
            )
        # One of each per sample.
        for name, value in (("t", t), ("t_end", t_end), ("condition", condition)):
            if value is not None and value.shape != (batch_size,):
                raise ValueError(f"{name} must be ({batch_size},), got {tuple(value.shape)}")
        # Given where the model reads them, and nowhere else.
        if t_end is not None and not self.has_average_velocity:
            raise ValueError("t_end given to a model without average_velocity=True in its config")
        if condition is None and self.num_classes:
            raise ValueError("a class-conditional model needs labels; null_condition() means none")
        if condition is not None and not self.num_classes:
            raise ValueError("labels given to an unconditional model")

    def blocks_to_shard(self) -> list[nn.Module]:
        """The blocks that FSDP2 shards, and `compile_blocks` as a rule compiles, one by one."""
        return list(self.blocks)

    def compile_blocks(self, mode: str | None = None) -> None:
        """Compiles block by block, in place; names in the state dict stay as they are.

        Under `torch.func.jvp` they run eagerly, unless that is compiled around them.
        """
        compile_each(self.blocks_to_shard(), mode)

    @classmethod
    def options_of_weights(cls, state_dict: StateDict, config: dict) -> dict:
        """Config keys that the shapes of a state dict reveal, given the rest of the config."""
        return {}

    @classmethod
    def _config_of_public_file(cls, source: Path, weights: StateDict, model_name: str) -> dict:
        """The name tells the model's size, the weights' shapes tell the rest."""
        with torch.device("meta"):
            sketch = build_velocity_model(model_name)
        with naming(source):
            keys = sketch.options_of_weights(weights, sketch.config)
        if "prediction" in sketch.config:
            is_dit = source.name.lower().startswith("dit")
            keys["prediction"] = "epsilon" if is_dit else "velocity"
        logger.info("%s read as %s with %s", source, model_name, keys)
        return {**sketch.config, **keys, "_class_name": sketch.class_name()}

    def _optional_parts(self, embedded: dict, overrides: dict) -> list:
        parts, nothing = [], "a fresh one changes nothing"
        if overrides.get("average_velocity"):
            is_part = methodcaller("startswith", "t_end_embedder.")
            parts.append((is_part, f"no embedder of end times in the weights; {nothing}"))
        if overrides.get("text_encoder"):
            is_joint = self.config.get("text_attention") == "joint"
            effect = "a fresh one changes every result until it is trained" if is_joint else nothing
            is_part = re.compile(r"(^|\.)text_").search
            parts.append((is_part, f"no reader of texts in the weights; {effect}"))
        return parts


def build_velocity_model(name: str, **config) -> VelocityModel:
    """A velocity network with fresh weights, by its name or a user's ``package.module:Class``.

    A config key that the network does not have is a TypeError.
    """
    builder: Callable[..., VelocityModel] = ModelRegistry.get_model(name, VelocityModel)
    is_other = isinstance(builder, type) and not issubclass(builder, VelocityModel)
    network = None if is_other else builder(**config)
    if not isinstance(network, VelocityModel):
        raise ValueError(
            f"model {name!r} is no velocity network; use another, such as DiT-S/2, or a class of "
            "your own below wfimagevae.model.VelocityModel"
        )
    network.check_own_config(name)
    return network
