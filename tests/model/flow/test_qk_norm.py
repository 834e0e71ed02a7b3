"""Queries and keys that are normalised: their weights' scale is no matter, logits have a bound."""

import math

import pytest
import torch

from tests.model.flow.models import inputs_for, small_model
from wfimagevae.model.flow.transformer_blocks import Attention


def scale_queries_and_keys(attention, factor):
    width = attention.qkv.in_features
    with torch.no_grad():
        attention.qkv.weight[: 2 * width] *= factor
        attention.qkv.bias[: 2 * width] *= factor


@pytest.mark.parametrize(("name", "is_normed"), [("FlowDiT-S/2", True), ("DiT-S/2", False)])
def test_the_scale_of_queries_and_keys_matters_without_qk_norm_only(name, is_normed):
    model = small_model(name).eval()
    inputs = inputs_for(model)
    before = model(*inputs)
    for block in model.blocks:
        scale_queries_and_keys(block.attn, 8.0)
    assert torch.allclose(model(*inputs), before, rtol=1e-3, atol=1e-4) == is_normed


@pytest.mark.parametrize("qk_norm", [True, False])
def test_attention_logits_are_bounded_by_the_root_of_the_heads_width(qk_norm):
    attention = Attention(width=32, num_heads=4, qk_norm=qk_norm)
    scale_queries_and_keys(attention, 100.0)
    q, k, _ = attention.project(torch.randn(2, 16, 32))
    # Vectors of d values whose root mean square is 1 have length sqrt(d).
    logits = q @ k.transpose(2, 3) / math.sqrt(8)
    assert (logits.abs().max() <= math.sqrt(8) * (1 + 1e-5)) == qk_norm
