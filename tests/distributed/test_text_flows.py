"""Flows that read texts, replicated and sharded on two ranks, against one process."""

import copy

import pytest
import torch

from tests.distributed.worker import on_ranks
from tests.model.flow.models import TEXT_KINDS, small_model
from tests.task.training import largest_difference
from wfimagevae.engine.distributed import world
from wfimagevae.engine.optim import OptimizerOptions, build_optimizer
from wfimagevae.engine.player import Player, UpdateRule
from wfimagevae.engine.schedules import LrSchedule, ScheduleOptions
from wfimagevae.engine.sharding import shard, whole_state
from wfimagevae.model.text import open_text_encoder
from wfimagevae.objective.flow_matching import FlowMatching, FlowRules
from wfimagevae.objective.mean_flow import MeanFlow, MeanFlowRules, TargetGuidance

BATCH = 8
CAPTIONS = ("a red circle", "", "two blue", "b")
CASES = list(zip(TEXT_KINDS, ("flow_matching", "mean_flow"), strict=True))


def network_of(kind):
    torch.manual_seed(0)
    return small_model(kind, num_classes=5, average_velocity=True).double()


def objective_of(name, network):
    encoder = open_text_encoder("bytes", "cpu", network.config.text_length)

    def condition(batch):
        return {"label": batch["label"]} | encoder(batch["caption"])

    flow = FlowRules(cfg_dropout_prob=0.4)
    if name == "flow_matching":
        return FlowMatching(network, lambda batch: batch["data"], flow, condition)
    rules = MeanFlowRules(ratio=0.5, guidance=TargetGuidance(1.5, 0.2), improved=True)
    return MeanFlow(network, lambda batch: batch["data"], flow, rules, condition)


def batch_of(network, step, rank, size):
    """This rank's share of the same eight samples."""
    generator = torch.Generator().manual_seed(step)
    data = torch.randn(BATCH, *network.sample_shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (BATCH,), generator=generator)
    rows = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    positions = list(range(step * BATCH, (step + 1) * BATCH))
    captions = [CAPTIONS[position % len(CAPTIONS)] for position in positions]
    batch = {"data": data, "label": labels, "position": positions, "caption": captions}
    return {name: value[rows] for name, value in batch.items()}


def train(folder, ways):
    """Two updates of each case, replicated or sharded; saves the weights."""
    torch.set_num_threads(1)
    with world("cpu") as here:
        for sharded in ways:
            for i, (kind, name) in enumerate(CASES):
                weights = _train(network_of(kind), name, here, sharded)
                if here.is_main:
                    torch.save(weights, folder / f"{i}-{here.size}-{sharded}.pt")


def _train(network, name, here, sharded):
    if sharded:
        network.enable_gradient_checkpointing()
        shard(network, network.blocks_to_shard(), here.device)
    optimizer = build_optimizer(OptimizerOptions("sgd", 0.1), [*network.parameters()])
    objective, schedule = objective_of(name, network), LrSchedule(ScheduleOptions())
    player = Player("flow", objective, optimizer, schedule, UpdateRule())
    for step in range(2):
        player.update([batch_of(network, step, here.rank, here.size)], step)
    return copy.deepcopy(whole_state(network.state_dict()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    train(folder, [False])
    on_ranks(2, train, folder, [False, True])
    return folder


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_ranks_equal_one_process(folder, case, sharded):
    """DDP looks for no unused parameters; a rank's captions may all be dropped or empty."""
    one, two = (
        torch.load(folder / f"{case}-{ranks}-{how}.pt", weights_only=True)
        for ranks, how in ((1, False), (2, sharded))
    )
    start = network_of(CASES[case][0]).state_dict()
    reader = [key for key in start if key.startswith("text_encoder.")]
    assert largest_difference({k: one[k] for k in reader}, {k: start[k] for k in reader}) > 1e-6
    assert largest_difference(one, two) < 1e-8
