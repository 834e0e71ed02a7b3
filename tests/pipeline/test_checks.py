"""What steps cannot mean, whatever their keys and types: refused before torch is imported."""

import re

import pytest
import yaml

from tests.pipeline.files import PLAIN, problems, with_step

OWN = "mode: loss_threshold, threshold: 1, max_epochs: 2, metric:"


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
        ("optimization: {schedulers: {vae: {type: ExponentialLR}}}", "vae needs gamma"),
        ("optimization: {schedulers: {vae: {type: StepLR}}}", "vae needs step_size"),
        ("optimization: {schedulers: {vae: {type: plateau}}}", "waits for validations.*has none"),
        ("options: {disc_lr_ratio: low}", "--disc_lr_ratio: 'low' is not a number"),
        ("options: {lr: 1e-3}", "lr in options.*write lr"),
        ("options: {kl_weight: 1e-6}", "write kl_beta"),
        ("options: {batch_size: 3, epochs: 2}", "epochs in options.*write n_epochs"),
        ("options: {freeze_encoder: true}", "write train_vae: decoder"),
        ("options: {disc_weight: 0.5}", "write gan_training: true with it"),
        (
            "gan_training: true\n        lambda_adv: 1\n        options: {disc_weight: 2}",
            "lambda_adv",
        ),
        ("options: {ckpt_dir: elsewhere}", "write output.output_path"),
        ("options: {resume_from_checkpoint: x}", "the same command goes on"),
        ("options: {lpips_weights: nowhere.pth}", "lpips_weights nowhere.pth does not exist"),
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
        (f"{OWN} train/typo", "unknown metric 'train/typo'"),
        (f"{OWN} train/logit_real", "did you mean 'train/logits_real'"),
        (f"{OWN} train/direction_loss", "unknown metric"),
        (f"{OWN} train/g_loss", "no train/g_loss, which needs gan_training"),
    ],
)
def test_a_transition_that_cannot_happen_is_refused(load, transition, message):
    found = problems(load, with_step(f"transition_on: {{{transition}}}"))
    assert any(re.search(message, told) for lines in found.values() for told in lines), found


@pytest.mark.parametrize(
    ("metric", "needs", "remedy"),
    [
        ("train/mmd_loss", "mmd_weight", "options: {mmd_weight: 1}"),
        ("train/wl_loss", "wavelet_loss", "options: {wavelet_loss: true}"),
        (
            "train/histogram_loss_per_pixel",
            "histogram_weight",
            "options: {histogram_weight: 1}",
        ),
        ("train/kl_free_share", "kl_free_bits", "kl_free_bits: 0.1"),
        ("train/kl_weight", "kl_warmup_steps", "kl_warmup_steps: 3"),
        ("train/d_weight", "gan_training", "gan_training: true"),
        ("train/logits_fake", "gan_training", "gan_training: true"),
        ("train/r1_penalty", "r1_gamma", "gan_training: true\n        r1_gamma: 1"),
        ("lpips_loss", "use_lpips", "use_lpips: true"),
    ],
)
def test_a_transition_waits_for_nothing_that_the_step_does_not_log(load, metric, needs, remedy):
    waits = f"transition_on: {{{OWN} {metric}}}"
    (told,) = problems(load, with_step(waits))[8]
    assert told.startswith(f"unreachable: this step logs no {metric}, which needs ")
    assert needs in told
    load(with_step(f"{waits}\n        {remedy}"))


def test_errors_of_average_velocities_are_logged_by_mean_flow_alone(load):
    waits = f"transition_on: {{{OWN} train/error}}"
    found = problems(load, with_step(waits, mode="train_diff: true"))
    assert "which needs options: {objective: mean_flow}" in found[8][0]
    load(with_step(f"{waits}\n        options: {{objective: mean_flow}}", mode="train_diff: true"))


def test_an_adversarial_weight_that_is_not_adaptive_needs_no_decoder(load):
    half = PLAIN + "      - {name: half, n_epochs: 1, train_vae: encoder, gan_training: true"
    assert "adaptive weight" in problems(load, half + "}\n")[9][0]
    for constant in ("adaptive_weight: false", "no_adaptive_weight: true"):
        load(f"{half}, options: {{{constant}}}}}\n")


def test_shared_keys_that_no_step_reads_are_refused(load):
    text = """\
data: {data_path: .}
training:
  lambda_lpips: 2
  cache_latents: false
  pipeline:
    defaults:
      r1_gamma: 3
      cfg_dropout_prob: 0.1
      kl_beta: 1e-4
    steps:
      - {name: vae, n_epochs: 1, train_vae: true}
"""
    found = problems(load, text)
    assert list(found) == [3, 7, 8]
    assert "no step reads lambda_lpips, which has no effect without use_lpips" in found[3][0]
    assert "no step reads r1_gamma, which has no effect without gan_training" in found[7][0]
    assert "no step reads cfg_dropout_prob, which is for flow steps" in found[8][0]
    more = (
        "      - {name: gan, n_epochs: 1, train_vae: true, gan_training: true, use_lpips: true}\n"
    )
    load(text + more + "      - {name: flow, n_epochs: 1, train_diff: true}\n")


def test_shared_options_cannot_beat_keys(load):
    shared = PLAIN.replace("  lr: 1e-4\n", "  lr: 1e-4\n  options: {lr: 1e-3, disc_weight: 0.5}\n")
    found = problems(load, shared)[4]
    assert any("write lr" in told for told in found)
    assert any("options of a step with gan_training" in told for told in found)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[{train_vae: decoder}]", "leaves the encoder as it was made"),
        ("[{train_vae: true}, {train_diff: true, freeze: [text_encoder]}]", "leaves the text_enco"),
        (
            "[{train_vae: true}, {train_diff: true, options: {freeze_flow: true}}]",
            "leaves the flow",
        ),
        (
            "[{train_vae: true, gan_training: true, options: {freeze_discriminator: true}}]",
            "leaves the discriminator",
        ),
        ("[{train_vae: true}, {train_vae: encoder, gan_training: true}]", "give lambda_adv"),
    ],
)
def test_random_weights_are_not_frozen(load, steps, message):
    listed = yaml.safe_load(steps)
    named = [{"name": f"s{i}", "n_epochs": 1} | step for i, step in enumerate(listed)]
    content = yaml.safe_load(PLAIN) | {"model": {"text_encoder": "bytes"}}
    content["training"] = {"lr": 1e-4, "pipeline": {"steps": named}}
    found = problems(load, yaml.safe_dump(content))
    assert [told for lines in found.values() for told in lines if message in told], found
    assert sum(map(len, found.values())) == 1


def test_networks_that_were_trained_may_be_frozen(load):
    steps = [
        {"name": "vae", "train_vae": True, "gan_training": True},
        {"name": "half", "train_vae": "decoder"},
        {"name": "flow", "train_diff": True},
        {"name": "more", "train_diff": True, "freeze": ["text_encoder"]},
    ]
    content = yaml.safe_load(PLAIN) | {"model": {"text_encoder": "bytes"}}
    content["training"] = {"lr": 1e-4, "n_epochs": 1, "pipeline": {"steps": steps}}
    assert [step.trained for step in load(yaml.safe_dump(content)).steps[1:]] == [
        {"decoder"},
        {"flow", "text_encoder"},
        {"flow"},
    ]
