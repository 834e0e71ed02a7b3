"""What all Gaussian samplers promise: published end points, exact solutions, clear errors."""

import json
import math
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from wfimagevae.diffusion.denoiser import Denoiser, Level, clip_data
from wfimagevae.diffusion.gaussian import GaussianDiffusion
from wfimagevae.diffusion.sampler import GAUSSIAN_SAMPLERS
from wfimagevae.export.source import standalone_source

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gaussian_samplers.json").read_text())
COUNT = 10_000  # stochastic samples
STOCHASTIC = {"ddim": {"eta": 1.0}, "euler_ancestral": {}, "ddpm": {}}


class ExactNoise:
    """The noise expected in a state whose data are a mixture of Gaussians; keeps its times."""

    def __init__(self, schedule="linear", means=(0.2,), stds=(0.3,)):
        self.alpha_bar = GaussianDiffusion(schedule).alpha_bar.numpy()
        self.means, self.stds, self.times = torch.tensor(means), torch.tensor(stds), []

    def __call__(self, x, t):
        assert t.dtype == torch.float64 and t.dim() == 0
        self.times.append(float(t))
        share = float(np.interp(float(t), np.arange(1000), self.alpha_bar))
        ratio = math.sqrt(1 / share - 1)
        y = x.double() / math.sqrt(share)
        return ((y - self.data(y, ratio)) / ratio).to(x)

    def data(self, y, ratio):
        """The mean of the data given ``y = data + ratio eps``."""
        variance, offset = self.stds.double() ** 2 + ratio**2, y[..., None] - self.means.double()
        chance = (-(offset**2) / variance / 2 - variance.log() / 2).softmax(-1)
        return (chance * (self.means + self.stds**2 / variance * offset)).sum(-1)

    def solve(self, x, first, last):
        """Where the probability-flow ODE takes states from one level to another, by scipy."""

        def slope(log_ratio, y):
            return y - self.data(torch.from_numpy(y), math.exp(log_ratio)).numpy()

        ends = math.log(first.ratio), math.log(last.ratio)
        y = (x / first.alpha).flatten().numpy()
        path = solve_ivp(slope, ends, y, method="DOP853", rtol=1e-9, atol=1e-9)
        return last.alpha * torch.from_numpy(path.y[:, -1]).view_as(x)


def noise(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def draw_like(x):
    return lambda step: noise(*x.shape, seed=100 + step)


def sample(name, x, spacing, model=None, schedule="linear", **options):
    grid, model = GaussianDiffusion(schedule).grid(spacing), model or ExactNoise(schedule)
    return GAUSSIAN_SAMPLERS[name](model, x, grid, **{"draw": draw_like(x)} | options)


@pytest.mark.parametrize("spacing", GOLDEN["spacings"])
@pytest.mark.parametrize("name", ["ddim", "plms"])
def test_samples_end_where_the_public_code_ends(name, spacing):
    end = sample(name, torch.linspace(-2.5, 2.5, 8)[:, None], spacing)
    expected = torch.tensor(GOLDEN["spacings"][spacing][name])
    torch.testing.assert_close(end[:, 0], expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("sigma_euler", 1), ("dpmpp_2m", 2), ("plms", None)]
)
@pytest.mark.parametrize(
    "data", [{}, {"means": (-0.6, 0.1, 0.7), "stds": (0.3, 0.4, 0.3)}], ids=["one", "mixture"]
)
def test_sampler_converges_to_the_exact_solution_at_its_order(name, order, schedule, data):
    """From the noisiest level to timestep 0, whose noise the last step takes away at once."""
    model, x = ExactNoise(schedule, **data), torch.linspace(-2.5, 2.5, 21, dtype=torch.float64)
    errors = []
    for spacing in (50, 100, 200):
        grid = GaussianDiffusion(schedule).grid(spacing)
        # PLMS takes the noise for that of the second level, and leaves that of timestep 0.
        exact = model.solve(x, grid[1 if name == "plms" else 0], grid[-2])
        if name != "plms":
            exact = model.data(exact / grid[-2].alpha, grid[-2].ratio)
        end = sample(name, x[:, None], spacing, model, schedule, clip="none")[:, 0]
        errors.append(float((end - exact).square().mean().sqrt()))
    if order is None:  # of fourth order but for its ends, which are coarse
        assert errors[-1] < 5e-4
    else:
        assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(order, abs=0.15)
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def stepwise(scheduler, model, x, grid, monkeypatch=None):
    """Samples by a scheduler of diffusers that is given our levels and noise."""
    draw, count = draw_like(x), iter(range(1, len(grid)))
    if monkeypatch:
        module = import_module(type(scheduler).__module__)
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: draw(next(count)))
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, t), t.double())
        x = scheduler.step(output, t, x).prev_sample
    return x


