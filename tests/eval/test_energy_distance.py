import math

import pytest
import torch

from tests.refusals import refused
from wfimagevae.eval import set_metrics as module
from wfimagevae.eval.set_metrics import energy_distance


def mean_absolute_normal(mean, std):
    """E|N(mean, std^2)|, the folded normal's mean."""
    cdf = 0.5 * (1 + math.erf(mean / std / math.sqrt(2)))
    return std * math.sqrt(2 / math.pi) * math.exp(-0.5 * (mean / std) ** 2) + mean * (2 * cdf - 1)


def test_energy_distance_agrees_with_numbers_by_hand_and_with_the_closed_form():
    x = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    y = torch.tensor([[3.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
    # Between: 3, 5, 5, 5, 3, 3; within x: 4; within y: 4, 4, 0.
    assert energy_distance(x, y) == pytest.approx(2 * 24 / 6 - 4 - 8 / 3, abs=1e-7)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6000, 1, generator=generator)
    y = torch.randn(5000, 1, generator=generator) * 2 + 1.5
    expected = 2 * mean_absolute_normal(1.5, math.sqrt(5))
    expected -= mean_absolute_normal(0, math.sqrt(2)) + mean_absolute_normal(0, math.sqrt(8))
    assert energy_distance(x, y) == pytest.approx(expected, abs=0.05)
    assert expected > 0.5


def test_small_sets_of_one_distribution_have_mean_zero():
    """The biased V-statistic would be (1/5 + 1/4) E|x - x'|, about 1.1, on every draw."""
    generator = torch.Generator().manual_seed(0)
    sets = torch.randn(800, 9, 3, 2, generator=generator)
    draws = torch.tensor([energy_distance(pair[:5], pair[5:]) for pair in sets])
    assert abs(draws.mean()) < 4 * draws.std() / math.sqrt(len(draws))
    assert (draws < 0).any() and draws.std() < 1


def test_chunks_integers_and_a_far_origin_change_nothing(monkeypatch):
    x = torch.randint(0, 256, (23, 3, 4, 4), dtype=torch.uint8)
    y = torch.randint(0, 200, (17, 3, 4, 4), dtype=torch.uint8)
    whole = energy_distance(x.double(), y.double())
    monkeypatch.setattr(module, "_MAX_ROWS", 5)
    assert energy_distance(x, y) == pytest.approx(whole, rel=1e-12)
    x, y = torch.randn(40, 2).double(), torch.randn(30, 2).double() + 1
    assert energy_distance(x + 1e6, y + 1e6) == pytest.approx(energy_distance(x, y), rel=1e-8)


def test_bad_sets_are_refused():
    five = torch.zeros(5, 2)
    refused("needs 2 samples, the first set has 1", energy_distance, five[:1], five)
    refused("the second set has 0", energy_distance, five, five[:0])
    refused(r"\(2,\) and \(3,\)", energy_distance, five, torch.zeros(5, 3))
    refused("second .* not finite", energy_distance, five, five * torch.nan)
