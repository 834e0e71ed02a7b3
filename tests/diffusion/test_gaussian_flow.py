"""The closed form that other tests compare with, itself compared with what defines it."""

import torch

from tests.diffusion import gaussian_flow

MEAN, STD = 1.5, 0.4


def test_velocity_is_the_mean_of_data_minus_noise_given_the_state():
    noise, data = torch.randn(2, 2_000_000, dtype=torch.float64)
    data = MEAN + STD * data
    x = 0.7 * noise + 0.3 * data
    # Both are jointly normal with x: the conditional mean is the linear regression on x.
    target = data - noise
    slope = ((x - x.mean()) * target).mean() / x.var()
    points = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    regression = target.mean() + slope * (points - x.mean())
    exact = gaussian_flow.velocity(points, torch.tensor(0.3), MEAN, STD)
    torch.testing.assert_close(exact, regression, rtol=0, atol=0.01)


def test_average_velocity_is_the_velocity_for_no_gap_and_its_integral_for_one():
    x = torch.randn(4, 2, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.4, 1.0], dtype=torch.float64)
    s = torch.tensor([0.1, 0.4, 0.8, 1.0], dtype=torch.float64)
    u = gaussian_flow.average_velocity(x, t, s, MEAN, STD)
    v = gaussian_flow.velocity(x, t, MEAN, STD)
    torch.testing.assert_close(u[[0, 1, 3]], v[[0, 1, 3]])
    times = torch.linspace(0.4, 0.8, 2001, dtype=torch.float64)
    path = gaussian_flow.flow_map(x[2].expand(2001, 2), times * 0 + 0.4, times, MEAN, STD)
    along = gaussian_flow.velocity(path, times, MEAN, STD)
    torch.testing.assert_close(u[2], torch.trapezoid(along, times, dim=0) / 0.4, rtol=0, atol=1e-6)
