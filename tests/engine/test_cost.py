import contextlib

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attend

from wfimagevae.engine.cost import count_macs, peak_memory, seconds_per_call, shapes_only


def test_macs_of_a_convolution_are_counted():
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert count_macs(lambda: conv(torch.zeros(2, 3, 8, 8))) == 2 * 8 * 8 * 5 * 3 * 9


@pytest.mark.parametrize("place", [contextlib.nullcontext, shapes_only])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 1, 16, 16, 4, 4), (2, 3, 8, 5, 16, 16), (2, 3, 8, 5, 16, 8)])
def test_macs_of_attention_do_not_depend_on_its_kernel(sizes, dtype, grad, place):
    batch, heads, rows, keys, size, value_size = sizes
    with place(), torch.set_grad_enabled(grad):
        q = torch.zeros(batch, heads, rows, size, dtype=dtype, requires_grad=grad)
        k = torch.zeros(batch, heads, keys, size, dtype=dtype)
        v = torch.zeros(batch, heads, keys, value_size, dtype=dtype)
        mask = torch.zeros(rows, keys, dtype=dtype)
        counts = set()
        for options in ({}, {"attn_mask": mask}, {"is_causal": True}):
            counts.add(count_macs(lambda o=options: attend(q, k, v, **o)))
            with sdpa_kernel(SDPBackend.MATH):
                counts.add(count_macs(lambda o=options: attend(q, k, v, **o)))
    assert counts == {batch * heads * rows * keys * (size + value_size)}


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        ("flash_attention", ()),
        ("flash_attention_for_cpu", ()),
        ("fused_attention_overrideable", ()),
        ("efficient_attention", (None, False)),
        ("cudnn_attention", (None, False)),
    ],
)
def test_attention_by_the_kernels_of_other_devices_is_counted(kernel, arguments):
    q = torch.zeros(2, 3, 16, 8, device="meta")
    kernel = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")
    assert count_macs(lambda: kernel(q, q, q, *arguments)) == 2 * 3 * 16 * 16 * (8 + 8)


def test_timing_repeats_and_memory_is_not_invented():
    calls, cpu = [], torch.device("cpu")
    seconds = seconds_per_call(lambda: calls.append(1), cpu, min_seconds=0.0, warm_up=2)
    assert len(calls) == 5 and seconds >= 0
    assert peak_memory(lambda: torch.zeros(1000), cpu) is None
