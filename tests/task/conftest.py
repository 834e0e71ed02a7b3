"""Folders to train in, for a whole file of tests or for one."""

import pytest
import torch

from tests.task.training import FlowPlace, Workplace
from wfimagevae.command_line import parse
from wfimagevae.task.flow import build_network, build_objective
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.flow_space import build_datasets, open_space

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def place(tmp_path):
    return FlowPlace(tmp_path)


@pytest.fixture
def assemble(place):
    """Builds data, held-out data, space and objective of some flags, as training does."""

    def build(**options):
        options = parse(FlowOptions, place.flags("x", 1, **options))
        dataset, held_out = build_datasets(options)
        space = open_space(options, dataset, CPU)
        objective = build_objective(options, build_network(options, space, CPU), space)
        return options, dataset, held_out, space, objective

    return build