def with_levels(scheduler, grid):
    scheduler.set_timesteps(len(grid) - 1)
    scheduler.timesteps = torch.tensor([level.t for level in grid[:-1]])
    scheduler.sigmas = torch.tensor([level.ratio for level in grid], dtype=torch.float64)
    return scheduler


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("spacing", ["2", "3", "10", "fast27"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sigma_euler", "EulerDiscreteScheduler"),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler"),
        ("dpmpp_2m", "DPMSolverMultistepScheduler"),
    ],
)
def test_samplers_in_sigma_agree_with_diffusers(name, kind, spacing, monkeypatch):
    import diffusers

    options = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    if name == "dpmpp_2m":
        options |= {"final_sigmas_type": "zero", "lower_order_final": False}
    grid, x = GaussianDiffusion("linear").grid(spacing), noise(5, 3)
    scheduler = with_levels(getattr(diffusers, kind)(**options), grid)
    stochastic = monkeypatch if name == "euler_ancestral" else None
    start = x if name == "dpmpp_2m" else x * grid[0].ratio  # noise in y = x / alpha
    expected = stepwise(scheduler, ExactNoise(), start, grid, stochastic)
    # Some of its states are float32.
    end = sample(name, x, spacing, clip="none")
    torch.testing.assert_close(end, expected.double(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_agrees_with_diffusers(eta):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02)
    scheduler.alphas_cumprod = GaussianDiffusion("linear").alpha_bar
    scheduler.set_timesteps(25)
    grid, x = GaussianDiffusion("linear").grid("ddim25"), noise(5, 3)
    y, draw = x, draw_like(x)
    for step, level in enumerate(grid[:-1], 1):
        eps = ExactNoise()(y, torch.tensor(level.t, dtype=torch.float64))
        noises = {"variance_noise": draw(step) if level.t else 0 * y} if eta else {}
        options = {"eta": eta, "use_clipped_model_output": True} | noises
        y = scheduler.step(eps, int(level.t), y, **options).prev_sample
    torch.testing.assert_close(sample("ddim", x, "ddim25", eta=eta), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("learned", [False, True])
def test_ddpm_agrees_with_diffusers(learned, monkeypatch):
    from diffusers import DDPMScheduler

    kind = "learned_range" if learned else "fixed_small"
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type=kind)
    scheduler.alphas_cumprod = GaussianDiffusion("linear").alpha_bar
    grid, x = GaussianDiffusion("linear").grid("10,10,3,2,2"), noise(5, 3)
    scheduler.set_timesteps(timesteps=[int(level.t) for level in grid[:-1]])

    def model(x, t):
        return torch.cat([ExactNoise()(x, t), torch.sin(3 * x)][: 1 + learned], dim=1)

    expected = stepwise(scheduler, model, x, grid, monkeypatch)
    end = sample("ddpm", x, "10,10,3,2,2", model)
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_stochastic_samples_have_the_mean_and_deviation_of_the_data(name, schedule):
    x = noise(COUNT, 1)
    end = sample(name, x, 500, schedule=schedule, clip="none", **STOCHASTIC[name])
    # Four standard errors, and a discretisation error of the order of one step.
    assert float(end.mean()) == pytest.approx(0.2, abs=4 * 0.3 / COUNT**0.5 + 0.003)
    assert float(end.std()) == pytest.approx(0.3, abs=4 * 0.3 / (2 * COUNT) ** 0.5 + 0.003)
    assert abs(float(torch.corrcoef(torch.cat([x, end], dim=1).T)[0, 1])) < 0.05


def test_learned_variances_make_ten_ancestral_steps_exact():
    """A Gaussian's states are Gaussian given the next: of the posterior's and the data's spread."""
    grid = GaussianDiffusion("linear").grid(10)
    after = dict(zip([level.t for level in grid], grid[1:], strict=False))

    def model(x, t):
        now, then = next(level for level in grid if level.t == float(t)), after[float(t)]
        beta, unknown = 1 - now.alpha_bar / then.alpha_bar, 1 - now.alpha_bar
        low = beta * (1 - then.alpha_bar) / unknown
        of_data = 0.3**2 * unknown / (0.3**2 * now.alpha_bar + unknown)
        variance = low + then.alpha_bar * (beta / unknown) ** 2 * of_data
        share = math.log(variance / low) / math.log(beta / low) if low else 0
        assert 0 <= share <= 1
        return torch.cat([ExactNoise()(x, t), torch.full_like(x, 2 * share - 1)], dim=1)

    deviations = [
        float(sample("ddpm", noise(COUNT, 1), 10, m, clip="none").std()) for m in (model, None)
    ]
    assert deviations[0] == pytest.approx(0.3, abs=4 * 0.3 / (2 * COUNT) ** 0.5)
    assert deviations[1] < 0.27


@pytest.mark.parametrize("name", GAUSSIAN_SAMPLERS)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_samples_are_finite_in_any_number_of_steps(name, schedule):
    settings = STOCHASTIC.get(name, {})
    for spacing in (2, 3, 6, 8, 9, 50, 1000):
        if name != "plms" or spacing > 2:
            x = noise(4, 3, 2, dtype=torch.float32)
            end = sample(name, x, spacing, schedule=schedule, **settings)
            assert end.dtype == torch.float32 and end.isfinite().all()
            assert name == "plms" or end.abs().max() < 1.01  # its slopes extrapolate


@pytest.mark.parametrize("name", GAUSSIAN_SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_evaluations_are_as_advertised_and_at_the_timesteps(name, num_steps):
    if name == "plms" and num_steps < 3:
        with pytest.raises(ValueError, match=f"at least 3 steps, got {num_steps}"):
            sample(name, noise(2, 3), num_steps)
        return
    model, grid = ExactNoise(), GaussianDiffusion("linear").grid(num_steps)
    sample(name, noise(2, 3), num_steps, model)
    if name == "plms":
        assert len(model.times) == {3: 4, 10: 17}[num_steps]
        first, second = grid[1].t, grid[2].t
        middle = (first + second) / 2
        assert model.times[:4] == [first, middle, middle, second]
    else:
        assert GAUSSIAN_SAMPLERS[name].evaluations == 1
        assert model.times == [level.t for level in grid[:-1]]


@pytest.mark.parametrize("name", GAUSSIAN_SAMPLERS)
def test_progress_is_told_of_each_step_and_of_the_result(name):
    calls, x = [], noise(2, 3)
    end = sample(name, x, 6, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(step, 6) for step in range(1, 7)]
    assert torch.equal(calls[-1][2], end) and torch.equal(end, sample(name, x, 6))
    assert not torch.equal(calls[1][2], calls[2][2])


@pytest.mark.parametrize("name", GAUSSIAN_SAMPLERS)
def test_a_sample_does_not_depend_on_the_others_of_its_batch(name):
    x = noise(3, 2, 4, 4, dtype=torch.float32)
    for clip in ("static", "none", "dynamic"):
        options = STOCHASTIC.get(name, {}) | {"clip": clip, "schedule": "squaredcos_cap_v2"}
        model = ExactNoise("squaredcos_cap_v2", means=(0.5,), stds=(0.9,))
        drawn = [draw_like(x)(step) for step in range(12)]
        both = sample(name, x, 10, model, **options, draw=lambda step, d=drawn: d[step])
        one = sample(name, x[1:2], 10, model, **options, draw=lambda step, d=drawn: d[step][1:2])
        torch.testing.assert_close(both[1:2], one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", GAUSSIAN_SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_state_is_float32_or_more_whatever_the_model_returns(name, dtype):
    seen, kept = set(), torch.promote_types(dtype, torch.float32)

    def model(x, t):
        seen.add(x.dtype)
        return ExactNoise()(x, t).to(dtype)

    assert sample(name, noise(2, 3, dtype=dtype), 4, model).dtype == kept
    assert seen == {kept}


@pytest.mark.parametrize("name", GAUSSIAN_SAMPLERS)
def test_a_network_may_predict_noise_data_or_v_and_variances_too(name):
    diffusion, x = GaussianDiffusion("linear"), noise(2, 3)

    def predict(prediction):
        def model(x, t):
            share = float(np.interp(float(t), np.arange(1000), diffusion.alpha_bar))
            alpha, sigma = math.sqrt(share), math.sqrt(1 - share)
            eps = ExactNoise()(x, t)
            data = (x - sigma * eps) / alpha
            output = {"epsilon": eps, "data": data, "v": alpha * eps - sigma * data}[prediction]
            return torch.cat([output, torch.full_like(x, -1)], dim=1)  # the posterior's variance

        return model

    # Half steps take alpha_bar on the line between levels, the toy takes it at the timestep.
    spacing = 4 if name != "plms" else 1000
    plain = sample(name, x, spacing)
    for prediction in ("epsilon", "data", "v"):
        end = sample(name, x, spacing, predict(prediction), prediction=prediction)
        torch.testing.assert_close(end, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_is_asked_for_in_each_step_but_the_last_and_must_be_each_samples_own(name):
    drawn, x, settings = [], noise(2, 3), STOCHASTIC[name]

    def draw(step):
        drawn.append(step)
        return noise(2, 3, seed=step)

    sample(name, x, 5, draw=draw, **settings)
    assert drawn == [1, 2, 3, 4]
    for draw, message in ((None, "needs draw"), (lambda step: noise(1, 3), r"gave \(1, 3\)")):
        with pytest.raises(ValueError, match=message):
            sample(name, x, 5, draw=draw, **settings)


def test_deterministic_samplers_need_no_noise():
    for name in GAUSSIAN_SAMPLERS.keys() - {"euler_ancestral", "ddpm"}:
        sample(name, noise(2, 3), 5, draw=None)


def test_clipping_keeps_data_in_range_by_cutting_or_by_shrinking():
    data = torch.cat([3 * noise(1, 3, 20, 20), 0.2 * noise(1, 3, 20, 20)])
    static, dynamic = clip_data(data, "static"), clip_data(data, "dynamic")
    torch.testing.assert_close(static, data.clamp(-1, 1))
    assert dynamic.abs().max() == 1
    assert torch.equal(dynamic[1], data[1])  # in range already
    # The largest half a percent is cut off, the rest keeps its proportions.
    share = float((dynamic[0].abs() == 1).double().mean())
    assert share == pytest.approx(0.005, abs=0.001)
    inside = dynamic[0].abs() < 1
    ratio = (dynamic[0] / data[0])[inside]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    bound = np.quantile(data[0].abs().numpy(), 0.995)
    assert float(ratio[0]) == pytest.approx(1 / bound)


@pytest.mark.parametrize("clip", ["static", "dynamic", "none"])
def test_clipped_data_and_noise_still_add_up_to_the_state(clip):
    x, level = 2 * noise(2, 3, 8, 8), Level(500.0, 0.3)
    data, eps, spread = Denoiser(lambda x, t: 0.1 * x, clip=clip)(x, level)
    torch.testing.assert_close(level.alpha * data + level.sigma * eps, x)
    assert spread is None and (data.abs().max() <= 1) == (clip != "none")
    assert torch.equal(eps, 0.1 * x) == (clip == "none")


@pytest.mark.parametrize("name", GAUSSIAN_SAMPLERS)
def test_wrong_inputs_are_refused(name):
    x, level = noise(2, 3), Level(5.0, 0.5)
    for grid in ([], [level], [level, level, Level(-1, 1)], [level, Level(1, 0.9)]):
        with pytest.raises(ValueError, match="alpha_bar must increase"):
            GAUSSIAN_SAMPLERS[name](ExactNoise(), x, grid, draw=draw_like(x))
    with pytest.raises(ValueError, match="alpha_bar must increase"):
        GAUSSIAN_SAMPLERS[name](ExactNoise(), x, [Level(5.0, math.nan), Level(-1.0, 1.0)])
    for model in (lambda x, t: x[:, :1], lambda x, t: x[:1], lambda x, t: torch.cat([x] * 3, 1)):
        with pytest.raises(ValueError, match=r"the epsilon of \(2, 3\) has"):
            sample(name, x, 4, model)
    with pytest.raises(ValueError, match="unknown clipping 'soft'; use static"):
        sample(name, x, 4, clip="soft")
    with pytest.raises(ValueError, match="unknown prediction 'x0'; use epsilon"):
        sample(name, x, 4, prediction="x0")


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan])
def test_impossible_shares_of_noise_are_refused(eta):
    with pytest.raises(ValueError, match="eta of ddim must be from 0 to 1"):
        sample("ddim", noise(2, 3), 4, eta=eta)


class Exported:
    """A class whose source, without its packages, must still find the samplers."""

    def draw(self, name, x):
        levels = GaussianDiffusion("linear").grid(6)
        return GAUSSIAN_SAMPLERS[name](lambda x, t: x / 3, x, levels, draw=lambda step: -x)


def test_samplers_can_be_copied_into_an_export(monkeypatch):
    code, x = standalone_source(Exported), noise(2, 3)
    assert "import wfimagevae" not in code and "from wfimagevae" not in code
    module = ModuleType("gaussian_export")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look
    exec(code, vars(module))
    for name in GAUSSIAN_SAMPLERS:
        assert torch.equal(module.Exported().draw(name, x), Exported().draw(name, x))
