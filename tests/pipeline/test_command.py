"""Flags beside --pipeline, and the schema by which editors check such files."""

import json

import pytest

from tests.pipeline.files import PLAIN, options_of
from train_ddp import main
from wfimagevae.pipeline.checks import load_pipeline
from wfimagevae.pipeline.fluxflow import OPTIONS
from wfimagevae.pipeline.plan import describe_plan

STEPS = """\
data: {data_path: .}
training:
  batch_size: 8
  device: cuda
  pipeline:
    defaults: {lr: 1e-4, batch_size: 9, options: {disc_num_layers: 3}}
    steps:
      - name: vae
        n_epochs: 2
        train_vae: true
        batch_size: 10
        optimization: {optimizers: {vae: {lr: 1e-3}}}
      - {name: flow, steps: 3, train_diff: true, options: {sampling_steps: 5}}
output: {log_interval: 50}
"""


def test_flags_win_over_the_whole_file_in_the_steps_that_have_them(tmp_path, monkeypatch):
    path = tmp_path / "file.yaml"
    path.write_text(STEPS)
    loaded = []

    def keep(*arguments):
        loaded.append(load_pipeline(*arguments))
        return loaded[-1]

    monkeypatch.setattr("wfimagevae.pipeline.command.load_pipeline", keep)
    monkeypatch.setattr("wfimagevae.pipeline.plan.describe_plan", lambda pipeline: [])
    flags = "--batch_size 2 --device cpu --lr=3e-4 --disc_num_layers 1 --sampling_steps 4"
    flags += " --log_steps 5 --epochs 1 --no_ema --resolution 64"
    assert main(["--pipeline", str(path), "--validate_pipeline", *flags.split()]) == 0
    (pipeline,) = loaded
    vae, flow = (options_of(pipeline, index) for index in (0, 1))
    assert pipeline.content.training.device == "cpu"
    for options in (vae, flow):
        assert (options.batch_size, options.device, options.lr) == (2, "cpu", 3e-4)
        assert (options.log_steps, options.csv_log_steps) == (5, 5)
        assert (options.epochs, options.max_steps, options.ema) == (1, None, False)
    assert (vae.disc_num_layers, flow.sampling_steps) == (1, 4)
    assert {step.size for step in pipeline.steps} == {64} == {vae.resolution, flow.resolution}


def test_the_plan_names_the_flags_that_win(place):
    flags = {"batch_size": 1, "sampling_steps": 4}
    plan = describe_plan(load_pipeline(place.write(place.content("over")), flags))
    assert plan[1] == (
        "over the file, from the command line: --batch_size 1 (all steps); "
        "--sampling_steps 4 (flow)"
    )
    assert "1 x 1 x 1 = 1 images" in "\n".join(plan)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--exp_name x", "--exp_name does not go with --pipeline: in the file, write output.out"),
        ("--image_path x", "in the file, write data.data_path, or a data set's image_folder"),
        ("--resume_from_checkpoint auto", "the same command goes on where it stopped"),
        ("--task flow", "in the file, write train_vae, gan_training or train_diff"),
        ("--kl_weight 1", "in the file, write kl_beta"),
        ("--no_adaptive_weight", "--adaptive_weight does not go with --pipeline"),
        ("--lr fast", "argument --lr: 'fast' is not a number above 0"),
        ("--bach_size 2", "unknown flag --bach_size; did you mean --batch_size?"),
        ("--validate_pipelines", "unknown flag --validate_pipelines; did you mean --validate_pi"),
    ],
)
def test_flags_that_cannot_be_of_all_steps_are_refused_by_name(
    load, tmp_path, capsys, flags, message
):
    load(PLAIN)
    with pytest.raises(SystemExit):
        main(["--pipeline", str(tmp_path / "file.yaml"), *flags.split()])
    assert message in capsys.readouterr().err


def test_a_flag_that_no_step_has_is_refused(load, tmp_path):
    load(PLAIN)
    with pytest.raises(ValueError, match="--validate_pipeline goes with --pipeline FILE"):
        main(["--validate_pipeline"])
    with pytest.raises(ValueError, match=r"--sampler: no step of .* has that flag"):
        main(["--pipeline", str(tmp_path / "file.yaml"), "--sampler", "euler"])


def test_the_schema_has_every_key_and_the_flags_that_options_take(capsys):
    assert main(["--print_schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    sections = schema["$defs"]
    step = sections["StepSection"]
    assert {"kl_beta", "name", "options", "transition_on"} <= step["properties"].keys()
    assert step["properties"]["lr"]["anyOf"][0]["exclusiveMinimum"] == 0
    assert step["properties"]["lr"]["description"].startswith("--lr: peak learning rate")
    options = step["properties"]["options"]["properties"]
    assert {"disc_start", "sampler", "disc_weight"} <= options.keys()
    assert not {"lr", "kl_weight", "exp_name"} & options.keys()  # keys decide these
    assert "disc_weight" not in sections["Settings"]["properties"]["options"]["properties"]
    assert not options.keys() - {flag for cls in OPTIONS.values() for flag in cls.by_flag()}
