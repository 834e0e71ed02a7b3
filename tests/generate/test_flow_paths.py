"""States and predictions of flows whose velocity is known."""

import pytest
import torch

from tests.eval.flow_models import BlobModel, generator_of
from wfimagevae.generate.generator import (
    draw_states,
    interpolate,
    predicted_ends,
    sampling_velocity,
)
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject, subjects_in_turn


def sampling(sampler, steps, **options):
    return SamplingOptions(sampler=sampler, steps=steps, **options)


def test_states_lead_from_noise_to_the_generators_samples():
    generator, options = generator_of(BlobModel()), sampling("heun", 6, seed=5)
    times, states = draw_states(generator, subjects_in_turn(4, [2, 0]), options)
    assert states.shape == (7, 4, 3, 8, 8) and times[0] == 0 and times[-1] == 1
    assert torch.equal(states[0], generator.noise(range(4), 5))
    samples = generator.sample([0, 1, 2, 3], torch.tensor([2, 0, 2, 0]), options)
    torch.testing.assert_close(states[-1], samples)


def test_predicted_ends_of_straight_lines_are_their_ends_by_the_average_velocity_too():
    generator, options = generator_of(BlobModel()), sampling("euler", 5)
    subjects = subjects_in_turn(3, [0, 1, 2])
    times, states = draw_states(generator, subjects, options)
    velocity = sampling_velocity(generator, subjects, options)
    ends = predicted_ends(velocity, times, states)
    torch.testing.assert_close(ends, states[-1:].expand_as(ends), atol=1e-5, rtol=1e-4)
    assert torch.equal(ends[-1], states[-1])
    asked = []

    def velocity(x, t, t_end):
        asked.append((float(t), float(t_end)))
        return torch.ones_like(x)

    times = torch.tensor([0.0, 0.5, 1.0])
    ends = predicted_ends(velocity, times, torch.zeros(3, 2, 2), is_average=True)
    assert asked == [(0.0, 1.0), (0.5, 1.0)]
    assert ends[:, 0, 0].tolist() == [1.0, 0.5, 0.0]


def test_interpolations_stay_in_their_class_with_one_noise_and_meet_the_samples():
    generator, options = generator_of(BlobModel()), sampling("euler", 4)
    places = interpolate(generator, subjects_in_turn(2, [0, 1]), options, 5)
    assert places.shape == (5, 2, 3, 8, 8)
    assert (places.mean((3, 4)).argmax(2) == torch.tensor([0, 1])).all()
    labels = torch.tensor([0, 1])
    torch.testing.assert_close(places[0], generator.sample([0, 1], labels, options))
    torch.testing.assert_close(places[-1], generator.sample([2, 3], labels, options))
    generator, options = generator_of(BlobModel()), sampling("euler_maruyama", 8)
    places = interpolate(generator, subjects_in_turn(1, [0]), options, 3)
    assert torch.equal(places, interpolate(generator, subjects_in_turn(1, [0]), options, 3))


def test_the_field_is_that_of_a_class_or_of_none():
    generator, options = generator_of(BlobModel()), SamplingOptions()
    x, t = torch.zeros(2, 3, 8, 8), torch.tensor(0.0)
    red = sampling_velocity(generator, [Subject(0, 0)] * 2, options)(x, t)
    none = sampling_velocity(generator, [Subject(0)] * 2, options)(x, t)
    assert red.mean((0, 2, 3)).tolist() == pytest.approx([0.7, -0.7, -0.7])
    assert none.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0])


def test_noises_of_an_interpolation_are_normal_all_the_way(monkeypatch):
    generator, drawn = generator_of(BlobModel()), []
    subjects, options = subjects_in_turn(64, [0]), sampling("euler", 1, seed=2)
    monkeypatch.setattr(generator, "draw", lambda *_, noise: drawn.append(noise) or noise)
    interpolate(generator, subjects, options, 5)
    for noise in drawn:  # the mean of two independent ones would be shorter by sqrt(2)
        assert noise.std() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(drawn[0], generator.noise(range(64), 2))
    torch.testing.assert_close(drawn[-1], generator.noise(range(64, 128), 2))
