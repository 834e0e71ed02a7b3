from tests.refusals import refused
from wfimagevae.dataset.order import ShuffledOrder, stable_seed


def test_every_epoch_shows_every_item_once_in_a_new_order_any_as_often_first():
    order = ShuffledOrder(101, seed=7)
    epochs = [[order.index(101 * epoch + i) for i in range(101)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(101)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [ShuffledOrder(101, seed=8).index(i) for i in range(101)] != epochs[0]
    order = ShuffledOrder(4, seed=0)
    first = [order.index(4 * epoch) for epoch in range(800)]
    assert all(150 < first.count(item) < 250 for item in range(4))


def test_order_is_the_same_on_every_machine_and_version():
    # Written down once: a run must resume after an upgrade of NumPy or Python.
    order = ShuffledOrder(8, seed=1234)
    assert [order.index(i) for i in range(16)] == [7, 4, 0, 6, 3, 2, 1, 5, 5, 1, 6, 3, 7, 0, 4, 2]
    assert stable_seed(1234, "epoch", 0) == 224461368355036550469407277363976925034


def test_order_of_nothing_is_refused():
    refused("got 0", ShuffledOrder, 0, seed=0)
