"""Learning-rate schedules against their closed forms."""

import pytest

from tests.engine.toy import player
from wfimagevae.engine.optim import LrSchedule
from wfimagevae.engine.options import OptimizerOptions


def schedule_of(kind, total_updates=1, **options):
    return LrSchedule(OptimizerOptions(lr_schedule=kind, **options), total_updates)


def factors(updates, kind, total_updates=1, **options):
    schedule = schedule_of(kind, total_updates, **options)
    return [schedule(update) for update in updates]


def test_linear_ends_at_its_share_and_cosine_is_half_way_down_half_way():
    linear = factors([0, 5, 10, 99], "linear", 10, min_lr_ratio=0.1)
    assert linear == pytest.approx([1, 0.55, 0.1, 0.1])
    cosine = factors([2, 7, 12], "cosine", 12, warmup_steps=2)
    assert cosine == pytest.approx([1, 0.5, 0], abs=1e-12)


def test_step_falls_at_once_and_exponential_smoothly_to_the_same_values():
    options = {"lr_step_updates": 10, "lr_gamma": 0.25, "min_lr_ratio": 0.01}
    assert factors([0, 9, 10, 19, 20], "step", **options) == [1, 1, 0.25, 0.25, 0.0625]
    smooth = factors([0, 5, 10, 20, 1000], "exponential", **options)
    assert smooth == pytest.approx([1, 0.5, 0.25, 0.0625, 0.01])


@pytest.mark.parametrize("kind", ["constant", "step", "exponential", "plateau"])
def test_warmup_comes_first_and_the_decay_counts_from_its_end(kind):
    values = factors(range(5), kind, warmup_steps=3, lr_step_updates=1, lr_gamma=0.5)
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]
    assert values[4] == (0.5 if kind in ("step", "exponential") else 1.0)


def observed(schedule, *scores):
    for score in scores:
        schedule.observe(score)
    return schedule(100)


def test_plateau_falls_when_patience_runs_out_and_not_before():
    schedule = schedule_of("plateau", lr_gamma=0.1, plateau_patience=2, min_lr_ratio=0.05)
    assert observed(schedule, 20.0, 21.0, 20.5) == 1
    assert observed(schedule, float("nan")) == pytest.approx(0.1)
    assert observed(schedule, 22.0, 21.0) == pytest.approx(0.1)
    assert observed(schedule, 22.0) == 0.05  # an equal score is no better


def test_plateau_goes_on_where_a_player_was_saved():
    schedules = [schedule_of("plateau", lr_gamma=0.5, plateau_patience=2) for _ in range(2)]
    whole, resumed = player(), player()
    whole.schedules, resumed.schedules = schedules[:1], schedules[1:]
    observed(schedules[0], 3.0, 2.0, 2.0, 2.0)
    resumed.load_state_dict(whole.state_dict())
    assert observed(schedules[1], 2.0) == 0.25


def test_other_schedules_ignore_scores_and_old_checkpoints_have_no_state():
    ours = player()
    ours.observe(1.0)
    state = ours.state_dict()
    assert state["schedule"]["best"] == float("-inf")
    del state["schedule"]
    ours.load_state_dict(state)


def test_a_factor_that_ends_all_learning_is_refused():
    with pytest.raises(ValueError, match=r"lr_gamma: 0\.0 is not a number above 0"):
        OptimizerOptions(lr_gamma=0.0)
