"""Where a step stands, as the console and the names of samples tell it."""

from types import SimpleNamespace

import pytest

from tests.pipeline.files import PLAIN, options_of
from wfimagevae.pipeline.watch import Position, StepWatcher, position


def positions(epoch_steps: float, max_steps: int, num_epochs: int | None = None) -> list[Position]:
    return [position(n, epoch_steps, max_steps, num_epochs) for n in range(1, max_steps + 1)]


def test_epochs_of_a_file_are_as_many_on_the_console():
    # 791 images in batches of 8 for 5 epochs: 494.4 iterations, of which the last is begun.
    found = positions(791 / 8, 495, 5)
    assert {where.epochs for where in found} == {5}
    assert found[-1] == Position(epoch=5, epochs=5, batch=100, batches=100)
    assert found[97] == Position(epoch=1, epochs=5, batch=98, batches=98)
    assert found[98] == Position(epoch=2, epochs=5, batch=1, batches=99)
    assert positions(3.5, 4, 1)[-1] == Position(epoch=1, epochs=1, batch=4, batches=4)
    # 3 times 7 / 3 iterations are whole epochs.
    assert position(7, 7 / 3, 21) == Position(epoch=3, epochs=9, batch=3, batches=3)


@pytest.mark.parametrize(
    ("epoch_steps", "max_steps", "num_epochs"),
    [
        (7 / 3, 21, 9),
        (7 / 3, 21, None),
        (3.5, 6, None),
        (1, 5, 5),
        (0.25, 2, 5),
        (101 / 7, 150, None),
    ],
)
def test_no_two_iterations_stand_at_one_place(epoch_steps, max_steps, num_epochs):
    found = positions(epoch_steps, max_steps, num_epochs)
    assert len({(where.epoch, where.batch) for where in found}) == max_steps
    for where in found:
        assert 1 <= where.batch <= where.batches and 1 <= where.epoch <= where.epochs


def test_a_day_of_training_is_hours(load, monkeypatch):
    pipeline = load(PLAIN)
    monkeypatch.setattr("time.perf_counter", lambda: 25 * 3600 + 61.9)
    watcher = StepWatcher(pipeline, pipeline.steps[0], options_of(pipeline), None, started=0.0)
    watcher.run = SimpleNamespace(step_offset=0, epoch_steps=1, max_steps=2, samples_a_step=1)
    line = "[25:01:01] Step vae (1/1) | Epoch 1/2 | Batch 1/1 | KL 8 | 2s/batch"
    assert watcher.line(1, {"train/kl_loss": 8, "img_per_s": 0.5}) == line
