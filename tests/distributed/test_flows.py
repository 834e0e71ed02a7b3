"""Flows on two ranks, replicated or sharded, against one process."""

import copy

import pytest
import torch

from tests.distributed.worker import on_ranks
from tests.model.flow.models import KINDS, TEXT_KINDS, small_model
from tests.objective.fields import plain
from tests.task.training import largest_difference
from wfimagevae.engine.distributed import world
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.player import Player
from wfimagevae.engine.sharding import shard, whole, whole_state
from wfimagevae.model.text import open_text_encoder
from wfimagevae.objective.flow_matching import FlowMatching
from wfimagevae.objective.mean_flow import MeanFlow

BATCH = 8
CAPTIONS = ("a red circle", "", "two blue", "b")
TEXT_CASES = list(zip(TEXT_KINDS, ("flow_matching", "mean_flow"), strict=True))


def network_of(kind, dtype=torch.float64):
    torch.manual_seed(0)
    options = {"dropout": 0.0} if kind == "UNet" else {}
    return small_model(kind, num_classes=5, average_velocity=True, **options).to(dtype)


def objective_of(name, network):
    options = plain(
        cfg_dropout_prob=0.4,
        meanflow_ratio=0.5,
        meanflow_omega=1.5,
        meanflow_kappa=0.2,
        meanflow_improved=True,
    )
    encoder = network.takes_text and open_text_encoder("bytes", "cpu", network.config.text_length)

    def condition(batch):
        return {"label": batch["label"]} | encoder(batch["caption"])

    kind = FlowMatching if name == "flow_matching" else MeanFlow
    told = condition if network.takes_text else None
    return kind(network, lambda batch: batch["data"], options, 0, told)


def batch_of(network, step, rank, size):
    """This rank's share of the same eight samples."""
    generator, dtype = torch.Generator().manual_seed(step), network.dtype
    data = torch.randn(BATCH, *network.sample_shape, generator=generator, dtype=dtype)
    labels = torch.randint(0, 5, (BATCH,), generator=generator)
    rows = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    positions = list(range(step * BATCH, (step + 1) * BATCH))
    captions = [CAPTIONS[position % len(CAPTIONS)] for position in positions]
    batch = {"data": data, "label": labels, "position": positions, "caption": captions}
    return {name: value[rows] for name, value in batch.items()}


def update(network, objective, here, lr, steps, precision="fp32"):
    options = TrainingOptions(optimizer="sgd", mix_precision=precision, clip_grad_norm=1e9)
    player = Player("flow", objective, options.changed(lr=lr))
    for step in range(steps):
        player.update([batch_of(network, step, here.rank, here.size)], step)


def train(folder, cases, ways):
    """Two updates of each case, replicated or sharded; saves the weights, which also load again."""
    torch.set_num_threads(1)
    with world("cpu") as here:
        for sharded, (kind, name) in [(way, case) for way in ways for case in cases]:
            network = network_of(kind)
            if sharded:
                network.enable_gradient_checkpointing()
                shard(network, network.blocks_to_shard(), here.device)
            update(network, objective_of(name, network), here, 0.1, 2)
            weights = copy.deepcopy(whole_state(network.state_dict()))
            network.load_weights({name: torch.zeros_like(w) for name, w in weights.items()})
            network.load_weights(weights)
            assert largest_difference(weights, whole_state(network.state_dict())) == 0
            if here.is_main:
                file = f"{kind.replace('/', '-')}-{here.size}-{sharded}.pt"
                torch.save(weights, folder / file)


def trained(folder, kind, ranks, sharded):
    file = f"{kind.replace('/', '-')}-{ranks}-{sharded}.pt"
    return torch.load(folder / file, weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    train(folder, TEXT_CASES, [False])
    on_ranks(2, train, folder, TEXT_CASES, [False, True])
    return folder


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_two_ranks_with_texts_equal_one_process(folder, kind, sharded):
    """DDP looks for no unused parameters; a rank's captions may all be dropped or empty."""
    one, two = trained(folder, kind, 1, False), trained(folder, kind, 2, sharded)
    start = network_of(kind).state_dict()
    reader = [key for key in start if key.startswith("text_encoder.")]
    assert largest_difference({k: one[k] for k in reader}, {k: start[k] for k in reader}) > 1e-6
    assert largest_difference(one, two) < 1e-8


@pytest.mark.slow
def test_mean_flow_of_every_model_trains_sharded_as_in_one_process(tmp_path):
    cases = [(kind, "mean_flow") for kind in KINDS]
    train(tmp_path, cases, [False])
    on_ranks(2, train, tmp_path, cases, [True])
    for kind in KINDS:
        one, two = trained(tmp_path, kind, 1, False), trained(tmp_path, kind, 2, True)
        assert largest_difference(one, network_of(kind).state_dict()) > 1e-3
        assert largest_difference(one, two) < 1e-8, kind


def gradients(file, sharded):
    """Saves the whole gradients of a transformer's first update in bfloat16."""
    torch.set_num_threads(1)
    with world("cpu") as here:
        network = network_of("DiT-S/2", torch.float32)
        if sharded:
            shard(network, network.blocks_to_shard(), here.device)
        objective = MeanFlow(network, lambda batch: batch["data"], plain(meanflow_ratio=0.5), 0)
        update(network, objective, here, 0.0, 1, "bf16")
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
