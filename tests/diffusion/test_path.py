import pytest
import torch

from wfimagevae.diffusion.path import shift_times, time_grid


def test_grid_has_exact_ends_and_equal_steps():
    grid = time_grid(7)
    assert (grid[0].item(), grid[-1].item(), len(grid)) == (0.0, 1.0, 8)
    torch.testing.assert_close(grid.diff(), torch.full((7,), 1 / 7, dtype=torch.float64))


def test_shift_follows_the_published_formula_for_noise_levels():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    sigma = 1 - t
    published = 3 * sigma / (1 + 2 * sigma)  # equation 23, sqrt(m / n) = 3
    torch.testing.assert_close(1 - shift_times(t, 3.0), published)
    grid = time_grid(4, shift=3.0)
    assert (grid[0].item(), grid[-1].item()) == (0.0, 1.0)
    assert grid[1] < 0.25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: time_grid(0), "at least 1 step, got 0"),
        (lambda: time_grid(-3), "at least 1 step, got -3"),
        (lambda: time_grid(3, 0.0), "shift must be above 0"),
        (lambda: time_grid(3, -1.0), "shift must be above 0"),
        (lambda: time_grid(3, float("nan")), "shift must be above 0"),
    ],
)
def test_wrong_times_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
