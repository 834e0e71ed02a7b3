"""--validate_pipeline: what an output folder makes of a file, and who says so."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from tests.pipeline.files import copied, steps_of
from train_ddp import main
from wfimagevae.pipeline import run
from wfimagevae.pipeline.checks import load_pipeline
from wfimagevae.pipeline.document import PipelineError


def validate(place, content: dict) -> int:
    return main(["--pipeline", str(place.write(content)), "--validate_pipeline"])


def test_the_plan_of_a_resumed_pipeline_tells_where_its_steps_stand(place, done, capsys):
    content = copied(place, done, "resumed_plan")
    steps = Path(content["output"]["output_path"]) / "steps"
    shutil.rmtree(steps / "03_flow")
    (steps / "02_gan" / "checkpoint-6.ckpt").unlink()
    assert validate(place, content) == 0
    plan = capsys.readouterr().out
    assert f"1. warmup: finished, {steps}/01_warmup/checkpoint-5.ckpt" in plan
    assert f"goes on from {steps}/02_gan/checkpoint-4.ckpt" in plan
    assert "the VAE starts from nothing" not in plan
    assert "3. flow\n   trains flow" in plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: steps[1].update(lr=2e-3), "step 'gan'.*lr: 0.001 -> 0.002"),
        (
            lambda steps: steps.insert(1, {"name": "mid", "steps": 1, "train_vae": True}),
            "does not have at that place: 02_gan",
        ),
    ],
)
def test_validation_refuses_what_the_run_would(place, done, change, message, tmp_path):
    content = copied(place, done, tmp_path.name)
    change(steps_of(content))
    with pytest.raises(PipelineError, match=message):
        validate(place, content)


def test_one_process_tells_what_is_wrong_with_a_file(place, monkeypatch):
    content = place.content("ranks")
    content["output"]["log_intervall"] = 3
    path = str(place.write(content))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["--pipeline", path]) == 2
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(PipelineError, match="did you mean log_interval"):
        main(["--pipeline", path])


def test_an_output_that_cannot_be_written_is_told_to_all_processes(place, monkeypatch):
    told = []

    def full(content) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "vae.json")

    def broadcast(error):
        told.append(error)
        return error

    monkeypatch.setattr(run, "describe_plan", lambda loaded: [])
    monkeypatch.setattr(run, "write_configs", full)
    monkeypatch.setattr(run, "broadcast_object", broadcast)
    loaded = load_pipeline(place.write(place.content("full")))
    with pytest.raises(PipelineError, match=r"No space left on device: .vae\.json"):
        run.run_pipeline(loaded)
    assert len(told) == 1
