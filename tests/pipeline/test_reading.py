"""What is wrong with a pipeline file: everything at once, by line, before torch is imported."""

import re
import subprocess
import sys

import pytest
import yaml

from tests.pipeline.files import PipelinePlace
from tests.task.training import ROOT
from wfimagevae.pipeline.document import PipelineError, read_document
from wfimagevae.pipeline.loading import load_pipeline

PLAIN = """\
data: {data_path: .}
training:
  lr: 1e-4
  pipeline:
    steps:
      - name: vae
        n_epochs: 2
        train_vae: true
"""


@pytest.fixture
def load(tmp_path):
    def load(text: str):
        path = tmp_path / "file.yaml"
        path.write_text(text)
        return load_pipeline(path)

    return load


def problems(load, text: str) -> dict[int, list[str]]:
    """Line -> what is wrong in it."""
    with pytest.raises(PipelineError) as caught:
        load(text)
    found: dict[int, list[str]] = {}
    for entry in str(caught.value).splitlines()[1:]:
        line, _, message = entry.strip().partition(": ")
        found.setdefault(int(line.removeprefix("line ")), []).append(message)
    return found


def with_step(extra: str, before: str = "", mode: str = "train_vae: true") -> str:
    """A file whose one step has further keys; they begin in line 8."""
    text = PLAIN.replace("        train_vae: true\n", f"        {extra}\n        {mode}\n")
    return before + text


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
    ("step", "message"),
    [
        ("train_diff: true", "trains the VAE and the flow at once.*write two steps"),
        ("freeze: [compressor, expander]", "freezes and trains decoder, encoder"),
        ("cfg_dropout_prob: 0.1", "cfg_dropout_prob is for flow steps"),
        ("lambda_adv: 0.5", "no effect without gan_training: true"),
        ("adaptive_weights: true", "means nothing here.*adaptive_weight"),
        ("training_steps: 2", "repeats each batch"),
        ("steps: 100", "n_epochs or steps, not both"),
        ("use_fp16: true\n        precision: bf16", "say the same"),
        ("train_spade: soon", "must be true or false, got 'soon'"),
        ("optimization: {optimizers: {flow: {type: Adam}}}", "flow is not trained in a vae step"),
        ("optimization: {optimizers: {vae: {eps: 0.1}}}", "eps 0.1 of vae: every optimizer"),
        ("optimization: {schedulers: {vae: {type: MultiStepLR}}}", "must be 'CosineAnnealingLR'"),
        ("optimization: {schedulers: {vae: {total_iters: 9}}}", "ends with its step"),
        ("options: {image_path: 3, lr: low}", "--lr: 'low' is not a number above 0"),
        ("batch_size: 0", "must be greater than 0, got 0"),
    ],
)
def test_a_step_that_cannot_be_meant_is_refused(load, step, message):
    found = problems(load, with_step(step))
    assert any(re.search(message, told) for lines in found.values() for told in lines), found


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        ("mode: loss_threshold, metric: kl_loss", "threshold and max_epochs missing"),
        ("mode: loss_threshold, metric: d_loss, threshold: 1, max_epochs: 2", "no d_loss.*gan_tr"),
        ("mode: loss_threshold, metric: vae_loss, threshold: -1, max_epochs: 2", "never below 0"),
        ("mode: loss_threshold, metric: vae_loss, threshold: 1, max_epochs: 9", "n_epochs 2 ends"),
        ("mode: epoch, metric: vae_loss", "no effect in mode epoch"),
    ],
)
def test_a_transition_that_cannot_happen_is_refused(load, transition, message):
    found = problems(load, with_step(f"transition_on: {{{transition}}}"))
    assert any(re.search(message, told) for lines in found.values() for told in lines), found


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
