"""FSDP2 on two gloo processes against one process: same updates, interchangeable checkpoints."""

import pytest
import torch

from tests.distributed.sharded import Network, Plan, train
from tests.distributed.worker import on_ranks
from tests.task.training import largest_difference
from wfimagevae.engine.sharding import shard

PLANS = {
    "adamw": Plan(),
    "sgd": Plan("sgd"),
    "rmsprop": Plan("rmsprop"),
    "adamw, infinity": Plan(bad_step=2),
    "sgd, infinity": Plan("sgd", bad_step=2),
    "bf16": Plan("sgd", precision="bf16", clip_grad_norm=1e9, dtype=torch.float32),
    "fp16": Plan("sgd", precision="fp16", clip_grad_norm=1e9, dtype=torch.float32),
    "first half": Plan(steps=(0, 2)),
}
if hasattr(torch.optim, "Muon"):
    PLANS["muon"] = Plan("muon")
EXACT = ["adamw", "sgd", "rmsprop", "adamw, infinity", "sgd, infinity"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of all plans, NAME-one.ckpt and NAME-two.ckpt for one process and two."""
    folder = tmp_path_factory.mktemp("sharded")

    def second_half(source):
        return Plan(steps=(2, 4), load=folder / f"first half-{source}.ckpt")

    train([(plan, folder / f"{name}-one.ckpt") for name, plan in PLANS.items()], False)
    plans = [(plan, folder / f"{name}-two.ckpt") for name, plan in PLANS.items()]
    plans += [(Plan(micro=2), folder / "micro-two.ckpt")]
    plans += [(second_half(s), folder / f"from {s}-two.ckpt") for s in ("one", "two")]
    on_ranks(2, train, plans, True)
    train([(second_half("two"), folder / "from two-one.ckpt")], False)
    return folder


def read(folder, name):
    return torch.load(folder / f"{name}.ckpt", weights_only=True)


def tensors(content):
    """Weights, averages and moments of a checkpoint, and what the averaged network said."""
    found = {"averaged": content["averaged"], "last norm": torch.tensor(content["norms"][-1])}
    groups = {
        "weights": content["state_dict"]["gen_model"],
        "first average": content["ema_state_dict"],
        "second average": content["other_ema_state_dicts"]["0.5"]["average"],
        **content["optimizer_state"]["gen_optimizer"]["state"],
    }
    for group, entries in groups.items():
        found |= {f"{group} {name}": value for name, value in entries.items()}
    return found


@pytest.mark.parametrize("name", EXACT)
def test_two_sharded_ranks_equal_one_process(folder, name):
    alone, sharded = read(folder, f"{name}-one"), read(folder, f"{name}-two")
    assert alone["norms"][0] > 0.2  # clipping has something to do
    assert largest_difference(tensors(alone), tensors(sharded)) < 1e-8


def test_accumulating_on_sharded_ranks_equals_one_batch(folder):
    alone, sharded = read(folder, "adamw-one"), read(folder, "micro-two")
    assert largest_difference(tensors(alone), tensors(sharded)) < 1e-8


@pytest.mark.parametrize("name", ["adamw, infinity", "sgd, infinity"])
def test_an_infinity_on_one_rank_is_skipped_on_all(folder, name):
    skipped = read(folder, f"{name}-two")["player_state"]["toy"]["skipped"]
    assert skipped.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["from one-two", "from two-two", "from two-one"])
def test_checkpoints_pass_between_one_process_and_sharded_ranks(folder, name):
    whole, resumed = read(folder, "adamw-one"), read(folder, name)
    assert largest_difference(tensors(whole), tensors(resumed)) < 1e-8


@pytest.mark.skipif("muon" not in PLANS, reason="torch before 2.9")
def test_muon_orthogonalises_the_whole_matrices_of_sharded_weights(folder):
    one, two = (read(folder, f"muon-{n}")["state_dict"]["gen_model"] for n in ("one", "two"))
    start = Network().state_dict()
    for name in ("blocks.0.0.weight", "blocks.1.0.weight"):
        moved = (one[name] - start[name]).norm()
        # It computes in bfloat16, which alone makes 0.1; each shard by itself would make 0.5.
        assert (one[name] - two[name]).norm() < 0.2 * moved


def test_bf16_shards_stay_close_to_one_process(folder):
    alone, sharded = (read(folder, f"bf16-{n}") for n in ("one", "two"))
    assert sharded["norms"] == pytest.approx(alone["norms"], rel=1e-2)
    one, two = (content["state_dict"]["gen_model"] for content in (alone, sharded))
    assert {value.dtype for value in two.values()} == {torch.float32}
    assert largest_difference(one, two) < 1e-3  # they move by 1e-2


def test_sharded_fp16_finds_its_scale_and_trains(folder):
    content = read(folder, "fp16-two")
    state = content["player_state"]["toy"]
    assert state["scaler"]["scale"] == 2.0 ** (16 - state["skipped"][0].item())
    assert largest_difference(content["state_dict"]["gen_model"], Network().state_dict()) > 1e-2


def test_sharding_without_a_process_group_is_refused():
    network = Network()
    with pytest.raises(ValueError, match="--fsdp needs several processes"):
        shard(network, network.blocks, torch.device("cpu"))
