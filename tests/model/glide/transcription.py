"""GLIDE's formulas written plainly, from a state dict: NCHW, float32, attention by einsum.

Source: the public code of Nichol et al. 2021 (GLIDE), as its papers and checkpoints tell of it.
"""

import math

import torch
import torch.nn.functional as F


def transcribed(model, x, t, condition):
    """What a GLIDE network's weights give at ``x``, in evaluation mode."""
    state, config = model.state_dict(), model.config
    net = _Plain(state, config.head_width, config.text_width // config.text_heads)
    levels, blocks = len(config.channel_mult), config.num_res_blocks
    downs = {(blocks + 1) * level for level in range(1, levels)}
    ups = {(blocks + 1) * level - 1 for level in range(1, levels)}
    # Text.
    ids, mask = condition["ids"], condition["mask"]
    h = state["token_embedding.weight"][ids] + state["positional_embedding"][None]
    h = torch.where(mask[:, :, None], h, state["padding_embedding"][None])
    for i in range(config.text_depth):
        h = net.text_block(f"transformer.resblocks.{i}", h)
    tokens = net.layer_norm("final_ln", h)
    # Time, text and CLIP in one vector.
    half = config.base_channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
    angles = t[:, None] * frequencies[None]
    c = net.mlp("time_embed", torch.cat([torch.cos(angles), torch.sin(angles)], dim=1))
    c = c + net.linear("transformer_proj", tokens[:, -1])
    if "clip" in condition:
        c = c + net.mlp("clip_to_time", condition["clip"])
        more = net.linear("clip_to_xf", condition["clip"]).reshape(len(x), 4, -1)
        tokens = torch.cat([tokens, more], dim=1)
    # The U-Net.
    if model.config.inpaints:
        mask = condition["inpaint_mask"]
        x = torch.cat([x, condition["inpaint_image"] * mask, mask], dim=1)
    if model.config.upsamples:
        enlarged = F.interpolate(condition["low_res"], x.shape[2:], mode="bilinear")
        x = torch.cat([x, enlarged], dim=1)
    h = net.conv("input_blocks.0.0", x)
    kept = [h]
    for i in range(1, net.count("input_blocks")):
        h = net.stage(f"input_blocks.{i}", h, c, tokens, 0.5 if i in downs else 1)
        kept.append(h)
    h = net.stage("middle_block", h, c, tokens)
    for i in range(net.count("output_blocks")):
        h = torch.cat([h, kept.pop()], dim=1)
        h = net.stage(f"output_blocks.{i}", h, c, tokens, 2 if i in ups else 1)
    return net.conv("out.2", F.silu(net.group_norm("out.0", h)))


class _Plain:
    def __init__(self, state, head_width, text_head_width):
        self.state, self.head_width, self.text_head_width = state, head_width, text_head_width

    def count(self, name):
        return 1 + max(int(k.split(".")[1]) for k in self.state if k.startswith(name))

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].flatten(1).T + self.state[f"{name}.bias"]

    def mlp(self, name, x):
        return self.linear(f"{name}.2", F.silu(self.linear(f"{name}.0", x)))

    def conv(self, name, x):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def group_norm(self, name, x):
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)

    def layer_norm(self, name, x):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    def attention(self, qkv, head_width, text=None):
        """Of (B, N, heads * 3 * d): queries, keys and values lie within each head."""
        q, k, v = qkv.unflatten(2, (-1, 3 * head_width)).split(head_width, dim=-1)
        if text is not None:
            text_k, text_v = text.unflatten(2, (-1, 2 * head_width)).split(head_width, dim=-1)
            k, v = torch.cat([text_k, k], dim=1), torch.cat([text_v, v], dim=1)
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(head_width)
        return torch.einsum("bhnm,bmhd->bnhd", weights.softmax(-1), v).flatten(2)

    def text_block(self, name, x):
        qkv = self.linear(f"{name}.attn.c_qkv", self.layer_norm(f"{name}.ln_1", x))
        x = x + self.linear(f"{name}.attn.c_proj", self.attention(qkv, self.text_head_width))
        h = F.gelu(self.linear(f"{name}.mlp.c_fc", self.layer_norm(f"{name}.ln_2", x)))
        return x + self.linear(f"{name}.mlp.c_proj", h)

    def stage(self, name, x, c, tokens, factor=1):
        """Blocks of a step; the last of them resizes by the factor."""
        parts = sorted({k[len(name) + 1] for k in self.state if k.startswith(f"{name}.")})
        for i in parts:
            if f"{name}.{i}.qkv.weight" in self.state:
                x = self.attention_block(f"{name}.{i}", x, tokens)
            else:
                x = self.res_block(f"{name}.{i}", x, c, factor if i == parts[-1] else 1)
        return x

    def res_block(self, name, x, c, factor):
        h = F.silu(self.group_norm(f"{name}.in_layers.0", x))
        if factor == 2:
            h, x = (y.repeat_interleave(2, 2).repeat_interleave(2, 3) for y in (h, x))
        elif factor != 1:
            h, x = (F.avg_pool2d(y, 2) for y in (h, x))
        h = self.conv(f"{name}.in_layers.2", h)
        scale, shift = self.linear(f"{name}.emb_layers.1", F.silu(c))[:, :, None, None].chunk(2, 1)
        h = F.silu(self.group_norm(f"{name}.out_layers.0", h) * (1 + scale) + shift)
        h = self.conv(f"{name}.out_layers.3", h)
        is_same = f"{name}.skip_connection.weight" not in self.state
        return h + (x if is_same else self.conv(f"{name}.skip_connection", x))

    def attention_block(self, name, x, tokens):
        h = self.group_norm(f"{name}.norm", x).flatten(2).transpose(1, 2)
        text = self.linear(f"{name}.encoder_kv", tokens)
        h = self.attention(self.linear(f"{name}.qkv", h), self.head_width, text)
        return x + self.linear(f"{name}.proj_out", h).transpose(1, 2).reshape(x.shape)
