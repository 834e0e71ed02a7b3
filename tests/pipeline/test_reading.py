"""What is wrong with a pipeline file: everything at once, by line, before torch is imported."""

import re
import subprocess
import sys

import pytest
import yaml

from tests.pipeline.files import PLAIN, PipelinePlace, problems, with_step
from tests.task.training import ROOT
from wfimagevae.pipeline.document import PipelineError, read_document
from wfimagevae.pipeline.flags import parse_flags, step_flags


def test_a_plain_file_is_right(load):
    (step,) = load(PLAIN).steps
    assert step.settings.lr == 1e-4  # YAML 1.1 alone would read text
    assert (step.task, step.trained) == ("vae", {"encoder", "decoder"})


def test_everything_wrong_is_told_at_once_with_its_line(load):
    text = """\
model:
  vae_dim: 128
  vae: {config: nowhere.json}
data:
  data_path: nowhere
  img_size: big
training:
  lr: fast
  batch_sise: 3
  pipeline:
    default_dataset: photo
    datasets: {photos: {image_folder: .}}
    steps:
      - name: one
        n_epochs: 1
        train_vae: true
        freeze: [expander]
      - name: one
        n_epochs: 1.5
        train_diff: true
        dataset: photo
      - name: three
        train_vae: true
        optimization: {optimizers: {vae: {type: Adagrad}}}
        transition_on: {mode: loss_threshold, metric: kl_los, threshold: 1, max_epochs: 2}
        options: {disc_losss: hinge, rec_weight: -1}
"""
    expected = {
        2: "model.vae_dim means nothing here.*model.vae.config",
        3: "config nowhere.json does not exist",
        5: "data_path nowhere does not exist",
        6: "data.img_size must be a whole number, got 'big'",
        8: "training.lr must be a number, got 'fast'",
        9: "unknown key training.batch_sise; did you mean 'batch_size'",
        11: "unknown dataset 'photo'; did you mean 'photos'",
        17: "freezes and trains decoder.*train_vae: decoder",
        18: "'one' is taken by the step of line 14",
        19: r"steps\[2\].n_epochs must be a whole number, got 1.5",
        21: "unknown dataset 'photo'; did you mean 'photos'",
        24: "must be 'AdamW'.*got 'Adagrad'",
        25: "unknown metric 'kl_los'; did you mean 'kl_loss'",
        26: "no flag disc_losss; did you mean 'disc_loss'",
    }
    found = problems(load, text)
    assert found.keys() >= expected.keys()
    for line, message in expected.items():
        assert any(re.search(message, told) for told in found[line]), (line, found[line])
    assert any("--rec_weight: -1 is not a number of at least 0" in told for told in found[26])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("{type: CosineAnnealingLR}", {"lr_schedule": "cosine", "min_lr_ratio": 0.1}),
        ("{type: LinearLR, end_factor: 0.3}", {"lr_schedule": "linear", "min_lr_ratio": 0.3}),
        ("{type: StepLR, step_size: 30}", {"lr_gamma": 0.1, "lr_step_updates": 30}),
        ("{type: ExponentialLR, gamma: 0.99}", {"lr_gamma": 0.99, "lr_step_updates": 1}),
        ("{type: ReduceLROnPlateau}", {"lr_gamma": 0.1, "plateau_patience": 10}),
        ("{type: cosine}", {"lr_schedule": "cosine", "min_lr_ratio": 0}),
    ],
)
def test_a_schedule_by_its_torch_name_has_the_documented_values(load, schedule, expected):
    text = with_step(f"optimization: {{schedulers: {{vae: {schedule}}}}}")
    options = options_of(load(text.replace("{data_path: .}", "{data_path: ., eval_data_path: .}")))
    assert {name: options[name] for name in expected} == expected


