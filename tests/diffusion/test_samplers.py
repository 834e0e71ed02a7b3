"""What all samplers promise: the exact flow, its order, its evaluations, and clear errors."""

import math

import pytest
import torch

from tests.diffusion import gaussian_flow
from wfimagevae.diffusion.path import time_grid
from wfimagevae.diffusion.sampler import SAMPLERS

MEAN, STD = 1.5, 0.4
COUNT = 20_000  # stochastic samples
FIXED = ["euler", "heun", "rk4", "dpmpp", "euler_maruyama", "mean_flow"]


class Flow:
    """The exact velocity, which counts its calls and keeps their times."""

    def __init__(self):
        self.times = []

    def __call__(self, x, t, t_end=None):
        self.times.append(float(t.max()))
        if t_end is None:
            return gaussian_flow.velocity(x, t, MEAN, STD)
        return gaussian_flow.average_velocity(x, t, t_end, MEAN, STD)


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def no_noise(x):
    """``draw`` of a stochastic sampler that is to be compared exactly."""
    return lambda step: torch.zeros_like(x)


def sample(name, x, num_steps, velocity=None, shift=1.0, **options):
    times, velocity = time_grid(num_steps, shift), velocity or Flow()
    return SAMPLERS[name](velocity, x, times, draw=no_noise(x), **options)


def exact(x):
    return gaussian_flow.flow_map(x, torch.tensor(0.0), torch.tensor(1.0), MEAN, STD)


def observed_order(name, num_steps, shift=1.0):
    x = noise(16, 3)
    errors = [
        (sample(name, x, n, shift=shift) - exact(x)).abs().max() for n in (num_steps, 2 * num_steps)
    ]
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize(
    ("name", "num_steps", "order"), [("euler", 160, 1), ("heun", 640, 2), ("rk4", 160, 4)]
)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sampler_converges_at_its_order(name, num_steps, order, shift):
    assert observed_order(name, num_steps, shift) == pytest.approx(order, abs=0.13)


