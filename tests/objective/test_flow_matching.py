from dataclasses import replace
from operator import itemgetter

import pytest
import torch

from tests.objective.fields import ConstantClasses, GaussianField, plain
from wfimagevae.diffusion.path import shift_times
from wfimagevae.objective.flow_matching import FlowMatching, error_by_time

MEAN, STD = 0.7, 0.4
COUNT = 20_000
point = itemgetter("point")


def gaussian_batch(count: int = COUNT, first: int = 0) -> dict:
    generator = torch.Generator().manual_seed(1)
    data = MEAN + STD * torch.randn(first + count, 2, generator=generator, dtype=torch.float64)
    return {"point": data[first:], "position": list(range(first, first + count))}


def test_paths_start_at_noise_and_end_at_data():
    objective, batch = (
        FlowMatching(GaussianField(0.0, 1.0), point, plain(), 3),
        gaussian_batch(2000),
    )
    times = torch.zeros(2000, dtype=torch.float64)
    start, end = objective.draw(batch, times), objective.draw(batch, times + 1)
    assert abs(start.x_t.mean()) < 4 / 4000**0.5 and abs(start.x_t.std() - 1) < 4 / 8000**0.5
    torch.testing.assert_close(end.x_t, batch["point"])
    torch.testing.assert_close(start.x_t + start.velocity, end.x_t)
    assert torch.equal(start.velocity, end.velocity)


@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
def test_exact_velocity_is_where_the_loss_is_lowest(kind):
    field = GaussianField(MEAN, STD)
    options = plain(time_distribution=kind)
    loss, _ = FlowMatching(field, point, options, 3)(gaussian_batch(), 0)
    loss.backward()
    # Each is twice a mean of COUNT terms of size about 1.
    assert abs(field.offset.grad) < 8 / COUNT**0.5
    assert abs(field.slope.grad) < 8 / COUNT**0.5
    wrong = GaussianField(MEAN, 2 * STD)
    FlowMatching(wrong, point, options, 3)(gaussian_batch(), 0)[0].backward()
    assert abs(wrong.slope.grad) > 40 / COUNT**0.5


def test_logit_normal_times_have_the_logits_mean_and_deviation():
    options = {"time_distribution": "logit_normal", "time_mean": 0.4, "time_std": 1.3}
    drawn, shifted, uniform = (
        FlowMatching(GaussianField(0.0, 1.0), point, plain(**o), 0).draw_times("t", range(COUNT))
        for o in (options, options | {"time_shift": 3.0}, {})
    )
    logits = torch.logit(drawn)
    assert logits.mean().item() == pytest.approx(0.4, abs=4 * 1.3 / COUNT**0.5)
    assert logits.std().item() == pytest.approx(1.3, abs=4 * 1.3 / COUNT**0.5)
    torch.testing.assert_close(shifted, shift_times(drawn, 3.0))
    assert uniform.mean().item() == pytest.approx(0.5, abs=4 * 0.3 / COUNT**0.5)


def test_loss_follows_the_samples_not_the_batches():
    objective = FlowMatching(GaussianField(0.0, 1.0), point, plain(), 5)
    whole = objective(gaussian_batch(64), 0)[0]
    halves = [objective(gaussian_batch(32, first), 0)[0] for first in (0, 32)]
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_labels_are_dropped_as_often_as_asked():
    classes = ConstantClasses([1.0, 2.0, 9.0])
    objective = FlowMatching(classes, point, plain(cfg_dropout_prob=0.3), 0)
    batch = gaussian_batch(4000) | {"label": torch.arange(4000) % 2}
    drawn = objective.draw(batch, torch.zeros(4000, dtype=torch.float64))
    share = (drawn.condition == 2).double().mean().item()
    assert share == pytest.approx(0.3, abs=4 * (0.21 / 4000) ** 0.5)
    kept = drawn.condition != 2
    assert torch.equal(drawn.condition[kept], batch["label"][kept])
    assert torch.equal(drawn.dropped, ~kept)


def direction_loss(velocity: torch.Tensor, factor) -> float:
    """The term of a network that predicts ``factor`` times the velocity, (B, ...)."""

    class Echo(GaussianField):
        def forward(self, x, t, condition=None, t_end=None):
            return factor * velocity + 0 * self.offset

    objective = FlowMatching(Echo(0.0, 1.0), point, plain(direction_weight=1.0), 0)
    batch = {"point": velocity, "position": list(range(len(velocity)))}
    drawn = objective.draw(batch, torch.zeros(len(velocity), dtype=torch.float64))
    objective.draw = lambda *_: replace(drawn, velocity=velocity)
    return objective(batch, 0)[1]["train/direction_loss"].item()


def test_direction_term_is_zero_for_parallel_and_two_for_opposite_velocities():
    velocity = gaussian_batch(16)["point"]
    assert direction_loss(velocity, 3.0) == pytest.approx(0, abs=1e-6)
    assert direction_loss(velocity, -1.0) == pytest.approx(2, abs=1e-6)


def test_direction_term_counts_every_place_alike():
    velocity = torch.tensor([100.0, 1.0]).expand(4, 3, 2, 2)  # wide left, narrow right column
    right_is_opposite = torch.tensor([1.0, -1.0])
    assert direction_loss(velocity, right_is_opposite) == pytest.approx(1, abs=1e-6)


def test_errors_are_pooled_by_quarter_of_the_time():
    pairs = error_by_time(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 1.0]))
    assert [pair.tolist() for pair in pairs.values()] == [[4, 2], [0, 0], [0, 0], [5, 1]]
    assert next(iter(pairs)) == "train/error_t0.00-0.25"


def test_errors_by_time_keep_their_digits_under_autocast():
    error = torch.tensor([1.001, 3.0007])
    with torch.autocast("cpu", torch.bfloat16):
        first = next(iter(error_by_time(error, torch.tensor([0.1, 0.2])).values()))
    torch.testing.assert_close(first, torch.tensor([4.0017, 2.0]), rtol=1e-6, atol=0)
