"""Pipelines that go on: what may have changed since, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.pipeline.files import (
    TINY_FLOW,
    TINY_VAE,
    copied,
    last_checkpoint,
    steps_of,
)
from tests.task.training import differences
from train_ddp import main
from wfimagevae.pipeline.document import PipelineError


def test_what_is_finished_is_not_trained_again(place, done):
    content = copied(place, done, "finished")
    output = Path(content["output"]["output_path"])
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*.ckpt")}
    place.run(content)
    assert stamps == {path: path.stat().st_mtime_ns for path in output.rglob("*.ckpt")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda steps: steps[0].update(kl_beta=1e-3),
            r"kl_weight: 0.0048\d* -> 0.048",
        ),
        (lambda steps: steps[1].update(lr=2e-3), "step 'gan'.*lr: 0.001 -> 0.002"),
        (lambda steps: steps[1].update(name="other"), "does not have at that place: 02_gan"),
        (lambda steps: steps.pop(0), "01_warmup, 02_gan, 03_flow"),
    ],
)
def test_a_file_that_changed_for_finished_steps_is_refused(place, done, change, message, tmp_path):
    content = copied(place, done, tmp_path.name)
    change(steps_of(content))
    with pytest.raises(PipelineError, match=message):
        main(["--pipeline", str(place.write(content))])


def unfinished(content: dict, name: str = "gan", step: int = 4) -> Path:
    """Takes the end of a step, and all after it, away from a copy; its folder."""
    output = Path(content["output"]["output_path"])
    (folder,) = output.glob(f"steps/*_{name}")
    for later in [f for f in output.glob("steps/*") if f.name > folder.name]:
        shutil.rmtree(later)
    assert folder / f"checkpoint-{step}.ckpt" in list(folder.glob("checkpoint-*"))
    for path in folder.glob("checkpoint-*"):
        if path.name != f"checkpoint-{step}.ckpt":
            path.unlink()
    return folder


@pytest.mark.parametrize("stands", ["is finished", "has begun"])
def test_another_network_is_refused_and_nothing_is_written(place, done, stands, tmp_path):
    content = copied(place, done, tmp_path.name)
    if stands == "has begun":
        unfinished(content, "warmup")
    kept = Path(content["output"]["output_path"]) / "model" / "vae.json"
    before = kept.read_bytes()
    content["model"]["vae"]["config"] = TINY_VAE | {"activation": "relu"}
    with pytest.raises(PipelineError, match=f"'warmup' {stands} .*activation: silu -> relu"):
        main(["--pipeline", str(place.write(content))])
    assert kept.read_bytes() == before


def test_a_file_of_the_same_configuration_is_the_same_network(place, done):
    content = copied(place, done, "same network")
    path = place.folder / "network.json"
    path.write_text(json.dumps(TINY_VAE | {"activation": "silu"}))  # silu is the default
    content["model"]["vae"]["config"] = str(path)
    place.run(content)
    path.write_text(json.dumps(TINY_VAE | {"activation": "relu"}))
    with pytest.raises(PipelineError, match="activation: silu -> relu"):
        main(["--pipeline", str(place.write(content))])


def test_another_flow_is_refused(place, done):
    content = copied(place, done, "another flow")
    content["model"]["flow"]["config"] = TINY_FLOW | {"depth": 2}
    with pytest.raises(PipelineError, match=r"'flow' is finished .*depth: 1 -> 2"):
        main(["--pipeline", str(place.write(content))])


def test_another_optimizer_for_a_step_that_has_begun_is_refused(place, done):
    content = copied(place, done, "optimizer")
    folder = unfinished(content)
    sgd = {"optimizers": {"discriminator": {"type": "SGD"}}}
    steps_of(content)[1]["optimization"] = sgd
    message = f"'gan' has begun.*discriminator_options: adamw -> sgd.*move {folder} away"
    with pytest.raises(PipelineError, match=message):
        main(["--pipeline", str(place.write(content))])


def test_how_a_step_was_validated_may_change(place, done):
    content = copied(place, done, "validated")
    content["data"]["eval_data_path"] = str(place.folder / "train")
    steps_of(content)[0]["options"] = {"eval_steps": 100}
    steps_of(content)[2]["options"] = {"sampling_steps": 3, "eval_num_samples": 2}
    place.run(content)


def test_validation_that_moved_a_learning_rate_may_not_change(place):
    content = place.content("plateau")
    del steps_of(content)[1:]
    steps_of(content)[0]["options"] = {"eval_steps": 4}
    plateau = {"schedulers": {"vae": {"type": "ReduceLROnPlateau"}}}
    steps_of(content)[0]["optimization"] = plateau
    place.run(content)
    steps_of(content)[0]["options"] = {"eval_steps": 3}
    with pytest.raises(PipelineError, match="eval_steps: 4 -> 3"):
        main(["--pipeline", str(place.write(content))])


def test_an_output_that_was_moved_goes_on(place, done, monkeypatch):
    content = copied(place, done, "moved")
    folder = unfinished(content, "flow")
    monkeypatch.chdir(place.folder)
    content["output"]["output_path"] = "./moved"
    measured = (folder / "autoencoder" / "measured.json").stat().st_mtime_ns
    output = place.run(content)
    assert measured == (folder / "autoencoder" / "measured.json").stat().st_mtime_ns
    found = differences(last_checkpoint(output, "flow"), last_checkpoint(done[1], "flow"))
    assert found == ["/generator/vae/source"]  # its folder


def test_a_step_made_shorter_than_it_is_ends_where_it_stands(place, done):
    content = copied(place, done, "shorter")
    unfinished(content)
    steps_of(content)[1]["steps"] = 3
    output = place.run(content)
    assert last_checkpoint(output, "gan")["current_step"] == 4
    assert last_checkpoint(output, "flow")["finished"]
    place.run(content)


def test_the_summary_tells_where_a_killed_step_stands(place, monkeypatch):
    content = place.content("summary")
    monkeypatch.setattr("wfimagevae.engine.run.write_checkpoint", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit):
        main(["--pipeline", str(place.write(content))])
    summary = Path(content["output"]["output_path"]) / "graph" / "training_summary.txt"
    assert summary.read_text().startswith("warmup\n  steps 2, epoch 1")
    assert "gan\n  not begun" in summary.read_text()


def test_later_steps_and_what_changes_no_result_may_change(place, done):
    content = copied(place, done, "longer")
    content["training"]["workers"] = 1
    content["output"]["checkpoint_save_interval"] = 3
    steps_of(content).append({"name": "flow2", "steps": 1, "train_diff": True})
    output = place.run(content)
    assert last_checkpoint(output, "flow2")["finished"]
    assert last_checkpoint(output, "flow2")["player_state"]["flow"]["ema_updates"] == 7


def test_a_step_taken_away_asks_for_its_followers_too(place, done):
    content = copied(place, done, "hole")
    shutil.rmtree(Path(content["output"]["output_path"]) / "steps" / "02_gan")
    with pytest.raises(PipelineError, match="holds 03_flow, trained from what 02_gan was"):
        main(["--pipeline", str(place.write(content))])
