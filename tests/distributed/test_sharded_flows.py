"""MeanFlow of every registered kind of flow model, sharded on two ranks, against one process."""

import copy

import pytest
import torch

from tests.distributed.worker import on_ranks
from tests.model.flow.models import KINDS, small_model
from tests.task.training import largest_difference
from wfimagevae.engine.distributed import world
from wfimagevae.engine.optim import OptimizerOptions, build_optimizer
from wfimagevae.engine.player import Player, UpdateRule
from wfimagevae.engine.schedules import LrSchedule, ScheduleOptions
from wfimagevae.engine.sharding import shard, whole, whole_state
from wfimagevae.objective.flow_matching import FlowRules
from wfimagevae.objective.mean_flow import MeanFlow, MeanFlowRules, TargetGuidance

BATCH = 8


def network_of(kind, dtype=torch.float64):
    torch.manual_seed(0)
    options = {"dropout": 0.0} if kind == "UNet" else {}
    return small_model(kind, num_classes=5, average_velocity=True, **options).to(dtype)


def batch_of(network, step, rank, size):
    """This rank's share of the same eight samples."""
    generator = torch.Generator().manual_seed(step)
    dtype = next(network.parameters()).dtype
    data = torch.randn(BATCH, *network.sample_shape, generator=generator, dtype=dtype)
    labels = torch.randint(0, 5, (BATCH,), generator=generator)
    rows = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    positions = list(range(step * BATCH, (step + 1) * BATCH))
    return {"data": data[rows], "label": labels[rows], "position": positions[rows]}


def train(folder, sharded):
    """Two updates of every kind; saves the weights, which also load again."""
    torch.set_num_threads(1)
    with world("cpu") as here:
        for i, kind in enumerate(KINDS):
            network = network_of(kind)
            network.enable_gradient_checkpointing()
            if sharded:
                shard(network, network.blocks_to_shard(), here.device)
            rules = MeanFlowRules(ratio=0.5, guidance=TargetGuidance(1.5, 0.2), improved=True)
            flow = FlowRules(cfg_dropout_prob=0.2)
            objective = MeanFlow(network, lambda batch: batch["data"], flow, rules)
            optimizer = build_optimizer(OptimizerOptions("sgd", 0.1), [*network.parameters()])
            schedule = LrSchedule(ScheduleOptions())
            player = Player("flow", objective, optimizer, schedule, UpdateRule())
            for step in range(2):
                player.update([batch_of(network, step, here.rank, here.size)], step)
            weights = copy.deepcopy(whole_state(network.state_dict()))
            network.load_weights({name: torch.zeros_like(w) for name, w in weights.items()})
            network.load_weights(weights)
            again = whole_state(network.state_dict())
            assert largest_difference(weights, again) == 0
            if here.is_main:
                torch.save(weights, folder / f"{i}-{int(sharded)}.pt")


def gradients(file, sharded):
    """Saves the whole gradients of a transformer's first update in bfloat16."""
    torch.set_num_threads(1)
    with world("cpu") as here:
        network = network_of("DiT-S/2", torch.float32)
        if sharded:
            shard(network, network.blocks_to_shard(), here.device)
        objective = MeanFlow(
            network, lambda batch: batch["data"], FlowRules(), MeanFlowRules(ratio=0.5)
        )
        optimizer = build_optimizer(OptimizerOptions("sgd", 0.0), [*network.parameters()])
        schedule = LrSchedule(ScheduleOptions())
        player = Player("flow", objective, optimizer, schedule, UpdateRule("bf16"))
        player.update([batch_of(network, 0, here.rank, here.size)], 0)
        grads = {n: whole(p.grad) for n, p in network.named_parameters() if p.grad is not None}
        if here.is_main:
            torch.save(grads, file)


def test_bf16_gradients_of_all_blocks_arrive_in_their_own_update(tmp_path):
    gradients(tmp_path / "one.pt", False)
    on_ranks(2, gradients, tmp_path / "two.pt", True)
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("one", "two"))
    assert one.keys() == two.keys() == dict(network_of("DiT-S/2").named_parameters()).keys()
    for name, grad in one.items():
        assert (two[name] - grad).norm() < 0.05 * grad.norm(), name


@pytest.mark.slow
def test_every_flow_model_trains_sharded_as_in_one_process(tmp_path):
    train(tmp_path, False)
    on_ranks(2, train, tmp_path, True)
    for i, kind in enumerate(KINDS):
        one, two = (torch.load(tmp_path / f"{i}-{n}.pt", weights_only=True) for n in (0, 1))
        assert largest_difference(one, network_of(kind).state_dict()) > 1e-3
        assert largest_difference(one, two) < 1e-8, kind
