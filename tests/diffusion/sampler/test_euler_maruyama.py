"""The stochastic sampler: the distribution it ends with, and its noise."""

import pytest
import torch

from tests.diffusion import gaussian_flow
from wfimagevae.diffusion.sampler.euler import sample_euler
from wfimagevae.diffusion.sampler.euler_maruyama import sample_euler_maruyama
from wfimagevae.diffusion.timesteps import time_grid

MEAN, STD = 1.5, 0.4
COUNT = 20_000


def flow(x, t):
    return gaussian_flow.velocity(x, t, MEAN, STD)


def normal(step, shape=(COUNT, 1)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(step))


def test_end_has_the_mean_and_deviation_of_the_data():
    end = sample_euler_maruyama(flow, normal(0), time_grid(400), draw=normal)
    # Four standard errors, and a discretisation error of the order of one step.
    assert float(end.mean()) == pytest.approx(MEAN, abs=4 * STD / COUNT**0.5 + 0.004)
    assert float(end.std()) == pytest.approx(STD, abs=4 * STD / (2 * COUNT) ** 0.5 + 0.004)


def test_noise_forgets_where_a_sample_started_and_the_flow_does_not():
    start = normal(0)
    for sampler, low, high in ((sample_euler, 0.999, 1.001), (sample_euler_maruyama, 0.0, 0.9)):
        end = sampler(flow, start, time_grid(200), draw=normal)
        assert low < float(torch.corrcoef(torch.cat([start, end], dim=1).T)[0, 1]) < high


def test_noise_and_drift_are_those_of_public_sit_samples():
    """Its diffusion is 1 - t, its drift v + (1 - t) score, its noise sqrt(2 (1 - t) dt)."""
    x, eps = normal(0, (4, 3)), normal(1, (4, 3))
    end = sample_euler_maruyama(lambda x, t: 0 * x, x, time_grid(2), draw=lambda step: eps)
    # At t = 0 the score is -x; the last step follows the flow, which stands still.
    torch.testing.assert_close(end, x - 0.5 * x + eps)


def test_noise_is_drawn_once_for_each_step_but_the_last():
    drawn = []

    def draw(step):
        drawn.append(step)
        return normal(step, (4, 3))

    sample_euler_maruyama(flow, normal(0, (4, 3)), time_grid(5), draw=draw)
    assert drawn == [1, 2, 3, 4]


def test_single_step_ends_at_the_mean_of_the_data():
    end = sample_euler_maruyama(flow, normal(0, (4, 3)), time_grid(1), draw=normal)
    torch.testing.assert_close(end, torch.full((4, 3), MEAN))


def test_missing_or_shared_noise_is_refused():
    for draw, message in ((None, "needs draw"), (lambda step: normal(step, (1, 3)), r"\(1, 3\)")):
        with pytest.raises(ValueError, match=message):
            sample_euler_maruyama(flow, normal(0, (4, 3)), time_grid(3), draw=draw)
