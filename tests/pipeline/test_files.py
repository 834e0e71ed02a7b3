"""What is wrong with a pipeline file: everything at once, by line, before torch is imported."""

import re
import subprocess
import sys

import pytest

from tests.pipeline.files import PLAIN, changed, options_of, problems, with_step
from tests.task.training import ROOT
from wfimagevae.pipeline.steps import PipelineError, read_document

WAITS = "transition_on: {mode: loss_threshold, threshold: 1, max_epochs: 2, metric: "
BYTES, UNTRAINED = "model: {text_encoder: bytes}\n", "model: {vae: {config: {}}}\n"
GAN = "train_vae: true, gan_training: true"
# Two files, and by line all that is wrong in them.
FULL_OF_MISTAKES = """\
model:
  vae_dim: 128                  # means nothing here.*model.vae.config
  vae: {config: nowhere.json}   # config nowhere.json does not exist
data:
  data_path: nowhere            # data_path nowhere does not exist
  img_size: big                 # data.img_size: 'big' is not a whole number
  channels: 4                   # data.channels: invalid choice: 4 .choose from 3
training:
  lr: fast                      # training.lr: 'fast' is not a number above 0
  batch_sise: 3                 # unknown key training.batch_sise; did you mean batch_size
  pipeline:
    default_dataset: photo      # unknown dataset 'photo'; did you mean photos
    datasets: {photos: {image_folder: .}}
    steps:
      - name: one
        n_epochs: 1
        train_vae: true
        freeze: [expander]      # freezes and trains decoder.*train_vae: decoder
      - name: one               # 'one' is taken by the step of line 15
        n_epochs: 1.5           # steps.2..n_epochs: 1.5 is not a whole number
        train_diff: true
        dataset: photo          # unknown dataset 'photo'; did you mean photos
      - name: three
        train_vae: true
        optimization: {optimizers: {vae: {type: Adagrad}}}      # 'Adagrad' .choose from AdamW
        transition_on: {mode: loss_threshold, metric: kl_los, threshold: 1, max_epochs: 2} # kl_loss
        options: {disc_losss: hinge, rec_weight: -1} # -1 is not a number of at least 0
"""
FLAT = """\
data: {data_path: .}
training:
  steps: 5
  lr: 1e-5
  train_vae: true
  lambda_adv: 0.3               # lambda_adv has no effect without gan_training: true
  cfg_dropout_prob: 0.2         # cfg_dropout_prob is for flow steps
  optimization:
    optimizers:
      flow: {type: Adam}        # flow is not trained in a vae step
  options: {resolution: 64, batch_size: 3, bogus: 1} # no flag bogus
"""
OTHER_KIND_OF_DATA = """\
data: {data_path: ., use_webdataset: true, webdataset_url: "*.tar"} # data_path: no effect with
training:
  pipeline:
    datasets:
      web: {type: webdataset, webdataset_url: "*.tar", image_folder: .} # no effect with type: web
      near: {image_folder: ., webdataset_url: "*.tar"} # webdataset_url: no effect without type
      far: {image_folder: ., fixed_prompt_prefix: a} # prefix, sample_captions: .*model.text_enco
    steps:
      - {name: one, n_epochs: 1, train_vae: true}
      - {name: two, n_epochs: 1, train_diff: true, cache_latents: true} # takes one folder
output:
  sample_captions: [a fox]
  test_image_address: .         # is a folder; name images
  sample_sizes:
    - 64
    - 2x                        # output.sample_sizes: '2x' is not 512, 768x512 or
    - [64, 0]                   # output.sample_sizes: .64, 0. is not 512, 768x512 or
"""
NOT_TAKEN = """\
data: {data_path: ., img_size: 64, fixed_prompt_prefix: a drawing of} # data_path has no effect: ev
model: {text_encoder: bytes}
training:
  pipeline:
    default_dataset: near
    datasets:
      near: {image_folder: .}
    steps:
      - {name: one, n_epochs: 1, train_vae: true}
"""
NOT_READ = """\
data: {data_path: .}
training:
  lambda_lpips: 2               # no step reads lambda_lpips, which has no effect without use_lpips
  cache_latents: false
  options: {lr: 1e-3}           # lr in options.*write lr
  pipeline:
    defaults:
      r1_gamma: 3               # no step reads r1_gamma, which has no effect without gan_training
      cfg_dropout_prob: 0.1     # no step reads cfg_dropout_prob, which is for flow steps
      kl_beta: 1e-4
      options: {disc_weight: 1} # options of a step with gan_training
    steps:
      - {name: vae, n_epochs: 1, train_vae: true}
"""
TOLD_AT_ONCE = [FULL_OF_MISTAKES, FLAT, OTHER_KIND_OF_DATA, NOT_READ, NOT_TAKEN]


