"""FSDP2 on two gloo processes against one process: same updates, interchangeable checkpoints."""

import errno
import os
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed import checkpoint as dcp
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from tests.distributed.worker import on_ranks
from tests.task.training import differences, largest_difference
from wfimagevae.engine.checkpoint import (
    collect,
    list_checkpoints,
    read_checkpoint,
    restore,
    whole_checkpoint,
    write_checkpoint,
)
from wfimagevae.engine.device import autocast
from wfimagevae.engine.distributed import World, barrier, cpu_group, gather_objects, world
from wfimagevae.engine.ema import Averages
from wfimagevae.engine.optim import OptimizerState
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.player import Player
from wfimagevae.engine.sharding import local, shard


class Network(nn.Module):
    """Two hidden blocks between an embedding and a head; 7 rows do not divide by 2 ranks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 7)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(7, 1)
        self.frozen = nn.Parameter(torch.ones(7), requires_grad=False)
        self.register_buffer("scale", torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) * self.frozen
        for block in self.blocks:
            if torch.is_grad_enabled():
                h = h + self.scale * checkpoint(block, h, use_reentrant=False)
            else:  # older versions of PyTorch have no forward derivative of a checkpoint
                h = h + self.scale * block(h)
        return self.head(h)


class Distillation(nn.Module):
    """Fits y, and a forward-mode derivative of the network's own along the way."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def begin_update(self) -> None:
        pass

    def forward(self, batch: dict, step: int):
        x = batch["x"]
        with torch.no_grad(), forward_ad.dual_level():
            moving = forward_ad.make_dual(x, torch.ones_like(x))
            slope = forward_ad.unpack_dual(self.network(moving)).tangent
        loss = (self.network(x) - batch["y"] - 0.1 * slope).square().mean()
        return loss, {"train/loss": loss.detach()}


@dataclass(frozen=True)
class Plan:
    """What to train."""

    optimizer: str = "adamw"
    steps: tuple[int, int] = (0, 4)
    micro: int = 1  # micro-batches of an update, on each rank
    precision: str = "fp32"
    clip_grad_norm: float = 0.1
    gathers: str = ""  # precision in which shards are gathered, if another
    nodes: bool = False
    dtype: torch.dtype = torch.float64
    load: Path | None = None  # checkpoint to go on from
    shards: Path | None = None  # folder to save to beside the file
    bad_step: int = -1  # update at which the last rank sees an infinity