def test_dpmpp_converges_at_order_2_but_for_a_logarithm():
    # Near t = 0 the k-th step in log-SNR is about 1 / k at any step size, so the local errors
    # h^2 / k sum to h^2 log(1 / h): two halvings show less than 2 and approach it.
    orders = [observed_order("dpmpp", n) for n in (80, 640)]
    assert 1.6 < orders[0] < orders[1] < 2


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("euler", 3e-2), ("heun", 3e-4), ("rk4", 1e-7), ("dpmpp", 4e-3), ("dopri5", 1e-4)]
    + [("mean_flow", 1e-12)],  # in any number of steps: its average velocity is exact
)
def test_sampler_ends_at_the_exact_flow(name, tolerance):
    x = noise(8, 2, 3)
    for num_steps in (100, 1) if name == "mean_flow" else (100,):
        end = sample(name, x, num_steps)
        torch.testing.assert_close(end, exact(x), rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpmpp_agrees_with_diffusers(num_steps, shift):
    from diffusers import DPMSolverMultistepScheduler

    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    options |= {"final_sigmas_type": "zero", "lower_order_final": False}
    scheduler = DPMSolverMultistepScheduler(**options)
    scheduler.set_timesteps(num_steps)
    times = time_grid(num_steps, shift)
    scheduler.sigmas = 1 - times  # its own grid begins a little after the noise
    x = y = noise(4, 3)
    for t, label in zip(times, scheduler.timesteps, strict=False):
        y = scheduler.step(-Flow()(y, t), label, y).prev_sample  # its time runs backwards
    # It keeps its state in float32.
    torch.testing.assert_close(sample("dpmpp", x, num_steps, shift=shift), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_evaluations_are_as_advertised_and_within_the_grid(name, num_steps):
    flow = Flow()
    sample(name, noise(2, 3), num_steps, velocity=flow)
    assert len(flow.times) == num_steps * SAMPLERS[name].evaluations
    assert flow.times[0] == 0
    assert max(flow.times) == (1 if name in ("heun", "rk4") else time_grid(num_steps)[-2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_progress_is_told_of_each_step_and_of_the_result(name):
    calls = []
    x = noise(2, 3)
    plain = sample(name, x, 4)
    end = sample(name, x, 4, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(calls[-1][2], end)
    assert torch.equal(plain, end)
    assert not torch.equal(calls[0][2], calls[1][2])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_state_is_float32_or_more_whatever_the_model_returns(name, dtype):
    seen, kept = set(), torch.promote_types(dtype, torch.float32)

    def velocity(x, t, t_end=None):
        seen.add(x.dtype)
        return Flow()(x, t, t_end).to(dtype)

    x = noise(2, 3, dtype=dtype)
    options = {"tolerance": 0.1} if name == "dopri5" else {}
    assert sample(name, x, 3, velocity=velocity, **options).dtype == kept
    assert seen == {kept}


@pytest.mark.parametrize("name", SAMPLERS)
def test_wrong_inputs_are_refused(name):
    x = noise(2, 3)
    wrong = [[0.0], [], [1.0, 0.5, 0.0], [0.0, 0.5, 0.5, 1.0], [0.0, 0.6, 0.4, 1.0], [0.0, 0.5]]
    wrong += [[0.1, 1.0], [0.0, 0.5, 1.1], [0.0, math.nan, 1.0], [[0.0, 1.0]]]
    for times in wrong:
        with pytest.raises(ValueError, match="times must"):
            SAMPLERS[name](Flow(), x, torch.tensor(times), draw=no_noise(x))
    with pytest.raises(ValueError, match="at least 1 step"):
        sample(name, x, 0)
    with pytest.raises(ValueError, match="has shape"):
        sample(name, x, 2, velocity=lambda x, t, s=None: x[:, :1])


def test_registry_knows_what_each_sampler_needs():
    evaluations = {"euler": 1, "heun": 2, "rk4": 4, "dopri5": 0, "dpmpp": 1}
    evaluations |= {"euler_maruyama": 1, "mean_flow": 1}
    assert {name: sampler.evaluations for name, sampler in SAMPLERS.items()} == evaluations
    assert [k for k, s in SAMPLERS.items() if s.needs_average_velocity] == ["mean_flow"]


def test_dopri5_asks_for_times_between_0_and_1_only():
    flow = Flow()
    sample("dopri5", noise(1, 3), 4, velocity=flow)
    assert flow.times[0] == 0
    assert 1 - 1e-12 < max(flow.times) <= 1
    slow = []
    # Nothing happens here, so the step grows until it would pass the end.
    sample("dopri5", noise(1, 3), 4, velocity=lambda x, t: slow.append(float(t)) or 0 * x)
    assert 1 - 1e-12 < max(slow) <= 1


def test_dopri5_meets_its_tolerance_in_fewer_evaluations_when_it_is_loose():
    x = noise(1, 3)
    counts, errors = [], []
    for tolerance in (1e-3, 1e-6, 1e-9):
        flow = Flow()
        end = sample("dopri5", x, 1, velocity=flow, tolerance=tolerance)
        counts.append(len(flow.times))
        errors.append(float((end - exact(x)).abs().max()))
    assert counts[0] < counts[1] < counts[2]
    assert errors[0] < 2e-2 and errors[1] < 2e-5 and errors[2] < 2e-8


@pytest.mark.parametrize(
    ("velocity", "options", "message"),
    [
        (lambda x, t: x * math.nan, {}, "not finite"),
        (lambda x, t: torch.randn_like(x), {"max_evaluations": 200}, "after 200 evaluations"),
    ],
)
def test_dopri5_refuses_what_would_not_end(velocity, options, message):
    with pytest.raises(ValueError, match=message):
        sample("dopri5", noise(1, 3), 1, velocity=velocity, **options)


def uneven(count, dtype=torch.float64):
    """Noise of samples of which each needs more steps than the one before, and their velocity."""
    calls, x = [], noise(count, 2, 3, dtype=dtype) * torch.arange(1, count + 1).view(-1, 1, 1)

    def velocity(x, t):
        calls.append(len(x))
        t = t.to(x).view(-1, 1, 1)
        return (2 * x * t).sin() + x * t

    return x.to(dtype), velocity, calls


def dopri5_states(velocity, x):
    states = []
    sample("dopri5", x, 7, velocity=velocity, progress=lambda *call: states.append(call[2]))
    return torch.stack(states)


def test_dopri5_agrees_with_torchdiffeq_in_as_many_evaluations():
    from torchdiffeq import odeint

    x, velocity, calls = uneven(4)
    states = dopri5_states(velocity, x)
    evaluations = len(calls)
    options = {"first_step": 0.01, "step_t": torch.tensor([1.0])}
    settings = {"rtol": 1e-5, "atol": 1e-5, "method": "dopri5", "options": options}
    for i in range(4):
        calls.clear()
        expected = odeint(lambda t, y: velocity(y, t), x[i : i + 1], time_grid(7), **settings)
        torch.testing.assert_close(states[:, i : i + 1], expected[1:], rtol=0, atol=1e-9)
    assert len(calls) == evaluations  # those of the last sample, which takes the most


def test_dopri5_gives_the_bits_of_a_sample_alone_and_leaves_out_those_that_arrived():
    x, velocity, calls = uneven(5, torch.float32)
    together, batches = dopri5_states(velocity, x), calls.copy()
    assert batches[0] == 5 and 1 <= batches[-1] < 5 and batches == sorted(batches, reverse=True)
    calls.clear()
    alone = [dopri5_states(velocity, x[i : i + 1]) for i in range(5)]
    assert torch.equal(together, torch.cat(alone, dim=1))
    assert sum(batches) == len(calls) > 2 * len(batches)


def normal(step, shape=(COUNT, 1)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(step))


def euler_maruyama(*arguments, **options):
    return SAMPLERS["euler_maruyama"](*arguments, **options)


def test_stochastic_samples_have_the_mean_and_deviation_of_the_data():
    end = euler_maruyama(Flow(), normal(0), time_grid(400), draw=normal)
    # Four standard errors, and a discretisation error of the order of one step.
    assert float(end.mean()) == pytest.approx(MEAN, abs=4 * STD / COUNT**0.5 + 0.004)
    assert float(end.std()) == pytest.approx(STD, abs=4 * STD / (2 * COUNT) ** 0.5 + 0.004)


def test_noise_forgets_where_a_sample_started_and_the_flow_does_not():
    start = normal(0)
    for sampler, low, high in ((SAMPLERS["euler"], 0.999, 1.001), (euler_maruyama, 0.0, 0.9)):
        end = sampler(Flow(), start, time_grid(200), draw=normal)
        assert low < float(torch.corrcoef(torch.cat([start, end], dim=1).T)[0, 1]) < high


def test_noise_and_drift_are_those_of_public_sit_samples():
    """Its diffusion is 1 - t, its drift v + (1 - t) score, its noise sqrt(2 (1 - t) dt)."""
    x, eps = normal(0, (4, 3)), normal(1, (4, 3))
    end = euler_maruyama(lambda x, t: 0 * x, x, time_grid(2), draw=lambda step: eps)
    # At t = 0 the score is -x; the last step follows the flow, which stands still.
    torch.testing.assert_close(end, x - 0.5 * x + eps)


def test_noise_is_drawn_once_for_each_step_but_the_last():
    drawn = []

    def draw(step):
        drawn.append(step)
        return normal(step, (4, 3))

    euler_maruyama(Flow(), normal(0, (4, 3)), time_grid(5), draw=draw)
    assert drawn == [1, 2, 3, 4]


def test_single_step_ends_at_the_mean_of_the_data():
    end = euler_maruyama(Flow(), normal(0, (4, 3)), time_grid(1), draw=normal)
    torch.testing.assert_close(end, torch.full((4, 3), MEAN))


def test_missing_or_shared_noise_is_refused():
    for draw, message in ((None, "needs draw"), (lambda step: normal(step, (1, 3)), r"\(1, 3\)")):
        with pytest.raises(ValueError, match=message):
            euler_maruyama(Flow(), normal(0, (4, 3)), time_grid(3), draw=draw)
