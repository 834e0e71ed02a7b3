"""Transformer over patches with adaLN-Zero: DiT and SiT, and the same with today's parts.

Sources: Peebles and Xie 2023 (DiT), arXiv:2212.09748; Ma et al. 2024 (SiT), arXiv:2401.08740;
Yao et al. 2025 (LightningDiT), arXiv:2501.01423.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from wfimagevae.model.flow.embed import position_table, rotation_table
from wfimagevae.model.flow.text_blocks import ByteTransformer, TextEmbedder, text_blocks
from wfimagevae.model.flow.transformer_blocks import (
    FinalLayer,
    PatchEmbedder,
    TransformerBlock,
)
from wfimagevae.model.flow.velocity_model import Condition, VelocityModel
from wfimagevae.model.registry import Depth, ModelRegistry, Natural, Ratio, Size
from wfimagevae.model.weight_files import StateDict

# Sizes that a text encoder asks for.
_TEXT_SIZES = {
    "none": (),
    "bytes": ("text_length", "byte_width", "byte_depth"),
    "external": ("text_length", "text_width", "pooled_width"),
}
# Dividing by the time left stops here, as in JiT.
_LEAST_TIME_LEFT = 0.05


@ModelRegistry.register("FlowTransformer")
class FlowTransformer(VelocityModel):
    """Velocities of images or latents; the arguments are the keys of config.json.

    With the default parts, names and shapes of the parameters are those of public SiT and DiT
    checkpoints.

    A model that reads texts takes ``condition`` as a dict: ``label``, if it has classes too, and
    either ``ids``, int64 (B, L), bytes plus one and 0 behind the end; or what an encoder outside
    made: ``tokens`` (B, L, D), their ``mask``, bool (B, L), and ``pooled`` (B, P). Zeros are no
    text at all.

    Args:
        learn_sigma: The output has twice the channels, of which the second half is dropped.
        prediction: What the layers compute: ``velocity``; ``data``, of which (data - x) / (1 - t)
            makes the velocity (Li and He 2025, arXiv:2511.13720: large patches of pixels are
            learned far sooner); ``epsilon`` for weights of a public DiT, which no sampler takes.
        norm: ``layernorm`` or ``rmsnorm``; ``mlp`` is ``gelu`` or ``swiglu``.
        position: ``absolute``, or ``rope`` (2-D rotations; takes other sizes too).
        text_encoder: ``bytes``, a small transformer of its own, ``byte_width`` (a multiple of 32)
            wide; ``external``; or ``none``.
        text_length: Bytes or tokens of a text, L; ``text_width`` is D, ``pooled_width`` P.
        text_attention: ``cross``, after which a pretrained model starts unchanged; or ``joint``,
            which gives the text a stream of its own (MMDiT).
    """

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers reads the config's keys off this signature
        self,
        input_size: Size = 32,
        patch_size: Size = 2,
        in_channels: Size = 4,
        hidden_size: Size = 384,
        depth: Depth = 12,
        num_heads: Size = 6,
        mlp_ratio: Ratio = 4.0,
        num_classes: Natural = 0,
        learn_sigma: bool = False,
        average_velocity: bool = False,
        prediction: Literal["velocity", "data", "epsilon"] = "velocity",
        norm: Literal["layernorm", "rmsnorm"] = "layernorm",
        mlp: Literal["gelu", "swiglu"] = "gelu",
        position: Literal["absolute", "rope"] = "absolute",
        qk_norm: bool = False,
        text_encoder: Literal["none", "bytes", "external"] = "none",
        text_length: Natural = 128,
        text_width: Natural = 0,
        pooled_width: Natural = 0,
        text_attention: Literal["cross", "joint"] = "cross",
        byte_width: Natural = 256,
        byte_depth: Depth = 4,
    ):
        super().__init__()
        config = self.config
        for large, small in (("input_size", "patch_size"), ("hidden_size", "num_heads")):
            if config[large] % config[small]:
                raise ValueError(
                    f"{large} must be a multiple of {small}, got {config[large]} and "
                    f"{config[small]}"
                )
        for key in _TEXT_SIZES[text_encoder]:
            if config[key] < 1:
                raise ValueError(
                    f"text_encoder {text_encoder!r} needs {key} above 0, got {config[key]}"
                )
        self.sample_shape = (in_channels, input_size, input_size)
        self.takes_text = text_encoder != "none"
        self.size_multiple = patch_size if position == "rope" else None
        # Patches and their places.
        side = input_size // patch_size
        self.x_embedder = PatchEmbedder(patch_size, in_channels, hidden_size)
        if position == "absolute":
            self.register_buffer("pos_embed", position_table(hidden_size, side)[None])
        else:
            table = rotation_table(hidden_size // num_heads, side, side)
            self.register_buffer("rotation", table, persistent=False)
        # Blocks, and the way back to patches.
        sizes = (hidden_size, num_heads, mlp_ratio, norm, mlp, qk_norm)
        if self.takes_text:
            self.blocks = nn.ModuleList(text_blocks(text_attention, depth, *sizes))
        else:
            self.blocks = nn.ModuleList(TransformerBlock(*sizes) for _ in range(depth))
        out_channels = in_channels * (2 if learn_sigma else 1)
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * out_channels, norm)
        self._initialize()
        # What comes after the initialisation has one of its own.
        self.add_embedders(hidden_size, init_std=0.02)
        if self.takes_text:
            widths = (text_width, pooled_width)
            if text_encoder == "bytes":
                widths = (byte_width, byte_width)
                self.text_encoder = ByteTransformer(byte_width, byte_depth, text_length)
            self.text_embedder = TextEmbedder(*widths, hidden_size)

    @property
    def text_encoder(self) -> ByteTransformer | None:
        """The byte transformer; without this, diffusers gives the config's key of that name."""
        return self._modules.get("text_encoder")

    def null_condition(self, batch_size: int, device: torch.device | str) -> Condition | None:
        """No class, and zeros, as an empty prompt is encoded too, for no text."""
        labels = super().null_condition(batch_size, device)
        if not self.takes_text:
            return labels
        text = {
            name: torch.zeros(batch_size, *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in text_parts(self.config).items()
        }
        return text if labels is None else {"label": labels} | text

    def forward(
        self, x: Tensor, t: Tensor, condition: Condition | None = None, t_end: Tensor | None = None
    ) -> Tensor:
        """Velocity at ``x``, (B, C, H, W); see `VelocityModel.forward`."""
        if not self.takes_text:
            return super().forward(x, t, condition, t_end)
        self.check_inputs(x, t, condition, t_end)
        if self.config.text_encoder == "bytes":
            text = self.text_encoder(condition["ids"])
        else:
            text = (condition[key] for key in ("tokens", "mask", "pooled"))
        tokens, mask, pooled = self.text_embedder(*text)
        c = self.embed(t, condition.get("label"), t_end) + pooled
        return self.predict(x, t, c, (tokens, mask))

    def predict(
        self, x: Tensor, t: Tensor, c: Tensor, text: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """As `VelocityModel.predict`; ``text`` holds tokens, (B, L, D), and their mask, (B, L)."""
        # Patches with their places become tokens.
        height, width = (size // self.config.patch_size for size in x.shape[2:])
        h = self.x_embedder(x.to(self.x_embedder.proj.weight.dtype))  # (B, N, D)
        rotation = None
        if self.config.position == "absolute":
            h = (h + self.pos_embed).to(h.dtype)  # or the table's float32 would stay to the end
        elif height == width == self.config.input_size // self.config.patch_size:
            rotation = self.rotation
        else:  # a sample of another size than the model's
            head_width = self.config.hidden_size // self.config.num_heads
            rotation = rotation_table(head_width, height, width).to(self.rotation)
        # Blocks; a text, if there is one, goes through them beside the image.
        tokens, mask = text or (None, None)
        for block in self.blocks:
            if text is None:
                h = self.run(block, h, c, rotation)
            else:
                h, tokens = self.run(block, h, c, rotation, tokens, mask)
        # (B, N, p p C_out) to (B, C, H, W); learn_sigma's second half of the channels is dropped.
        p, channels = self.config.patch_size, self.config.in_channels
        h = self.final_layer(h, c).view(len(h), height, width, p, p, -1)[..., :channels]
        h = h.permute(0, 5, 1, 3, 2, 4)
        output = h.reshape(len(h), channels, height * p, width * p)
        if self.config.prediction != "data":
            return output
        # What was predicted are the data, to which the velocity leads in the time that is left.
        time_left = (1 - t).clamp_min(_LEAST_TIME_LEFT).view(-1, 1, 1, 1)
        return (output.float() - x) / time_left

    def check_inputs(
        self, x: Tensor, t: Tensor, condition: Condition | None, t_end: Tensor | None
    ) -> None:
        """As `VelocityModel.check_inputs`, also of the parts of a condition with a text."""
        if self.takes_text:
            labels = ["label"] if self.num_classes else []
            check_parts(condition, len(x), text_parts(self.config), labels)
            condition = condition.get("label")
        super().check_inputs(x, t, condition, t_end)

    @classmethod
    def options_of_weights(cls, state_dict: StateDict, config: dict) -> dict:
        """Input size, channels, classes and learn_sigma of a public SiT or DiT file."""
        patch_size = config["patch_size"]
        try:
            channels, *patch = state_dict["x_embedder.proj.weight"].shape[1:]
            num_outputs = len(state_dict["final_layer.linear.weight"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"the weights are of no SiT or DiT: {error}") from error
        if patch != [patch_size] * 2:
            raise ValueError(f"the weights are for patches of {patch}, the model for {patch_size}")
        # What the shapes tell of a file that has no config.
        keys = {
            "in_channels": channels,
            "learn_sigma": num_outputs == 2 * channels * patch_size**2,
            "num_classes": 0,
            "average_velocity": any(key.startswith("t_end_embedder.") for key in state_dict),
        }
        if "pos_embed" in state_dict:
            keys["input_size"] = math.isqrt(state_dict["pos_embed"].shape[1]) * patch_size
        if "y_embedder.embedding_table.weight" in state_dict:
            keys["num_classes"] = len(state_dict["y_embedder.embedding_table.weight"]) - 1
        return keys

    def _initialize(self) -> None:
        """DiT's: Xavier; zero where a block or the output begins, so that blocks do nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
        nn.init.zeros_(projection.bias)
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name.endswith("text_attn.proj.weight"):
                nn.init.zeros_(parameter)
        nn.init.zeros_(self.final_layer.linear.weight)


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


def check_parts(
    condition: object,
    batch_size: int,
    parts: Mapping[str, tuple[tuple[int | None, ...], torch.dtype]],
    others: Sequence[str] = (),
) -> None:
    """Raises ValueError for a condition that is no dict of these parts, and of others, unchecked.

    A part is its shape, without the batch, in which None is any size, and its type.
    """
    names = [*sorted(parts), *others]
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
        fits = len(shape) == value.ndim and all(
            size in (None, own) for size, own in zip(shape, value.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"condition[{name!r}] must be {shape}, got {tuple(value.shape)}")
        if value.dtype != dtype and not (value.is_floating_point() and dtype.is_floating_point):
            raise ValueError(f"condition[{name!r}] must be {dtype}, got {value.dtype}")


_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
_TODAY = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "qk_norm": True}

for _size, (_width, _depth, _heads) in _SIZES.items():
    _sizes = {"hidden_size": _width, "depth": _depth, "num_heads": _heads}
    for _patch in (2, 4, 8):
        ModelRegistry.register_preset(
            f"DiT-{_size}/{_patch}", FlowTransformer, **_sizes, patch_size=_patch
        )
    for _patch in (1, 2, 4, 8):
        ModelRegistry.register_preset(
            f"FlowDiT-{_size}/{_patch}", FlowTransformer, **_sizes, patch_size=_patch, **_TODAY
        )