def samples(plan: Plan, step: int, here: World) -> list[dict]:
    """This rank's micro-batches of the same eight samples."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3, generator=generator, dtype=plan.dtype)
    y = x.sum(1, keepdim=True).sin()
    if step == plan.bad_step:
        y[-1] = float("inf")
    shares = (values.to(here.device).chunk(here.size)[here.rank] for values in (x, y))
    x, y = (share.chunk(plan.micro) for share in shares)
    return [{"x": inputs, "y": targets} for inputs, targets in zip(x, y, strict=True)]


def train(plans: list[tuple[Plan, Path]], sharded: bool) -> None:
    """Carries out plans in this process, as one of a group where there is one."""
    torch.set_num_threads(1)
    with world("cpu") as here:
        for plan, result in plans:
            content = carry_out(plan, here, sharded)
            if here.is_main:
                write_checkpoint(result, content)


def train_on_nodes(plans: list[tuple[Plan, Path]]) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    train(plans, sharded=True)


def carry_out(plan: Plan, here: World, sharded: bool) -> dict:
    network = Network().to(here.device, plan.dtype)
    if sharded:
        shard(network, network.blocks, here.device, plan.gathers or plan.precision, plan.nodes)
    rule = {"mix_precision": plan.precision, "clip_grad_norm": plan.clip_grad_norm}
    rate = {"lr": 0.02, "lr_schedule": "linear", "warmup_steps": 1}
    options = TrainingOptions(optimizer=plan.optimizer, **rule, **rate)
    player = Player("toy", Distillation(network), options, blocks=network.blocks)
    player.plan_rest(20)
    player.ema = averages = Averages(network, [0.9, 0.5])
    parts = {
        "state_dict.gen_model": network,
        "optimizer_state.gen_optimizer": OptimizerState(player.optimizer),
        "player_state.toy": player,
    }
    parts |= averages.parts()
    if plan.load:
        barrier()  # another plan of this group may have written it
        restore(parts, read_checkpoint(plan.load))
    norms = [
        player.update(samples(plan, step, here), step)["grad_norm/toy"].item()
        for step in range(*plan.steps)
    ]
    with averages.applied(), torch.no_grad(), autocast(here.device, plan.precision):
        averaged = network(torch.ones(1, 3, dtype=plan.dtype, device=here.device))
    if plan.shards:
        content = collect(parts, shards=True, norms=norms, averaged=averaged)
        found = [local(x) for x in tree_leaves(content) if isinstance(x, Tensor)]
        content["copied"] = gather_objects(sum(x.nbytes for x in found))
        write_checkpoint(plan.shards, content, cpu_group(1))
    return collect(parts, here.is_main, norms=norms, averaged=averaged)


PLANS = {
    "adamw": Plan(),
    "sgd": Plan("sgd"),
    "rmsprop": Plan("rmsprop"),
    "adamw, infinity": Plan(bad_step=2),
    "sgd, infinity": Plan("sgd", bad_step=2),
    "bf16": Plan("sgd", precision="bf16", clip_grad_norm=1e9, dtype=torch.float32),
    "fp16": Plan("sgd", precision="fp16", clip_grad_norm=1e9, dtype=torch.float32),
}
if hasattr(torch.optim, "Muon"):
    PLANS["muon"] = Plan("muon")
EQUAL = [("adamw", "micro-two"), ("adamw", "from one-two"), ("adamw", "from two-two")]
EQUAL += [("adamw", "from two-one"), ("adamw", "nodes-four")]
EQUAL += [("adamw", f"from {way}") for way in ("shards-one", "shards-two", "shards-four")]
EQUAL += [("adamw", "from four's shards-two")]
for kind in ("adamw", "sgd", "rmsprop", "adamw, infinity", "sgd, infinity"):
    EQUAL.append((kind, f"{kind}-two"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of all plans, NAME-one.ckpt and NAME-two.ckpt for one process and two."""
    folder = tmp_path_factory.mktemp("sharded")

    def second_half(source):
        return Plan(steps=(2, 4), load=folder / f"first half-{source}.ckpt")

    train([(plan, folder / f"{name}-one.ckpt") for name, plan in PLANS.items()], False)
    half = folder / "first half-two.ckpt", folder / "first half-shards.ckpt"
    train([(Plan(steps=(0, 2)), folder / "first half-one.ckpt")], False)
    plans = [(plan, folder / f"{name}-two.ckpt") for name, plan in PLANS.items()]
    plans += [(Plan(micro=2), folder / "micro-two.ckpt")]
    exact = replace(PLANS["bf16"], gathers="fp32")
    plans += [(exact, folder / "bf16, gathered in fp32-two.ckpt")]
    plans += [(Plan(steps=(0, 2), shards=half[1]), half[0])]
    plans += [(second_half(s), folder / f"from {s}-two.ckpt") for s in ("one", "two", "shards")]
    on_ranks(2, train, plans, True)
    plans = [(Plan(nodes=True), folder / "nodes-four.ckpt")]
    plans += [(replace(second_half("shards"), nodes=True), folder / "from shards-four.ckpt")]
    file, shards = folder / "first half-four.ckpt", folder / "first half-four's shards.ckpt"
    plans += [(Plan(steps=(0, 2), nodes=True, shards=shards), file)]
    on_ranks(4, train_on_nodes, plans)
    plans = [(second_half("four's shards"), folder / "from four's shards-two.ckpt")]
    on_ranks(2, train, plans, True)
    for source in ("two", "shards"):
        train([(second_half(source), folder / f"from {source}-one.ckpt")], False)
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


@pytest.mark.parametrize(("name", "other"), EQUAL)
def test_sharded_ranks_equal_one_process_and_go_on_from_each_other(folder, name, other):
    alone, sharded = read(folder, f"{name}-one"), read(folder, other)
    assert alone["norms"][0] > 0.2  # clipping has something to do
    assert largest_difference(tensors(alone), tensors(sharded)) < 1e-8


@pytest.mark.parametrize(("ranks", "shards"), [("two", "shards"), ("four", "four's shards")])
def test_shards_hold_the_bits_of_the_whole_and_no_rank_copies_it(folder, ranks, shards):
    content = read_checkpoint(folder / f"first half-{shards}.ckpt")
    copied, whole = content.pop("copied"), read(folder, f"first half-{ranks}")
    assert not differences(content, whole)
    size = sum(x.nbytes for x in tree_leaves(whole) if isinstance(x, Tensor))
    assert max(copied) < 0.65 * size  # 4 of 7 rows


def test_going_on_from_shards_is_going_on_from_the_file(folder):
    for ranks in ("one", "two"):
        one, other = (read(folder, f"from {way}-{ranks}") for way in ("two", "shards"))
        assert not differences(one, other)


@pytest.mark.parametrize("name", ["adamw, infinity", "sgd, infinity"])
def test_an_infinity_on_one_rank_is_skipped_on_all(folder, name):
    skipped = read(folder, f"{name}-two")["player_state"]["toy"]["skipped"]
    assert skipped.tolist() == [1, 0]


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


