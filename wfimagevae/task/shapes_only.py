"""Counting arithmetic on shapes alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def shapes_only() -> Iterator[None]:
    """Networks called inside compute nothing but shapes, in a moment and without memory."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield
