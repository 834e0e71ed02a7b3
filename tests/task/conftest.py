"""Folders to train in, for a whole file of tests or for one."""

import pytest

from tests.task.training import FlowPlace, Workplace


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def place(tmp_path):
    return FlowPlace(tmp_path)
