"""What all Gaussian samplers promise: published end points, exact solutions, clear errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from wfimagevae.diffusion.gaussian import GaussianDiffusion
from wfimagevae.diffusion.sampler import GAUSSIAN_SAMPLERS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gaussian_samplers.json").read_text())


class ExactNoise:
    """The noise expected in a state whose data are N(mean, std^2); counts its calls."""

    def __init__(self, schedule="linear", mean=0.2, std=0.3):
        self.alpha_bar = GaussianDiffusion(schedule).alpha_bar.numpy()
        self.mean, self.std, self.times = mean, std, []

    def __call__(self, x, t):
        assert t.dtype == torch.float64 and t.dim() == 0
        self.times.append(float(t))
        share = np.interp(float(t), np.arange(1000), self.alpha_bar)
        offset = x - self.mean * share**0.5
        return (1 - share) ** 0.5 * offset / (self.std**2 * share + 1 - share)


@pytest.mark.parametrize("spacing", GOLDEN["spacings"])
@pytest.mark.parametrize("name", ["ddim"])
def test_samples_end_where_the_public_code_ends(name, spacing):
    x = torch.linspace(-2.5, 2.5, 8)[:, None]
    end = GAUSSIAN_SAMPLERS[name](ExactNoise(), x, GaussianDiffusion("linear").grid(spacing))
    expected = torch.tensor(GOLDEN["spacings"][spacing][name])
    torch.testing.assert_close(end[:, 0], expected, rtol=0, atol=5e-6)