@pytest.mark.parametrize("text", TOLD_AT_ONCE)
def test_everything_wrong_is_told_at_once_with_its_line(load, text):
    lines = enumerate(text.splitlines(), 1)
    expected = {n: line.split("# ")[1] for n, line in lines if "# " in line}
    found = problems(load, text)
    assert found.keys() == expected.keys(), found
    for line, message in expected.items():
        assert any(re.search(message, told) for told in found[line]), (line, found[line])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("train_diff: true", "trains the VAE and the flow at once.*write two steps"),
        ("freeze: [compressor, expander]", "freezes and trains decoder, encoder"),
        ("train_diff_full: true\n        train_diff: true", "are the same here"),
        ("adaptive_weights: true", "means nothing here.*adaptive_weight"),
        ("training_steps: 2", "repeats each batch"),
        ("steps: 100", "n_epochs or steps, not both"),
        ("use_fp16: true\n        precision: bf16", "say the same"),
        ("train_spade: soon", "train_spade: is a switch, write true or false, not 'soon'"),
        (
            "optimization: {optimizers: {vae: {eps: 0.1}}}",
            "vae.eps: invalid choice: 0.1 .choose from 1e-08",
        ),
        ("optimization: {optimizers: {vae: {type: SGD, betas: [0.1, 0.2]}}}", "has no betas"),
        ("optimization: {optimizers: {vae: {betas: [0.9]}}}", "not a list of two numbers"),
        ("optimization: {optimizers: {vea: {eps: 0.1}}}", "unknown key.*vea; did you mean vae"),
        ("optimization: {schedulers: {vae: {type: MultiStepLR}}}", "from CosineAnnealingLR, Lin"),
        (
            "optimization: {schedulers: {vae: {total_iters: 9}}}",
            "total_iters means nothing here: leave out",
        ),
        ("optimization: {schedulers: {vae: {type: ExponentialLR}}}", "vae needs gamma"),
        ("optimization: {schedulers: {vae: {type: StepLR}}}", "vae needs step_size"),
        ("optimization: {schedulers: {vae: {type: plateau}}}", "waits for validations.*has none"),
        ("options: {no_disc_start: 5}", "no flag no_disc_start; did you mean disc_start"),
        ("options: {disc_lr_ratio: low}", "disc_lr_ratio: 'low' is not a number"),
        ("options: {kl_weight: 1e-6}", "write kl_beta"),
        ("options: {batch_size: 3, epochs: 2}", "epochs in options.*write n_epochs"),
        ("options: {freeze_encoder: true}", "write train_vae: decoder"),
        ("options: {disc_weight: 0.5}", "write gan_training: true with it"),
        ("gan_training: true\n        lambda_adv: 1\n        options: {disc_weight: 2}", "lambda_"),
        ("options: {ckpt_dir: elsewhere}", "write output.output_path"),
        ("options: {resume_from_checkpoint: x}", "the same command goes on"),
        ("options: {lpips_weights: nowhere.pth}", "lpips_weights nowhere.pth does not exist"),
        ("batch_size: 0", "batch_size: 0 is not a whole number of at least 1"),
        ("transition_on: {mode: loss_threshold, metric: kl_loss}", "threshold and max_epochs mis"),
        (f"{WAITS.replace('1', '-1')}vae_loss}}", "never below 0"),
        (f"{WAITS.replace('2', '9')}vae_loss}}", "n_epochs 2 ends"),
        ("transition_on: {mode: epoch, metric: vae_loss}", "no effect in mode epoch"),
    ],
)
def test_a_step_that_cannot_be_meant_is_refused(load, step, message):
    found = problems(load, with_step(step))
    assert any(re.search(message, told) for lines in found.values() for told in lines), found


