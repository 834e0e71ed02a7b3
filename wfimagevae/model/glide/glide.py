"""GLIDE: a U-Net on the tokens of a text transformer that it has inside.

Sources: Nichol et al. 2021, arXiv:2112.10741; the latent form, with CLIP's embedding of the text
beside the tokens, is glide-finetune's.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from wfimagevae.model.flow.flow_transformer import check_parts
from wfimagevae.model.flow.small_networks import zeroed
from wfimagevae.model.flow.velocity_model import Condition, VelocityModel, time_features
from wfimagevae.model.glide.blocks import (
    GROUPS,
    AttentionBlock,
    ResBlock,
    Stage,
    TextBlock,
    group_norm,
)
from wfimagevae.model.registry import Depth, ModelRegistry, Natural, Share, Size
from wfimagevae.model.weight_files import StateDict

CLIP_TOKENS = 4  # that a CLIP embedding becomes
# Names of the public models, by the channels that they read and whether they read CLIP embeddings.
_PUBLIC_NAMES = {
    (3, False): "GLIDE-base",
    (6, False): "GLIDE-upsample",
    (7, False): "GLIDE-base-inpaint",
    (10, False): "GLIDE-upsample-inpaint",
    (4, True): "GLIDE-latent",
}
_TEXT_PARTS = {
    *("transformer", "transformer_proj", "final_ln"),
    *("token_embedding", "positional_embedding", "padding_embedding"),
}


@ModelRegistry.register("Glide")
class Glide(VelocityModel):
    """Noise in images, or latents, that show a text; the arguments are the keys of config.json.

    ``model(x, t, condition)`` is (B, 2 C, H, W): epsilon, then the fractions v of the variance. The
    time t is discrete, and may be fractional: 0 is nearest to the data, ``num_train_steps`` - 1 is
    noise, where our flows' 1 is data.

    The condition is a dict, batch first: ``ids``, int64 (B, L), and ``mask``, bool (B, L), True on
    tokens of the text; or what `encode_text` makes of these. Beside it, where the model asks for
    it, ``low_res`` (B, C, h, w) in [-1, 1], any smaller size; ``inpaint_image`` (B, C, H, W) and
    ``inpaint_mask`` (B, 1, H, W), 1 where the image is known; ``clip`` (B, clip_width), the pooled
    embedding of the text, zeros for none.

    Args:
        base_channels: Width at full size, a multiple of 32; it is that times ``channel_mult`` at
            each level, which halves the size.
        num_res_blocks: Of a level on the way down; one more on the way up.
        attention_resolutions: Sizes in pixels of the levels that attend.
        upsamples: The model enlarges ``low_res``.
        inpaints: The model completes ``inpaint_image``.
        clip_width: Width of CLIP's embedding; 0 for a model without.
        schedule: Of the noise that it is trained with, in ``num_train_steps``; for the diffusion.
        text_length: Tokens of a text, L; the last of ``vocab_size`` ids is the padding.
    """

    takes_text = True
    num_classes = 0
    has_average_velocity = False
    prediction = "epsilon"

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers reads the config's keys off this signature
        self,
        input_size: Size = 64,
        in_channels: Size = 3,
        base_channels: Size = 192,
        channel_mult: Sequence[Size] = (1, 2, 3, 4),
        num_res_blocks: Size = 3,
        attention_resolutions: Sequence[Natural] = (32, 16, 8),
        head_width: Size = 64,
        dropout: Share = 0.1,
        upsamples: bool = False,
        inpaints: bool = False,
        clip_width: Natural = 0,
        schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2",
        num_train_steps: Size = 1000,
        vocab_size: Size = 50257,
        text_length: Size = 128,
        text_width: Size = 512,
        text_depth: Depth = 16,
        text_heads: Size = 8,
    ):
        super().__init__()
        _check_config(self.config)
        self.sample_shape = (in_channels, input_size, input_size)
        self.size_multiple = 2 ** (len(channel_mult) - 1)
        widths = [base_channels * mult for mult in channel_mult]
        cond_width = 4 * base_channels
        block = partial(ResBlock, cond_width=cond_width, dropout=dropout)
        attention = partial(AttentionBlock, head_width=head_width, text_width=text_width)

        def stage(level: int, channels: int) -> list[nn.Module]:
            width = widths[level]
            attends = input_size // 2**level in attention_resolutions
            return [block(channels, width)] + ([attention(width)] if attends else [])

        # The text.
        self.token_embedding = nn.Embedding(vocab_size, text_width)
        self.positional_embedding = nn.Parameter(torch.empty(text_length, text_width))
        self.padding_embedding = nn.Parameter(torch.empty(text_length, text_width))
        blocks = [TextBlock(text_width, text_heads) for _ in range(text_depth)]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.final_ln = nn.LayerNorm(text_width)
        self.transformer_proj = nn.Linear(text_width, cond_width)
        # Time, and CLIP's view of the text.
        self.time_embed = _mlp(base_channels, cond_width)
        if clip_width:
            self.clip_to_time = _mlp(clip_width, cond_width)
            self.clip_to_xf = nn.Linear(clip_width, CLIP_TOKENS * text_width)
        # Down: each step's output is kept for the way up.
        conv_in = nn.Conv2d(_input_channels(self.config), widths[0], 3, padding=1)
        self.input_blocks, skips = nn.ModuleList([nn.Sequential(conv_in)]), [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                self.input_blocks.append(Stage(*stage(level, skips[-1])))
                skips.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(Stage(block(width, width, factor=0.5)))
                skips.append(width)
        width = widths[-1]
        self.middle_block = Stage(block(width, width), attention(width), block(width, width))
        # Up: each step reads one of the outputs that were kept, the latest first.
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for i in range(num_res_blocks + 1):
                parts = stage(level, width + skips.pop())
                width = widths[level]
                if level and i == num_res_blocks:
                    parts.append(block(width, width, factor=2))
                self.output_blocks.append(Stage(*parts))
        conv_out = nn.Conv2d(width, 2 * in_channels, 3, padding=1)
        self.out = nn.Sequential(group_norm(width), nn.SiLU(), zeroed(conv_out))
        self.reset_text()
        self.to(memory_format=torch.channels_last)

    @property
    def needs(self) -> tuple[str, ...]:
        """Parts of the condition that stand beside the text and have no null."""
        parts = ("inpaint_image", "inpaint_mask") if self.config.inpaints else ()
        return (*parts, "low_res") if self.config.upsamples else parts

    @property
    def kind(self) -> str:
        """Name of the public model that reads the same beside the text."""
        if self.config.clip_width:
            return "GLIDE-latent"
        kind = "GLIDE-upsample" if self.config.upsamples else "GLIDE-base"
        return f"{kind}-inpaint" if self.config.inpaints else kind

    def null_condition(self, batch_size: int, device: torch.device | str) -> Condition:
        """No text, which is padding alone, and no CLIP embedding; the other parts have no null."""
        shape, padding = (batch_size, self.config.text_length), self.config.vocab_size - 1
        null = {
            "ids": torch.full(shape, padding, dtype=torch.int64, device=device),
            "mask": torch.zeros(shape, dtype=torch.bool, device=device),
        }
        if self.config.clip_width:
            null["clip"] = torch.zeros(batch_size, self.config.clip_width, device=device)
        return null

    def example_inputs(self, device: torch.device | str) -> tuple[Tensor, Tensor, Condition]:
        """As of every network, with the parts that have no null."""
        x, t, condition = super().example_inputs(device)
        for part in self.needs:
            condition[part] = torch.zeros_like(x[:, :1] if part == "inpaint_mask" else x)
        return x, t, condition

    def encode_text(self, condition: dict[str, Tensor]) -> dict[str, Tensor]:
        """The condition with ``pooled`` (B, 4 base_channels) and ``tokens`` (B, L, text_width).

        These take the place of ``ids`` and ``mask``, and depend on no time: one call serves all
        steps of a sampler. A condition that has them already comes back as it is.
        """
        if "pooled" in condition:
            return condition
        rest = {key: part for key, part in condition.items() if key not in ("ids", "mask")}
        h = self.token_embedding(condition["ids"]) + self.positional_embedding
        h = torch.where(condition["mask"][..., None], h, self.padding_embedding)
        for block in self.transformer.resblocks:
            h = self.run(block, h)
        h = self.final_ln(h)
        return {"pooled": self.transformer_proj(h[:, -1]), "tokens": h} | rest

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: dict[str, Tensor] | None = None,
        t_end: Tensor | None = None,
    ) -> Tensor:
        """Epsilon and v at ``x``, (B, C, H, W), as the class says; ValueError for other shapes."""
        self.check_inputs(x, t, condition, t_end)
        condition = self.encode_text(condition)
        tokens, dtype = condition["tokens"], self.time_embed[0].weight.dtype
        # The time and the vectors of the text are as precise as the parameters, under autocast too.
        with torch.autocast(x.device.type, enabled=False):
            c = self.time_embed(time_features(t.float(), self.config.base_channels // 2).to(dtype))
            c = c + condition["pooled"].to(dtype)
            if self.config.clip_width:
                c = c + self.clip_to_time(condition["clip"].to(dtype))
        if self.config.clip_width:
            more = self.clip_to_xf(condition["clip"].to(dtype))
            more = more.unflatten(1, (CLIP_TOKENS, -1))
            tokens = torch.cat([tokens, more.to(tokens.dtype)], dim=1)
        # What the U-Net reads beside the state, in the order of the public weights.
        parts = [x]
        if self.config.inpaints:
            mask = condition["inpaint_mask"].to(x.dtype)
            parts += [condition["inpaint_image"].to(x.dtype) * mask, mask]
        if self.config.upsamples:
            low_res = condition["low_res"].to(x.dtype)
            parts.append(F.interpolate(low_res, x.shape[2:], mode="bilinear", align_corners=False))
        return self.predict(torch.cat(parts, dim=1), t, c, tokens.to(dtype))

    def predict(self, x: Tensor, t: Tensor, c: Tensor, tokens: Tensor) -> Tensor:
        """The U-Net, of all that it reads, (B, inputs, H, W), the condition and the tokens."""
        conv_in, *down = self.input_blocks
        h = conv_in(x.to(c.dtype, memory_format=torch.channels_last))
        skips = [h]
        for block in down:
            h = self.run(block, h, c, tokens)
            skips.append(h)
        h = self.run(self.middle_block, h, c, tokens)
        for block in self.output_blocks:
            h = self.run(block, h, c, tokens, skips.pop())
        return self.out(h)

    def check_inputs(
        self, x: Tensor, t: Tensor, condition: Condition | None, t_end: Tensor | None
    ) -> None:
        """As `VelocityModel.check_inputs`, also of the parts of the condition."""
        super().check_inputs(x, t, None, t_end)
        config, channels, number = self.config, x.shape[1], torch.float32
        length, size = config.text_length, tuple(x.shape[2:])
        if isinstance(condition, dict) and "pooled" in condition:
            parts = {"pooled": ((4 * config.base_channels,), number)}
            parts["tokens"] = ((length, config.text_width), number)
        else:
            parts = {"ids": ((length,), torch.int64), "mask": ((length,), torch.bool)}
        if self.config.upsamples:
            parts["low_res"] = ((channels, None, None), number)
        if self.config.inpaints:
            parts["inpaint_image"] = ((channels, *size), number)
            parts["inpaint_mask"] = ((1, *size), number)
        if config.clip_width:
            parts["clip"] = ((config.clip_width,), number)
        check_parts(condition, len(x), parts)

    @torch.no_grad()
    def reset_text(self) -> None:
        """Fresh weights for all that `part_of` calls text.

        Source: Radford et al. 2021 (CLIP), arXiv:2103.00020: standard deviations that keep the
        size of activations, less by the depth where a block adds to them.
        """
        for name, parameter in self.named_parameters():
            if part_of(name) != "text":
                continue
            if parameter.dim() == 1:  # biases, and the weights of norms
                nn.init.constant_(parameter, float(name.endswith("weight")))
                continue
            std = {"positional_embedding": 0.01, "padding_embedding": 0.01}.get(name, 0.02)
            if "embedding" not in name:
                std = parameter.shape[1] ** -0.5
            if name.endswith("c_proj.weight"):
                std *= (2 * self.config.text_depth) ** -0.5
            nn.init.normal_(parameter, std=std)

    @torch.no_grad()
    def reset_unet(self) -> None:
        """Fresh weights for all that is no text; blocks and output start at zero again."""
        for name, module in self.named_modules():
            if part_of(name) != "text" and hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, ResBlock):
                zeroed(module.out_layers[-1])
            elif isinstance(module, AttentionBlock):
                zeroed(module.proj_out)
        zeroed(self.out[-1])

    def blocks_to_shard(self) -> list[nn.Module]:
        unet = (*self.input_blocks[1:], self.middle_block, *self.output_blocks)
        return [*self.transformer.resblocks, *unet]

    @classmethod
    def options_of_weights(cls, state_dict: StateDict, config: dict) -> dict:
        """Nothing, as a public model has one size; ValueError for the weights of another model."""
        try:
            inputs = state_dict["input_blocks.0.0.weight"].shape[1]
            state_dict["transformer.resblocks.0.ln_1.weight"]
        except (KeyError, IndexError) as error:
            raise ValueError(f"the weights are of no GLIDE: there is no {error}") from error
        found = (inputs, "clip_to_xf.weight" in state_dict)
        own = (_input_channels(config), config["clip_width"] > 0)
        if found != own:
            what, wanted = (
                _PUBLIC_NAMES.get(key, f"a GLIDE that reads {key[0]} channels")
                for key in (found, own)
            )
            raise ValueError(f"the weights are of {what}, not of {wanted}")
        return {}


def part_of(name: str) -> Literal["text", "unet", "both"]:
    """What a parameter belongs to, by its name: the text transformer, the U-Net, or both.

    Both is what carries a text into the U-Net, which learns whichever of the two is frozen.
    """
    first = name.partition(".")[0]
    if first in _TEXT_PARTS:
        return "text"
    return "both" if ".encoder_kv." in name or first.startswith("clip_to_") else "unet"


@torch.no_grad()
def start_from_pixels(latent: Glide, pixels: Glide) -> list[str]:
    """Gives a GLIDE of latents the weights of one of pixels; the names of those that it lacks.

    Weights of equal name and shape are copied. The first three channels of the latent are read,
    and their noise and variance predicted, as those of the image were, and the others as zero.
    What the pixels' model has not keeps its fresh weights. ValueError for a model of pixels that
    upsamples or inpaints, whose input means something else.
    """
    if (latent.kind, pixels.kind) != ("GLIDE-latent", "GLIDE-base"):
        kinds = f"{latent.kind} from {pixels.kind}"
        raise ValueError(f"a GLIDE-latent starts from the pixels of a GLIDE-base, not {kinds}")
    own, given = latent.state_dict(), pixels.state_dict()
    channels, inner = latent.sample_shape[0], pixels.sample_shape[0]
    widened = ("input_blocks.0.0.weight", "out.2.weight", "out.2.bias")
    fresh = [k for k, v in own.items() if k not in given or given[k].shape != v.shape]
    if channels < inner or own[widened[1]].shape[1:] != given[widened[1]].shape[1:]:
        raise ValueError(
            f"a latent GLIDE of {channels} channels, {latent.config.base_channels} wide, cannot "
            f"start from one of {inner}, {pixels.config.base_channels} wide"
        )
    for key in own.keys() - {*fresh}:
        own[key].copy_(given[key])
    for key in widened:
        own[key].zero_()
    own[widened[0]][:, :inner] = given[widened[0]]
    for key in widened[1:]:  # epsilon, then variance
        own[key].unflatten(0, (2, -1))[:, :inner] = given[key].unflatten(0, (2, -1))
    return [key for key in fresh if key not in widened]


def _mlp(width: int, out_width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out_width), nn.SiLU(), nn.Linear(out_width, out_width))


def _input_channels(config: dict) -> int:
    """Channels that the U-Net reads: the state, known pixels, their mask, the small image."""
    channels, inpaints = config["in_channels"], config["inpaints"]
    return channels * (1 + inpaints + config["upsamples"]) + inpaints


def _check_config(config: dict) -> None:
    """Raises ValueError for sizes that do not fit."""
    mult, base, head = config["channel_mult"], config["base_channels"], config["head_width"]
    if not mult or config["input_size"] % 2 ** (len(mult) - 1):
        raise ValueError(
            "channel_mult needs levels, and input_size must be a multiple of 2 for each but one, "
            f"got {list(mult)} and {config['input_size']}"
        )
    if base % GROUPS or base % head or config["text_width"] % config["text_heads"]:
        raise ValueError(
            f"base_channels must be a multiple of {GROUPS} and of head_width, and text_width of "
            f"text_heads, got {base}, {head}, {config['text_width']} and {config['text_heads']}"
        )


_LARGE = {"input_size": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "num_res_blocks": 2}
_LARGE |= {"schedule": "linear", "upsamples": True}
_LATENT = {"input_size": 32, "in_channels": 4, "channel_mult": (1, 2, 4), "clip_width": 768}
_LATENT |= {"attention_resolutions": (16, 8), "schedule": "scaled_linear"}

ModelRegistry.register_preset("GLIDE-base", Glide)
ModelRegistry.register_preset("GLIDE-base-inpaint", Glide, inpaints=True)
ModelRegistry.register_preset("GLIDE-upsample", Glide, **_LARGE)
ModelRegistry.register_preset("GLIDE-upsample-inpaint", Glide, **_LARGE, inpaints=True)
ModelRegistry.register_preset("GLIDE-latent", Glide, **_LATENT)