def test_what_fluxflow_files_leave_out_means_what_it_means_there(load):
    options = options_of(load(with_step("use_fp16: false")))
    assert (options["grad_accum_steps"], options["mix_precision"]) == (1, "fp32")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("webdataset_caption_key: prompt", "json:prompt"),
        ("webdataset_label_key: json", "json:prompt"),
        ("webdataset_caption_key: txt", "txt"),
        ("webdataset_image_key: png", "txt"),
    ],
)
def test_captions_of_shards_are_fields_of_their_json(load, keys, expected):
    data = f"use_webdataset: true, webdataset_url: x*.tar, {keys}"
    text = with_step("lr: 1e-4", "model: {text_encoder: bytes}\n", "train_diff: true")
    loaded = load(text.replace("data_path: .", data))
    assert options_of(loaded)["wds_caption_key"] == expected


def options_of(loaded) -> dict:
    """Of the training that the first step means."""
    step = loaded.steps[0]
    flags, _ = step_flags(step, loaded.content, loaded.document, loaded.parsers)
    return parse_flags(loaded.parsers[step.task], flags).values()


def test_a_flat_file_is_one_step(load):
    text = """\
model:
  vae_dim: 128
data: {data_path: .}
training:
  n_epochs: 100
  lr: 0.00001
  train_vae: true
  gan_training: true
"""
    assert "model.vae_dim means nothing here" in problems(load, text)[2][0]
    (step,) = load(text.replace("  vae_dim: 128\n", "  text_encoder: null\n")).steps
    assert (step.settings.n_epochs, step.settings.lr) == (100, 1e-5)
    assert step.trained == {"encoder", "decoder", "discriminator"}
    without = "data: {data_path: .}\ntraining:\n  n_epochs: 100\n"
    assert "training.pipeline.steps: [{name" in problems(load, without)[2][0]


def test_a_flat_file_is_checked_as_its_step_would_be(load):
    text = """\
data: {data_path: .}
training:
  steps: 5
  lr: 1e-5
  train_vae: true
  lambda_adv: 0.3
  cfg_dropout_prob: 0.2
  optimization:
    optimizers:
      flow: {type: Adam}
  options: {resolution: 64, batch_size: 3, bogus: 1}
"""
    expected = {
        6: "lambda_adv has no effect without gan_training: true",
        7: "cfg_dropout_prob is for flow steps",
        10: "flow is not trained in a vae step",
        11: "no flag bogus",
    }
    found = problems(load, text)
    assert list(found) == list(expected)
    for line, message in expected.items():
        assert any(message in told for told in found[line]), (line, found[line])
    (step,) = load("".join(text.splitlines(keepends=True)[:5])).steps
    assert (step.name, step.settings.steps, step.settings.lr) == ("train", 5, 1e-5)


def test_a_flow_on_latents_of_an_untrained_vae_is_refused(load):
    found = problems(
        load, with_step("lr: 1e-3", "model: {vae: {config: {}}}\n", "train_diff: true")
    )
    assert "latents of a VAE that nothing trained" in found[1][0]


def test_a_bare_list_of_steps_is_told_how_to_be_written(load):
    text = "training:\n  pipeline:\n    - name: one\n"
    assert "write its steps under a key: pipeline: {steps:" in problems(load, text)[2][0]
    flat = "batch_size: 3\nlr: 1e-4\n"
    assert "pipeline.steps is missing" in problems(load, flat)[1][0]


def test_a_key_given_twice_and_broken_yaml_are_told_by_line(load):
    found = problems(load, PLAIN + "        n_epochs: 3\n")
    assert "given twice, first in line 7" in found[9][0]
    with pytest.raises(PipelineError, match="line 2: not YAML"):
        load("data: [1\ntraining: }\n")
    with pytest.raises(PipelineError, match="cannot be read: No such file"):
        read_document("nowhere.yaml")


