"""Schedules, targets, weights, the variational bound and spacings of Gaussian diffusion."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from wfimagevae.diffusion.gaussian import GaussianDiffusion, discrete_log_likelihood

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gaussian_samplers.json").read_text())
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def batch(t, seed=0, dtype=torch.float64):
    """Data of 8 bits, noise and timesteps."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(t), 3, 4, 4)
    data = torch.randint(0, 256, shape, generator=generator).to(dtype) / 127.5 - 1
    noise = torch.randn(shape, generator=generator, dtype=dtype)
    return data, noise, torch.tensor(t)


@pytest.mark.parametrize(
    ("name", "table"),
    [("beta", "betas"), ("alpha_bar", "alpha_bar")]
    + [("posterior_log_variance", "posterior_log_variance")],
)
def test_linear_schedule_has_the_published_values(name, table):
    values = getattr(GaussianDiffusion("linear"), table)
    assert values.dtype == torch.float64 and values.shape == (1000,)
    for t, expected in GOLDEN[name].items():
        assert float(values[int(t)]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_agree_with_diffusers(schedule):
    from diffusers import DDPMScheduler

    ends = (0.00085, 0.012) if schedule == "scaled_linear" else (0.0001, 0.02)
    other = DDPMScheduler(beta_schedule=schedule, beta_start=ends[0], beta_end=ends[1])
    ours = GaussianDiffusion(schedule)
    # Its tables are float32.
    torch.testing.assert_close(ours.betas.float(), other.betas, rtol=2e-3, atol=1e-7)
    torch.testing.assert_close(ours.alpha_bar.float(), other.alphas_cumprod, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [20, 100, 4000])
def test_a_schedule_means_the_same_noise_in_any_number_of_steps(schedule, num_steps):
    one, other = GaussianDiffusion(schedule), GaussianDiffusion(schedule, num_steps)
    middle = [float(d.alpha_bar[d.num_steps // 2 - 1].log()) for d in (one, other)]
    assert middle[0] == pytest.approx(middle[1], rel=4 / min(num_steps, 70))
    assert (other.betas > 0).all() and (other.betas < 1).all()
    assert other.posterior_log_variance.isfinite().all()


def test_noise_is_added_in_the_shares_that_the_schedule_says_to_each_sample():
    diffusion = GaussianDiffusion("squaredcos_cap_v2")
    data, noise, t = batch([0, 500, 999])
    x_t = diffusion.add_noise(data, noise, t)
    for row, step in enumerate(t.tolist()):
        share = float(diffusion.alpha_bar[step])
        expected = math.sqrt(share) * data[row] + math.sqrt(1 - share) * noise[row]
        torch.testing.assert_close(x_t[row], expected)
    assert diffusion.add_noise(data.float(), noise.float(), t).dtype == torch.float32
    with pytest.raises(ValueError, match=r"t must have shape \(3,\), got \(1,\)"):
        diffusion.add_noise(data, noise, t[:1])


@pytest.mark.parametrize("prediction", ["epsilon", "data", "v"])
def test_each_target_gives_back_data_and_noise(prediction):
    diffusion = GaussianDiffusion("linear")
    data, noise, t = batch([0, 3, 250, 600, 990])
    target = diffusion.target(prediction, data, noise, t)
    found = diffusion.recover(prediction, target, diffusion.add_noise(data, noise, t), t)
    torch.testing.assert_close(found, (data, noise), rtol=0, atol=1e-9)


def test_v_is_the_derivative_of_the_state_in_the_angle():
    # x = cos(angle) data + sin(angle) noise, so dx / d angle = cos(angle) noise - sin(angle) data.
    diffusion = GaussianDiffusion("linear")
    data, noise, t = batch([400])
    angle = torch.acos(diffusion.alpha_bar[400].sqrt())
    state = lambda a: torch.cos(a) * data + torch.sin(a) * noise  # noqa: E731
    slope = (state(angle + 1e-6) - state(angle - 1e-6)) / 2e-6
    torch.testing.assert_close(diffusion.target("v", data, noise, t), slope, rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="unknown prediction 'x0'"):
        diffusion.recover("x0", data, data, t)


@pytest.mark.parametrize("prediction", ["epsilon", "data", "v"])
def test_min_snr_weights_are_one_loss_whatever_is_predicted(prediction):
    """In terms of the data's error, min(SNR, 5); diffusers' training scripts divide likewise."""
    diffusion = GaussianDiffusion("linear")
    data, noise, t = batch([0, 100, 250, 400, 700, 999])
    x_t = diffusion.add_noise(data, noise, t)
    target = diffusion.target(prediction, data, noise, t)
    wrong = target + 0.1
    data_error = (diffusion.recover(prediction, wrong, x_t, t)[0] - data).square()
    snr = diffusion.alpha_bar[t] / (1 - diffusion.alpha_bar[t])
    assert (snr < 5).any() and (snr > 5).any()
    weights = diffusion.min_snr_weights(prediction, t)
    assert weights.dtype == torch.float32 and weights.shape == t.shape
    mean = lambda error: error.flatten(1).mean(1)  # noqa: E731
    found = weights * mean((wrong - target).square())
    torch.testing.assert_close(found, snr.clamp_max(5) * mean(data_error), rtol=1e-5, atol=0)
    assert (diffusion.min_snr_weights("epsilon", t, gamma=1e9) == 1).all()


def bound_by_distributions(diffusion, output, data, noise, t):
    """Nats of each value of one sample, from the posterior's textbook mean and variance."""
    beta, share = float(diffusion.betas[t]), float(diffusion.alpha_bar[t])
    before = float(diffusion.alpha_bar[t - 1]) if t else 1.0
    x_t = math.sqrt(share) * data + math.sqrt(1 - share) * noise
    eps, v = output.chunk(2)
    guess = (x_t - math.sqrt(1 - share) * eps) / math.sqrt(share)

    def mean(data):
        kept = math.sqrt(before) * beta * data + math.sqrt(1 - beta) * (1 - before) * x_t
        return kept / (1 - share)

    variance = lambda beta, before, share: beta * (1 - before) / (1 - share)  # noqa: E731
    tables = [table.tolist() for table in (diffusion.betas, diffusion.alpha_bar)]
    low = variance(tables[0][max(t, 1)], tables[1][max(t, 1) - 1], tables[1][max(t, 1)])
    model = Normal(mean(guess), (beta ** ((v + 1) / 2) * low ** ((1 - v) / 2)).sqrt())
    if t:
        return kl_divergence(Normal(mean(data), math.sqrt(low)), model)
    edge = torch.tensor(math.inf)
    upper = model.cdf(torch.where(data > 0.999, edge, data + 1 / 255))
    lower = model.cdf(torch.where(data < -0.999, -edge, data - 1 / 255))
    return -(upper - lower).clamp_min(1e-12).log()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_variational_bound_agrees_with_closed_forms_between_gaussians(schedule):
    diffusion = GaussianDiffusion(schedule)
    data, noise, t = batch([0, 0, 1, 2, 50, 500, 999])
    data[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])  # the ends of 8 bits reach to infinity
    generator = torch.Generator().manual_seed(3)
    spread = torch.rand(data.shape, generator=generator, dtype=torch.float64) * 2 - 1
    error = 0.2 * torch.randn(data.shape, generator=generator, dtype=torch.float64)
    output = torch.cat([noise + error, spread], dim=1)
    found = diffusion.variational_bound(output, data, noise, t)
    for row, step in enumerate(t.tolist()):
        nats = bound_by_distributions(diffusion, output[row], data[row], noise[row], step).mean()
        assert float(found[row]) == pytest.approx(float(nats) / math.log(2), rel=2e-3, abs=1e-6)


def test_the_bound_is_zero_for_the_true_posterior_and_moves_variances_alone():
    diffusion = GaussianDiffusion("squaredcos_cap_v2")
    data, noise, t = batch([1, 400, 998], dtype=torch.float32)
    eps, spread = noise.clone().requires_grad_(), torch.full_like(data, -1).requires_grad_()
    exact = diffusion.variational_bound(torch.cat([eps, spread], dim=1), data, noise, t)
    torch.testing.assert_close(exact, torch.zeros(3), rtol=0, atol=1e-6)
    wrong = diffusion.variational_bound(torch.cat([eps + 0.3, spread], dim=1), data, noise, t)
    assert (wrong > exact).all()
    wrong.sum().backward()
    assert not eps.grad.any() and spread.grad.flatten(1).any(1).all()


def test_the_bound_of_v_is_that_of_the_epsilon_it_means():
    diffusion = GaussianDiffusion("linear")
    data, noise, t = batch([0, 30, 700])
    x_t = diffusion.add_noise(data, noise, t)
    v = diffusion.target("v", data, noise, t) + 0.1
    eps = diffusion.recover("v", v, x_t, t)[1]
    spread = torch.zeros_like(data)
    bounds = [
        diffusion.variational_bound(torch.cat([guess, spread], dim=1), data, noise, t, prediction)
        for guess, prediction in ((v, "v"), (eps, "epsilon"))
    ]
    torch.testing.assert_close(*bounds, rtol=1e-4, atol=1e-6)


def test_probabilities_of_the_256_values_sum_to_one():
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, deviation in ((0.1, 0.3), (-1.2, 0.5), (0.5, 0.01)):
        scale = torch.tensor(2 * math.log(deviation), dtype=torch.float64)
        chances = discrete_log_likelihood(values, torch.full_like(values, mean), scale).exp()
        assert float(chances.sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("spacing", GOLDEN["spacings"])
def test_spacings_are_those_of_the_public_code(spacing):
    grid = GaussianDiffusion("linear").grid(spacing)
    assert [level.t for level in grid] == [*GOLDEN["spacings"][spacing]["timesteps"][::-1], -1]
    assert grid[-1].alpha_bar == 1
    if spacing.isdecimal():
        assert GaussianDiffusion("linear").grid(int(spacing)) == grid


def test_levels_carry_the_shares_of_their_timesteps_in_float64():
    diffusion = GaussianDiffusion("squaredcos_cap_v2")
    for level in diffusion.grid(9)[:-1]:
        assert level.alpha_bar == float(diffusion.alpha_bar[int(level.t)])
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-15)
        assert level.ratio == level.sigma / level.alpha
    assert [level.t for level in diffusion.grid(1)] == [999, -1]
    assert [level.t for level in diffusion.grid("2, 1")] == [500, 499, 0, -1]
    assert [level.t for level in diffusion.grid(1000)] == list(range(999, -2, -1))


@pytest.mark.parametrize(
    ("call", "message"),
    [(lambda s=s: GaussianDiffusion("linear").grid(s), "bad spacing") for s in (0, -3, "", "a,2")]
    + [(lambda s=s: GaussianDiffusion("linear").grid(s), "bad spacing") for s in ("ddim", "5,,5")]
    + [(lambda s=s: GaussianDiffusion("linear").grid(s), "cannot take") for s in (1001, "501,1")]
    + [(lambda: GaussianDiffusion("linear").grid("ddim999"), "no whole stride takes 999 steps")]
    + [(lambda: GaussianDiffusion("cosine"), "unknown noise schedule 'cosine'; use one of linear")]
    + [(lambda: GaussianDiffusion("linear", 1), "at least 2 timesteps, got 1")],
)
def test_wrong_schedules_and_spacings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
