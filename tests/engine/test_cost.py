import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention as attend

from wfimagevae.engine.cost import HeldBytes, count_macs, seconds_per_call


def test_macs_of_a_convolution_are_counted():
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert count_macs(conv, torch.zeros(2, 3, 8, 8)) == 2 * 8 * 8 * 5 * 3 * 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 1, 16, 16, 4, 4), (2, 3, 8, 5, 16, 16), (2, 3, 8, 5, 16, 8)])
def test_macs_of_attention_are_those_of_its_two_products(sizes, dtype):
    batch, heads, rows, keys, size, value_size = sizes
    q = torch.zeros(batch, heads, rows, size, dtype=dtype)
    k = torch.zeros(batch, heads, keys, size, dtype=dtype)
    v = torch.zeros(batch, heads, keys, value_size, dtype=dtype)
    mask = torch.zeros(rows, keys, dtype=dtype)
    for options in ({}, {"attn_mask": mask}, {"is_causal": True}):
        macs = count_macs(lambda o=options: attend(q, k, v, **o))
        assert macs == batch * heads * rows * keys * (size + value_size)


def test_timing_repeats():
    calls, cpu = [], torch.device("cpu")
    seconds = seconds_per_call(lambda: calls.append(1), cpu, min_seconds=0.0, warm_up=2)
    assert len(calls) == 5 and seconds >= 0


def test_held_bytes_are_of_new_memory_once():
    weight, x = torch.ones(1000, requires_grad=True), torch.ones(1000)
    with HeldBytes() as held:
        y = weight * x  # kept by the next line's graph, in which it stands thrice
        loss = (y * y + y.view(10, 100).square().flatten()).sum()
        del y
    # The product and the sum, after three terms at once; what was there before does not count.
    assert (held.now, held.most) == (4000 + 4, 4 * 4000)
    loss.backward()
    del loss
    assert held.now == 0
    with HeldBytes() as held:
        x.view(10, 100).mul_(2)
    assert held.most == 0
    with FakeTensorMode(), HeldBytes() as held:
        torch.empty(2**40).neg()
    assert (held.now, held.most) == (0, 8 * 2**40)


def test_memory_that_takes_the_place_of_freed_memory_counts():
    """Tensors from before that die inside leave their addresses to new ones."""
    old = [torch.zeros(1000) for _ in range(50)]
    with HeldBytes() as held:
        for tensor in old:
            tensor.add_(1)
        del tensor
        old.clear()
        new = [torch.zeros(1000) for _ in range(50)]
    assert held.now == held.most == 4000 * len(new)
