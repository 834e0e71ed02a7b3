"""Pipelines that go on: what may have changed since, what is refused, and who says so."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.pipeline.files import TINY_VAE, changed, copied, last_checkpoint, steps_of
from tests.task.training import differences
from wfimagevae.engine.checkpoint import write_checkpoint
from wfimagevae.pipeline import run
from wfimagevae.pipeline.checks import load_pipeline
from wfimagevae.pipeline.steps import PipelineError


@pytest.fixture
def content(place, done, tmp_path):
    """A copy of the finished pipeline, to go on with."""
    return copied(place, done, tmp_path.name)


def output_of(content: dict) -> Path:
    return Path(content["output"]["output_path"])


def unfinished(content: dict, name: str = "gan", step: int = 4) -> Path:
    """Takes the end of a step, and all after it, away from a copy; its folder."""
    (folder,) = output_of(content).glob(f"steps/*_{name}")
    for later in [f for f in output_of(content).glob("steps/*") if f.name > folder.name]:
        shutil.rmtree(later)
    assert folder / f"checkpoint-{step}.ckpt" in list(folder.glob("checkpoint-*"))
    for path in folder.glob("checkpoint-*"):
        if path.name != f"checkpoint-{step}.ckpt":
            path.unlink()
    return folder


ANOTHER_VAE = {"model.vae.config.activation": "relu"}
SGD = {"optimizers": {"discriminator": {"type": "SGD"}}}


@pytest.mark.parametrize(
    ("cut", "values", "message"),
    [
        (None, {"steps.0.kl_beta": 1e-3}, r"kl_beta, as kl_weight: 0.0048\d* -> 0.048"),
        (None, {"steps.1.lr": 2e-3}, "step 'gan' is finished.*lr: 0.001 -> 0.002"),
        (None, {"steps.2.steps": 9}, "'flow' is finished.* steps: 6 -> 9.* append a step"),
        (None, {"steps.1.name": "other"}, "does not have at that place: 02_gan"),
        (None, {"steps.0": None}, "01_warmup, 02_gan, 03_flow"),
        (None, ANOTHER_VAE, "'warmup' is finished .*activation: silu -> relu"),
        ("warmup", ANOTHER_VAE, "'warmup' has begun .*activation: silu -> relu"),
        (None, {"model.flow.config.depth": 2}, "'flow' is finished .*depth: 1 -> 2"),
        (
            "gan",
            {"steps.1.optimization": SGD},
            "'gan' has begun.*discriminator_options: adamw -> sgd.*move .*02_gan away",
        ),
    ],
)
def test_a_file_that_changed_for_what_was_trained_is_refused(place, content, cut, values, message):
    if cut:
        unfinished(content, cut)
    assert_refused(place, changed(content, values), message)


def test_a_step_whose_basis_is_gone_is_refused(place, content):
    shutil.rmtree(output_of(content) / "steps" / "02_gan")
    assert_refused(place, content, "holds 03_flow, trained from what 02_gan was")


def assert_refused(place, content: dict, message: str) -> None:
    """Neither validation nor training takes the file, and both leave its output as it is."""
    kept = {path: path.stat().st_mtime_ns for path in output_of(content).rglob("*.*")}
    place.refuses(content, message)
    with pytest.raises(PipelineError, match=message):
        place.run(content)
    assert kept == {path: path.stat().st_mtime_ns for path in output_of(content).rglob("*.*")}


def test_what_is_finished_is_not_trained_again(place, content):
    checkpoints = sorted(output_of(content).rglob("*.ckpt"))
    stamps = [path.stat().st_mtime_ns for path in checkpoints]
    path = place.folder / "network.json"
    path.write_text(json.dumps(TINY_VAE | {"activation": "silu"}))  # silu is the default
    content["model"]["vae"]["config"] = str(path)
    place.run(content)
    assert sorted(output_of(content).rglob("*.ckpt")) == checkpoints
    assert stamps == [path.stat().st_mtime_ns for path in checkpoints]
    path.write_text(json.dumps(TINY_VAE | {"activation": "relu"}))
    place.refuses(content, "activation: silu -> relu")


def test_how_a_step_was_validated_or_compiled_may_change(place, content):
    content["data"]["eval_data_path"] = str(place.folder / "train")
    steps_of(content)[0]["options"] = {"eval_steps": 100, "compile": False}
    steps_of(content)[2]["options"] = {"sampling_steps": 3, "eval_num_samples": 2}
    place.run(content)


def test_validation_that_moved_a_learning_rate_may_not_change(place):
    content = place.content("plateau")
    del steps_of(content)[1:]
    plateau = {"schedulers": {"vae": {"type": "ReduceLROnPlateau"}}}
    steps_of(content)[0] |= {"options": {"eval_steps": 4}, "optimization": plateau}
    place.run(content)
    place.refuses(changed(content, {"steps.0.options.eval_steps": 3}), "eval_steps: 4 -> 3")


def test_an_output_that_was_moved_goes_on(place, content, done, monkeypatch):
    folder = unfinished(content, "flow")
    monkeypatch.chdir(place.folder)
    content["output"]["output_path"] = f"./{output_of(content).name}"
    measured = (folder / "autoencoder" / "measured.json").stat().st_mtime_ns
    output = place.run(content)
    assert measured == (folder / "autoencoder" / "measured.json").stat().st_mtime_ns
    found = differences(last_checkpoint(output, "flow"), last_checkpoint(done[1], "flow"))
    assert found == ["/generator/vae/source"]  # its folder


def test_a_step_made_shorter_than_it_is_ends_where_it_stands(place, content):
    unfinished(content)
    steps_of(content)[1]["steps"] = 3
    steps = output_of(content) / "steps"
    plan = place.plan(content)
    assert f"1. warmup: finished, {steps}/01_warmup/checkpoint-5.ckpt" in plan
    assert f"goes on from {steps}/02_gan/checkpoint-4.ckpt" in plan
    assert "the VAE starts from nothing" not in plan and "3. flow\n   trains flow" in plan
    output = place.run(content)
    assert last_checkpoint(output, "gan")["current_step"] == 4
    assert last_checkpoint(output, "flow")["finished"]
    place.run(content)


def test_the_summary_tells_where_a_killed_step_stands(place, monkeypatch):
    content = place.content("summary")
    writes = iter([write_checkpoint, lambda *_: sys.exit("killed")])  # before and after samples
    monkeypatch.setattr("wfimagevae.engine.run.write_checkpoint", lambda *a: next(writes)(*a))
    with pytest.raises(SystemExit):
        place.run(content)
    summary = output_of(content) / "graph" / "training_summary.txt"
    assert summary.read_text().startswith("warmup\n  steps 2, epoch 1")
    assert "gan\n  not begun" in summary.read_text()


def test_later_steps_and_what_changes_no_result_may_change(place, content):
    content["training"]["workers"] = 1
    content["output"]["checkpoint_save_interval"] = 3
    steps_of(content).append({"name": "flow2", "steps": 1, "train_diff": True})
    output = place.run(content)
    assert last_checkpoint(output, "flow2")["finished"]
    assert last_checkpoint(output, "flow2")["player_state"]["flow"]["ema_updates"] == 7


def test_an_output_that_cannot_be_written_is_told_to_all_processes(place, monkeypatch):
    told = []

    def full(pipeline) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "vae.json")

    monkeypatch.setattr(run, "describe_plan", full)
    monkeypatch.setattr(run, "broadcast_object", lambda error: told.append(error) or error)
    with pytest.raises(PipelineError, match=r"No space left on device: .vae\.json"):
        run.run_pipeline(load_pipeline(place.write(place.content("full"))))
    assert len(told) == 1
