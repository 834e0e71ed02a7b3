"""Class-free guidance: the arithmetic, the calls it makes, and SiT's own figures."""

import pytest
import torch
from safetensors.torch import load_file

from tests.diffusion import gaussian_flow
from tests.model.flow.models import SIT, golden_sit
from wfimagevae.diffusion.guidance import GuidedVelocity, map_tensors
from wfimagevae.diffusion.path import time_grid
from wfimagevae.diffusion.sampler import SAMPLERS
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.options import BadOptions

LABELS = torch.tensor([3, 0, 2])
NULL = torch.full((3,), 9)


class Model:
    """velocity = label + 10 t + 100 t_end + x, which records the batches it is called with."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, condition=None, t_end=None):
        assert t.shape == (len(x),) and t.dtype == x.dtype
        assert t_end is None or t_end.shape == (len(x),)
        self.batches.append(len(x))
        label = 0 if condition is None else condition
        v = label + 10 * t + 100 * (0 if t_end is None else t_end)
        return v.view(-1, 1, 1) + x


def state(dtype=torch.float32):
    return torch.randn(3, 4, 5, dtype=dtype)


def call(scale, t=0.5, model=None, x=None, t_end=None, **guidance):
    velocity = GuidedVelocity(model or Model(), LABELS, NULL, scale, **guidance)
    return velocity(state() if x is None else x, torch.as_tensor(t), t_end)


def test_guided_call_is_one_of_twice_the_batch_and_an_unguided_one_of_the_batch():
    model = Model()
    velocity = GuidedVelocity(model, LABELS, NULL, 2.0, interval=(0.2, 0.6))
    for t in (0.0, 0.2, 0.4, 0.6, 0.7, 1.0):
        velocity(state(), torch.tensor(t, dtype=torch.float64))
    assert model.batches == [3, 6, 6, 6, 3, 3]
    at_scale_1 = Model()
    call(1.0, model=at_scale_1)
    assert at_scale_1.batches == [3]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("t_end", [None, 0.75])
def test_scale_exaggerates_the_label_and_the_end_time_reaches_both_halves(scale, t_end):
    x = state()
    v = call(scale, t=0.25, x=x, t_end=None if t_end is None else torch.tensor(t_end))
    expected = (9 + scale * (LABELS - 9)).view(-1, 1, 1) + 2.5 + 100 * (t_end or 0) + x
    torch.testing.assert_close(v, expected)


def test_channels_past_the_guided_ones_are_the_conditional_models():
    x = state()
    v = call(4.0, x=x, channels=3)
    torch.testing.assert_close(v[:, :3], call(4.0, x=x)[:, :3])
    torch.testing.assert_close(v[:, 3:], call(1.0, x=x)[:, 3:])
    torch.testing.assert_close(call(4.0, x=x, channels=4), call(4.0, x=x))


def test_rescaling_gives_each_sample_the_conditional_deviation_or_a_part_of_it():
    conditional, null = torch.randn(2, 3, 4, 5)

    def guide(scale, share, *halves):
        velocity = GuidedVelocity(lambda *_: torch.cat(halves), None, None, scale, rescale=share)
        return velocity(halves[0], torch.tensor(0.5))

    guided, part, full = (guide(5.0, share, conditional, null) for share in (0.0, 0.7, 1.0))
    torch.testing.assert_close(full.flatten(1).std(1), conditional.flatten(1).std(1))
    ratio = full / guided
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    torch.testing.assert_close(part, 0.7 * full + 0.3 * guided)
    ones = torch.ones(2, 3, 4)
    assert guide(2.0, 1.0, ones, ones).isfinite().all()


def test_nested_conditions_are_joined_at_each_place():
    def model(x, t, condition, t_end):
        tokens, mask, label = *condition["text"].values(), condition["label"]
        assert tokens.shape == (6, 7) and mask.dtype == torch.bool and label.dtype == torch.int64
        return x * 0 + ((tokens * mask).sum(1) + label).view(-1, 1, 1)

    tokens, mask = torch.randn(3, 7), torch.rand(3, 7) > 0.5
    condition = {"text": {"tokens": tokens, "mask": mask}, "label": LABELS}
    null = {"text": {"tokens": 0 * tokens, "mask": ~mask}, "label": NULL}
    v = GuidedVelocity(model, condition, null, 2.0)(state(), torch.tensor(0.5))
    expected = 9 + 2 * ((tokens * mask).sum(1) + LABELS - 9)
    torch.testing.assert_close(v, expected.view(-1, 1, 1).expand(3, 4, 5))


def test_rows_are_the_velocity_of_those_samples():
    x, t = state(), torch.tensor(0.5)
    velocity = GuidedVelocity(Model(), LABELS, NULL, 3.0)
    torch.testing.assert_close(velocity.rows(slice(1, 3))(x[1:], t), velocity(x, t)[1:])


def test_samples_at_times_of_their_own_are_guided_each_by_its_time():
    x, times = state(), torch.tensor([0.1, 0.5, 0.9])
    velocity = GuidedVelocity(Model(), LABELS, NULL, 3.0, interval=(0.3, 0.9))
    alone = [velocity.rows(slice(i, i + 1))(x[i : i + 1], times[i]) for i in range(3)]
    torch.testing.assert_close(velocity(x, times), torch.cat(alone), rtol=0, atol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_follows_a_guided_model_whatever_the_batch(name):
    # Each class is a Gaussian: at scale 1 samples of a class end where its flow ends.
    means = torch.tensor([-1.0, 2.0, 0.5])

    def model(x, t, condition, t_end=None):
        moved = x + t.view(-1, 1) * (0 - means[condition].view(-1, 1))
        flow = gaussian_flow.velocity if t_end is None else gaussian_flow.average_velocity
        times = (t,) if t_end is None else (t, t_end)
        return means[condition].view(-1, 1) + flow(moved, *times, 0.0, 0.5)

    noise, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, 1])

    def run(rows):
        velocity = GuidedVelocity(model, labels[rows], None)
        return SAMPLERS[name](
            velocity, noise[rows], time_grid(50), draw=lambda step: torch.zeros_like(noise[rows])
        )

    together = run(slice(0, 4))
    alone = torch.cat([run(slice(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    if name != "euler_maruyama":  # its noise is silenced here
        expected = means[labels].view(-1, 1) + 0.5 * noise
        torch.testing.assert_close(together, expected, rtol=0, atol=0.05)


def test_an_unconditional_model_gives_velocities_of_the_type_of_the_state():
    x = state(torch.float64)
    t = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(GuidedVelocity(Model(), None)(x, t), x + 5)
    velocity = GuidedVelocity(lambda x, *_: x.bfloat16(), LABELS, NULL, 2.0)
    assert velocity(x, t).dtype == torch.float64


def test_impossible_guidance_is_refused():
    for value in ("-1", "nan", "inf"):
        with pytest.raises(BadOptions, match="guidance_scale"):
            SamplingOptions(guidance_scale=value)
    with pytest.raises(BadOptions, match=r"(?s)rescale.*channels"):
        SamplingOptions(guidance_rescale=1.5, guidance_channels=0)


def test_what_does_not_fit_the_state_or_the_condition_is_refused():
    with pytest.raises(ValueError, match="cannot guide 5 channels"):
        call(2.0, channels=5)
    for pair in ((LABELS, {"a": LABELS}), ({"a": LABELS}, {"b": LABELS}), (None, LABELS)):
        with pytest.raises(ValueError, match="structure"):
            map_tensors(lambda *leaves: torch.cat(leaves), *pair)


def test_guided_sit_agrees_with_its_public_code():
    model, expected = golden_sit(), load_file(SIT / "expected.safetensors")
    velocity = GuidedVelocity(
        model, torch.tensor([1, 2]), model.null_condition(2, "cpu"), 4.0, channels=3
    )
    # Its batch holds every sample twice, the conditional half first.
    for i, t in enumerate((0.3, 0.6)):
        row = slice(i, i + 1)
        with torch.no_grad():
            v = velocity.rows(row)(expected["x"][row], torch.tensor(t))
        torch.testing.assert_close(v, expected["cfg_velocity"][row], rtol=0, atol=1e-4)
