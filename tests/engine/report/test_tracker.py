"""Trackers: they write where they should, and their failures never reach the training loop."""

import importlib.util
import logging
import os
from unittest.mock import Mock

import pytest
from PIL import Image

from wfimagevae.engine.report import tracker
from wfimagevae.engine.report.tracker import Tracker, open_tracker


def test_missing_package_is_an_error_that_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install trackio"):
        open_tracker("trackio", tmp_path, "run", {})


def test_trackio_keeps_all_runs_in_one_place_under_names_of_their_own(tmp_path, monkeypatch):
    """gradio-app/trackio: `trackio list runs` compares what is in one folder."""
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    monkeypatch.setattr(tracker.importlib.util, "find_spec", Mock())
    monkeypatch.setattr(tracker.importlib, "import_module", Mock(return_value=(module := Mock())))
    for folder in ("a", "b", "a"):  # the third goes on where the first ended
        (tmp_path / folder).mkdir(exist_ok=True)
        assert open_tracker("trackio", tmp_path / folder, "run", {}).is_on
    first, second, third = (call.kwargs for call in module.init.call_args_list)
    assert first["name"] == third["name"] != second["name"] and first["project"] == "wfimagevae"
    assert "TRACKIO_DIR" not in os.environ and first["resume"] == "allow"


@pytest.mark.parametrize("broken", ["log", "log_images", "close"])
def test_a_failing_backend_is_one_warning_and_then_silence(caplog, broken):
    failing = Mock(side_effect=RuntimeError("the service is down\nsecond line"))
    backend = Mock(**{broken: failing})
    guarded = Tracker("wandb", lambda: backend)
    assert guarded.is_on
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            guarded.log(step, {"a": 1.0})
            guarded.log_images(step, {"b": "b.png"})
        guarded.close()
    assert [record.getMessage() for record in caplog.records] == [
        "tracker wandb failed and is now off (all else goes on): the service is down"
    ]
    failing.assert_called_once()
    assert not guarded.is_on


def test_a_backend_that_cannot_start_is_off_with_one_warning(caplog):
    with pytest.raises(KeyboardInterrupt):
        Tracker("wandb", Mock(side_effect=KeyboardInterrupt))
    assert not caplog.records
    Tracker("wandb", Mock(side_effect=TimeoutError)).log(1, {"a": 1.0})
    assert "TimeoutError" in caplog.text and len(caplog.records) == 1


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_holds_what_was_logged(tmp_path):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "red.png")
    board = open_tracker("tensorboard", tmp_path, "run", {"lr": 1e-5})
    board.log(3, {"train/rec_loss": 0.25})
    board.log_images(3, {"val/red": tmp_path / "red.png"})
    assert board.is_on
    board.close()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (scalar,) = events.Scalars("train/rec_loss")
    assert (scalar.step, scalar.value) == (3, 0.25)
    (image,) = events.Images("val/red")
    assert (image.step, image.width, image.height) == (3, 8, 6)