def test_gathering_in_bf16_what_autocast_rounds_changes_no_bit(folder):
    rounded, exact = (read(folder, f"bf16{how}-two") for how in ("", ", gathered in fp32"))
    assert largest_difference(tensors(rounded), tensors(exact)) == 0


def test_sharded_fp16_finds_its_scale_and_trains(folder):
    content = read(folder, "fp16-two")
    state = content["player_state"]["toy"]
    assert state["scaler"]["scale"] == 2.0 ** (16 - state["skipped"][0].item())
    assert largest_difference(content["state_dict"]["gen_model"], Network().state_dict()) > 1e-2


def remove(path, values):
    path.unlink()


def cut(path, values):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path, values):
    data = bytearray(path.read_bytes())
    data[data.index(values.numpy().tobytes())] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [remove, cut, flip])
@pytest.mark.parametrize("name", ["__1_0.distcp", "facts.pt"])
def test_damaged_shards_are_named_and_passed_over(folder, tmp_path, caplog, name, damage):
    for step in (1, 2):
        shutil.copytree(folder / "first half-shards.ckpt", tmp_path / f"checkpoint-{step}.ckpt")
    before, last = list_checkpoints(tmp_path)
    content = read(folder, "first half-two")
    weight = content["state_dict"]["gen_model"]["embed.weight"]
    damage(last / name, content["averaged"] if name == "facts.pt" else weight[4:])
    assert whole_checkpoint(last) == before
    without_facts = name == "facts.pt" and damage is remove  # then it is a folder like any
    assert str(last if without_facts else last / name) in caplog.text


def killed(path: Path) -> None:
    """Saves shards of ones, and those of twos until a process is killed that had written half."""
    with world("cpu") as here:
        network, group = nn.Linear(64, 64), cpu_group(1)
        shard(network, (), here.device)
        for value in (1.0, 2.0):
            nn.init.constant_(network.weight, value)
            if value == 2:
                dcp.FileSystemWriter._write_data = half_written
            content = collect({"state_dict.x": network}, shards=True, value=value)
            write_checkpoint(path, content, group)


def half_written(writer, planner, files):
    path, _, items = files.get_nowait()
    torch.save(planner.resolve_data(items[0]), path)
    if path.name.startswith("__1"):
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError("the other process was faster")


def test_kill_9_during_a_save_of_shards_leaves_those_before(tmp_path):
    path = tmp_path / "checkpoint-1.ckpt"
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        on_ranks(2, killed, path)
    content = read_checkpoint(path)
    assert content["value"] == 1 and (content["state_dict"]["x"]["weight"] == 1).all()


def full(folder: Path) -> None:
    """The second process's disk is full once; each process tells what it heard."""
    with world("cpu") as here:
        network, group = nn.Linear(64, 64), cpu_group(1)
        shard(network, (), here.device)
        path, write = folder / "checkpoint-1.ckpt", dcp.FileSystemWriter.write_data

        def refuse(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        for is_full in (False, True, False):
            nn.init.constant_(network.weight, 2.0 + is_full)
            content = collect({"state_dict.x": network}, shards=True)
            dcp.FileSystemWriter.write_data = refuse if is_full and here.rank == 1 else write
            try:
                write_checkpoint(path, content, group)
            except OSError as error:
                (folder / f"heard-{here.rank}").write_text(str(error))
            barrier()  # as between two saves of a run
            assert os.listdir(folder).count(path.name) == len([*folder.glob("*checkpoint*")])
            found = read_checkpoint(path)["state_dict"]["x"]["weight"]
            assert (found == 2).all()
            barrier()


def test_a_full_disk_of_one_process_is_told_to_all_and_the_next_save_works(tmp_path):
    on_ranks(2, full, tmp_path)
    assert (
        read_checkpoint(tmp_path / "checkpoint-1.ckpt")["state_dict"]["x"]["weight"].sum() == 8192
    )
    for rank in range(2):
        heard = (tmp_path / f"heard-{rank}").read_text()
        assert "could not write" in heard and "checkpoint-1.ckpt: " in heard
        assert "No space left" in heard


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adamw", "bf16", "fp16"])
def test_shards_of_one_gpu_train_as_the_whole_network(name):
    here = World(0, 1, torch.device("cuda", 0))
    alone = carry_out(PLANS[name], here, sharded=False)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        sharded = carry_out(PLANS[name], here, sharded=True)
    finally:
        torch.distributed.destroy_process_group()
    alone, sharded = (
        {key: value.cpu() for key, value in tensors(content).items()}
        for content in (alone, sharded)
    )
    assert largest_difference(alone, sharded) < (1e-8 if name == "adamw" else 1e-3)