def test_what_is_learned_may_be_frozen_and_what_a_step_reads_may_be_shared(load):
    text = """\
model: {text_encoder: bytes}
data: {data_path: .}
training:
  n_epochs: 1
  lambda_lpips: 2
  r1_gamma: 3
  lr: 1e-3
  cfg_dropout_prob: 0.1
  pipeline:
    steps:
      - {name: vae, train_vae: true, gan_training: true, use_lpips: true, lr: null}
      - {name: half, train_vae: decoder, options: {adaptive_weight: false}}
      - {name: other, train_vae: encoder, gan_training: true, options: {no_adaptive_weight: true}}
      - {name: flow, train_diff: true}
      - {name: more, train_diff: true, freeze: [text_encoder]}
"""
    with pytest.raises(PipelineError, match="write gan_training: true with it"):
        load(text)
    pipeline = load(text.replace(", options: {adaptive_weight: false}", ""))
    # What a step does not read does not reach it, and null takes what is inherited away.
    shared = [(options_of(pipeline, i).r1_weight, options_of(pipeline, i).lr) for i in (0, 1)]
    assert shared == [(3 / 16, 1e-5), (0, 1e-3)]
    assert [step.trained for step in pipeline.steps[1:]] == [
        {"decoder"},
        {"encoder", "discriminator"},
        {"flow", "text_encoder"},
        {"flow"},
    ]


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
    assert {name: getattr(options, name) for name in expected} == expected


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
    text = with_step("lr: 1e-4", BYTES, "train_diff: true").replace("data_path: .", data)
    assert options_of(load(text)).wds_caption_key == expected


def test_a_plain_file_is_right_and_flat_or_not_means_the_same(load):
    (step,) = load(PLAIN).steps
    assert step.settings.lr == 1e-4  # YAML 1.1 alone would read text
    assert (step.task, step.trained) == ("vae", {"encoder", "decoder"})
    (flat,) = load("".join(FLAT.splitlines(keepends=True)[:5])).steps
    assert (flat.name, flat.settings.steps, flat.settings.lr) == ("train", 5, 1e-5)
    assert flat.trained == step.trained
    load(NOT_TAKEN.replace("    default_dataset: near\n", ""))  # then a step reads data
    # What FluxFlow's files leave out means what it means there.
    options = options_of(load(with_step("use_fp16: false")))
    assert (options.grad_accum_steps, options.mix_precision) == (1, "fp32")


def then(step: str, first: str = "train_vae: true") -> str:
    """A file of two steps, the second in line 10."""
    text = BYTES + PLAIN.replace("train_vae: true", first)
    return f"{text}      - {{name: then, n_epochs: 1, {step}}}\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        # Random weights are not frozen, and no loss is without a gradient.
        (PLAIN.replace("true", "decoder"), 6, "leaves the encoder as it was made"),
        (then("train_diff: true, freeze: [text_encoder]"), 10, "leaves the text_encoder as it"),
        (then("train_diff: true, options: {freeze_flow: true}"), 10, "leaves the flow as it was"),
        (then(f"{GAN}, options: {{freeze_discriminator: true}}"), 10, "leaves the discriminator"),
        (
            then("train_vae: encoder, gan_training: true"),
            10,
            "last layer, which train_vae: encoder freezes",
        ),
        ("training:\n  pipeline:\n    - name: one\n", 2, "[{'name': 'one'}] is not keys and val"),
        ("batch_size: 3\nlr: 1e-4\n", 1, "pipeline.steps: [{name"),
        ("data: {data_path: .}\ntraining:\n  n_epochs: 100\n", 2, "pipeline.steps: [{name"),
        (PLAIN + "        n_epochs: 3\n", 9, "n_epochs is given twice, first in line 7"),
        (with_step("lr: 1e-3", UNTRAINED, "train_diff: true"), 1, "VAE that nothing trained"),
        (PLAIN.replace("name: vae", "name: a vae"), 6, "'a vae' is not a name of at most 60 let"),
        (PLAIN.replace("n_epochs: 2", "n_epochs: two"), 7, "'two' is not a whole number"),
        (PLAIN.replace("train_vae: true", "train_vae: all"), 8, "'all' is not true, false, enco"),
    ],
)
def test_a_mistake_is_told_once_without_its_consequences(load, text, line, message):
    found = problems(load, text)
    assert [(at, len(told)) for at, told in found.items()] == [(line, 1)]
    assert message in found[line][0]


def test_what_cannot_be_read_is_told_by_line(load):
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
    assert (first.trained, second.trained) == ({"decoder"}, {"encoder", "decoder"})
    options = options_of(load(text), 1)
    assert (options.lr, options.optimizer, options.momentum) == (3e-4, "sgd", 0.7)


def test_validation_imports_no_torch(place):
    path = place.write(changed(place.content("no_torch"), {"steps.0.lrr": 3}))
    code = (
        "import sys\n"
        "from wfimagevae.pipeline.checks import load_pipeline\n"
        "try:\n    load_pipeline(sys.argv[1])\n"
        "except ValueError as error:\n    print(error)\n"
        "print({'torch', 'numpy', 'diffusers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(path)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "did you mean lr?" in output
    assert output.splitlines()[-1] == "set()"
