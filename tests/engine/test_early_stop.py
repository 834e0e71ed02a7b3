"""A run ends by one of its values, once, and remembers on what grounds."""

import pytest

from wfimagevae.engine.interrupt import EarlyStop
from wfimagevae.engine.options import StopOptions, TrainingOptions


def rule(metric, below, window):
    return StopOptions(stop_metric=metric, stop_below=below, stop_window=window)


def fed(stop, *values):
    return [stop.observe({"train/loss": value}) for value in values]


def test_it_stops_when_the_mean_of_a_full_window_is_below():
    stop = EarlyStop(rule("train/loss", 2.0, 3))
    assert fed(stop, 0.0, 0.0) == [False, False]  # too few
    assert fed(stop, 9.0, 0.0) == [False, False]  # means 3
    assert fed(stop, 1.0, 0.5) == [False, True]  # 10 / 3, then 0.5
    assert stop.reached and fed(stop, 99.0) == [False]  # once and for all


def test_other_values_and_those_that_are_not_finite_do_not_count():
    stop = EarlyStop(rule("train/loss", 2.0, 1))
    assert not stop.observe({"train/other": 0.0})
    assert fed(stop, float("nan"), float("-inf"), 2.0, 1.9) == [False, False, False, True]
    assert not EarlyStop(StopOptions()).observe({"train/loss": 0.0})


def test_it_goes_on_where_it_was_saved():
    stop_rule = rule("train/loss", 2.0, 3)
    one, other = EarlyStop(stop_rule), EarlyStop(stop_rule)
    fed(one, 3.0, 1.0)
    other.load_state_dict(one.state_dict())
    assert fed(other, 1.0) == fed(one, 1.0) == [True]
    again = EarlyStop(stop_rule)
    again.load_state_dict(other.state_dict())
    assert again.reached
    another = EarlyStop(rule("train/kl_loss", 2.0, 3))
    another.load_state_dict(other.state_dict())
    assert not another.reached


def test_a_metric_without_a_threshold_is_refused():
    with pytest.raises(ValueError, match="--stop_metric and --stop_below go together"):
        TrainingOptions(stop_metric="train/loss")