def test_defaults_reach_into_nested_keys_and_steps_win(load):
    text = """\
model: {vae: {pretrained: someone/vae}}
data: {data_path: .}
training:
  lr: 1e-4
  batch_size: 3
  pipeline:
    defaults:
      lr: 2e-4
      freeze: [compressor]
      optimization: {optimizers: {vae: {type: SGD, momentum: 0.5}}}
    steps:
      - {name: a, n_epochs: 1, train_vae: decoder}
      - name: b
        n_epochs: 1
        train_vae: true
        unfreeze: [encoder]
        lr: 3e-4
        optimization: {optimizers: {vae: {momentum: 0.7}}}
"""
    first, second = load(text).steps
    assert (first.settings.lr, first.settings.batch_size) == (2e-4, 3)
    assert first.trained == {"decoder"}
    assert second.settings.lr == 3e-4
    assert second.trained == {"encoder", "decoder"}
    optimizer = second.settings.optimization.optimizers.vae
    assert (optimizer.type, optimizer.momentum) == ("SGD", 0.7)


def test_keys_of_the_other_kind_of_data_are_refused(load):
    text = """\
data: {data_path: ., use_webdataset: true, webdataset_url: "*.tar", captions_file: sidecar}
training:
  pipeline:
    datasets:
      web: {type: webdataset, webdataset_url: "*.tar", image_folder: .}
      near: {image_folder: ., webdataset_url: "*.tar", fixed_prompt_prefix: a drawing of}
    steps:
      - {name: one, n_epochs: 1, train_vae: true}
      - {name: two, n_epochs: 1, train_diff: true, cache_latents: true}
output: {sample_captions: [a fox], test_image_address: .}
"""
    found = problems(load, text)
    expected = {
        1: ["data_path has no effect with", "captions_file has no effect with"],
        5: ["image_folder has no effect with type: webdataset"],
        6: ["webdataset_url has no effect without type", "fixed_prompt_prefix has no effect"],
        9: ["cache_latents takes one folder"],
        10: ["sample_captions has no effect without text_encoder", "is a folder; name images"],
    }
    for line, messages in expected.items():
        for message in messages:
            assert any(message in told for told in found[line]), (message, found)


def test_data_that_no_step_takes_is_refused(load):
    text = """\
data: {data_path: ., img_size: 64, fixed_prompt_prefix: a drawing of}
model: {text_encoder: bytes}
training:
  pipeline:
    default_dataset: near
    datasets:
      near: {image_folder: .}
    steps:
      - {name: one, n_epochs: 1, train_vae: true}
"""
    found = problems(load, text)
    assert list(found) == [1], found
    assert "data_path has no effect: every step takes its data from" in found[1][0]
    load(text.replace("    default_dataset: near\n", ""))


def test_a_mistake_is_told_once_without_its_consequences(load):
    text = PLAIN.replace("name: vae", "name: a vae").replace("n_epochs: 2", "n_epochs: two")
    found = problems(load, text.replace("train_vae: true", "train_vae: all"))
    assert {line: len(told) for line, told in found.items()} == {6: 1, 7: 1, 8: 1}
    twice = problems(load, PLAIN + "        train_vae: true\n")
    assert "training.pipeline.steps[1].train_vae is given twice" in twice[9][0]
    short = with_step("optimization: {optimizers: {vae: {betas: [0.9]}}}")
    assert "must be a list of at least 2, got [0.9]" in problems(load, short)[8][0]


def test_validation_imports_no_torch(tmp_path):
    place = PipelinePlace(tmp_path)
    content = place.content("out")
    content["training"]["pipeline"]["steps"][0]["lrr"] = 3
    path = place.write(content)
    code = (
        "import sys\n"
        "from wfimagevae.pipeline.loading import load_pipeline\n"
        "try:\n    load_pipeline(sys.argv[1])\n"
        "except ValueError as error:\n    print(error)\n"
        "print({'torch', 'numpy', 'diffusers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(path)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "did you mean 'lr'" in output
    assert output.splitlines()[-1] == "set()"
    assert yaml.safe_load(path.read_text()) == content
