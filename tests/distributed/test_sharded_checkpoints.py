"""Checkpoints in shards of trainings by torchrun: equal to whole ones, read like files."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from save_hf_model import main as export

from tests.task.training import FlowPlace, differences
from wfimagevae.engine.checkpoint import list_checkpoints, read_checkpoint
from wfimagevae.model.flow.velocity_model import VelocityModel

OPTIONS = {"fsdp": True, "ema": True, "eval_steps": 2, "save_ckpt_step": 2, "lr": 1e-2}
SHARDS = OPTIONS | {"fsdp_checkpoints": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = FlowPlace(tmp_path_factory.mktemp("shards"))
    place.torchrun("whole", 4, **OPTIONS)
    folder = place.torchrun("shards", 4, **SHARDS)
    # As if it had been killed after step 2, and begun to write another checkpoint.
    shutil.rmtree(folder / "checkpoint-4.ckpt")
    (folder / ".checkpoint-4.ckpt.new.tmp").mkdir()
    place.torchrun("shards", 4, resume_from_checkpoint="auto", **SHARDS)
    return place


def test_shards_hold_the_state_of_a_whole_file_and_resume_to_the_bit(place):
    shards, whole = (place.run_folder(name) for name in ("shards", "whole"))
    assert [path.is_dir() for path in list_checkpoints(shards)] == [True, True]
    for name in ("checkpoint-2.ckpt", "checkpoint-4.ckpt", "best-energy-distance.ckpt"):
        one, other = (read_checkpoint(folder / name) for folder in (shards, whole))
        assert not differences(one, other)
    assert not [path for path in shards.iterdir() if "tmp" in path.name or "super" in path.name]


def test_one_process_goes_on_from_shards(place):
    source = place.run_folder("shards") / "checkpoint-4.ckpt"
    folder = place.train("alone", 5, resume_from_checkpoint=source, ema=True)
    content, before = read_checkpoint(folder / "checkpoint-5.ckpt"), read_checkpoint(source)
    states = [c["optimizer_state"]["gen_optimizer"]["state"][0] for c in (content, before)]
    assert [state["step"].item() for state in states] == [5, 4]
    assert 0 < (states[0]["exp_avg_sq"] - states[1]["exp_avg_sq"]).abs().max() < 1e-1
    count = content["player_state"]["flow"]["ema_updates"]
    assert count == before["player_state"]["flow"]["ema_updates"] + 1


def ends(folder):
    return read_checkpoint(list_checkpoints(folder)[-1])


def test_weights_are_read_from_shards(place, tmp_path):
    shards, whole = (place.run_folder(name) for name in ("shards", "whole"))
    for source in ("", "checkpoint-2.ckpt"):
        models = [VelocityModel.from_pretrained(run / source) for run in (shards, whole)]
        assert not differences(*(model.state_dict() for model in models))
    export(["--from_pretrained", str(shards), "--save_dir", str(tmp_path / "export")])
    (file,) = (tmp_path / "export").rglob("*.safetensors")
    assert not differences(
        load_file(file), dict(read_checkpoint(list_checkpoints(whole)[-1])["ema_state_dict"])
    )
    start = place.train("start", 1, weights_from=shards / "checkpoint-4.ckpt", lr=1e-12)
    found = read_checkpoint(start / "checkpoint-1.ckpt")["state_dict"]["gen_model"]
    for name, value in ends(whole)["state_dict"]["gen_model"].items():
        torch.testing.assert_close(found[name], value)
