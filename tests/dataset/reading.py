"""How tests read training data."""

from wfimagevae.dataset.options import LoaderOptions


def read_by(count, **flags):
    """Options of a loader that reads in so many processes."""
    return LoaderOptions(dataset_num_worker=count, **flags)
