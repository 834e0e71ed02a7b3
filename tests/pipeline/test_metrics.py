"""Where a step stands, as the console and the names of samples tell it."""

import pytest

from wfimagevae.pipeline.metrics import Position, console_line


def positions(epoch_steps: float, max_steps: int, num_epochs: int | None = None) -> list[Position]:
    return [Position(n, epoch_steps, max_steps, num_epochs) for n in range(1, max_steps + 1)]


def test_epochs_of_a_file_are_as_many_on_the_console():
    # 791 images in batches of 8 for 5 epochs: 494.4 iterations, of which the last is begun.
    found = positions(791 / 8, 495, 5)
    assert {where.epochs for where in found} == {5}
    assert (found[-1].epoch, found[-1].batch, found[-1].batches) == (5, 100, 100)
    assert (found[97].epoch, found[97].batch, found[97].batches) == (1, 98, 98)
    assert (found[98].epoch, found[98].batch, found[98].batches) == (2, 1, 99)
    (*_, last) = positions(3.5, 4, 1)
    assert (last.epoch, last.epochs, last.batch, last.batches) == (1, 1, 4, 4)


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


def test_whole_epochs_are_whole():
    where = Position(7, 7 / 3, 21)  # 3 times 7 / 3 iterations
    assert (where.epoch, where.epochs, where.batch) == (3, 9, 3)


def test_a_day_of_training_is_hours():
    line = console_line("gan (2/3)", Position(1, 1, 1), {}, 1.0, 25 * 3600 + 61.9)
    assert line.startswith("[25:01:01] Step gan (2/3) | ")
