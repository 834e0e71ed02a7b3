"""Noise that belongs to samples, and global generators that come back."""

import random

import numpy as np
import pytest
import torch

from wfimagevae.engine.seeding import (
    batched_noise,
    random_state,
    sample_noise,
    sample_uniforms,
    seed_everything,
    set_random_state,
    stable_hash,
)

CPU = torch.device("cpu")


def one_call(seed, positions, shape, device):
    """As CUDA draws."""
    return batched_noise(seed, positions, torch.empty(len(positions), *shape, device=device))


has_philox = hasattr(torch.ops.aten, "_philox_normal_")
in_both_ways = pytest.mark.parametrize(
    "draw",
    [
        sample_noise,
        pytest.param(one_call, marks=pytest.mark.skipif(not has_philox, reason="older PyTorch")),
    ],
)


@in_both_ways
def test_noise_follows_the_sample_not_the_batch(draw):
    whole = draw(1, [5, 6, 7], (4, 3, 3), CPU)
    parts = [draw(1, positions, (4, 3, 3), CPU) for positions in ([5], [6, 7])]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole[0], draw(2, [5], (4, 3, 3), CPU)[0])


@in_both_ways
def test_no_two_samples_share_noise(draw):
    """Plain hashes of these pairs agree in the 32 bits that the CPU's generator reads."""
    for pair in ([41538, 54211], [40520, 121377], [53198, 149067]):
        first, second = draw(1234, pair, (4,), CPU)
        assert not torch.equal(first, second)
    noise = draw(1234, list(range(100_000)), (2,), CPU)
    assert len(noise.unique(dim=0)) == 100_000
    far = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40]
    assert len(draw(1234, far, (2,), CPU).unique(dim=0)) == len(far)


@in_both_ways
def test_noise_is_standard_normal_and_independent(draw):
    noise = draw(0, list(range(64)), (8, 16, 16), CPU)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise**4).mean() - 3) < 0.1
    rows = noise.flatten(1)
    correlation = (rows @ rows.T / rows.shape[1]).fill_diagonal_(0)
    assert correlation.abs().max() < 0.15


@in_both_ways
def test_noise_leaves_the_global_generator_alone(draw):
    seed_everything(3)
    want = torch.rand(2)
    seed_everything(3)
    draw(0, [1], (2,), CPU)
    assert torch.equal(torch.rand(2), want)


def test_hash_is_the_same_on_every_machine():
    assert stable_hash("noise", 1234, 5) == stable_hash("noise", 1234, 5)
    assert stable_hash(1, 2) == 9113720037722924775


def test_random_state_survives_a_file(tmp_path):
    seed_everything(0)
    torch.save(random_state(), tmp_path / "rng.pt")
    want = (torch.rand(3).tolist(), random.random(), np.random.rand())
    set_random_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == want


def test_uniforms_follow_the_sample_and_the_purpose():
    whole = sample_uniforms(3, "time", list(range(4000)))
    assert torch.equal(whole[17:19], sample_uniforms(3, "time", [17, 18]))
    other = sample_uniforms(3, "drop", list(range(4000)))
    assert whole.min() > 0 and whole.max() < 1
    assert len(whole.unique()) == 4000
    assert abs(whole.mean() - 0.5) < 4 / (12 * 4000) ** 0.5
    assert abs(torch.corrcoef(torch.stack([whole, other]))[0, 1]) < 4 / 4000**0.5
