"""Optional terms and frozen halves, as users switch them on."""

import json
import logging

import pytest

from tests.images import TINY_MODEL
from tests.task.training import differences, largest_difference, load, rows
from wfimagevae.model.losses import LossConfig, LPIPSWithDiscriminator2D
from wfimagevae.task.vae import VaeTask
from wfimagevae.task.vae_options import VaeOptions

IMAGE_TERMS = {f"{name}_weight": 0.5 for name in ("mse", "color", "histogram", "contrast")}
LATENT_TERMS = {"kl_warmup_steps": 3, "kl_free_bits": 0.01, "mmd_weight": 0.1}
ADVERSARY_TERMS = {"r1_weight": 1, "r1_interval": 2, "instance_noise_std": 0.1}


def parts(folder, step, half):
    content = load(folder, step)["state_dict"]["gen_model"]
    return {key: value for key, value in content.items() if key.startswith(half)}


@pytest.mark.parametrize(
    ("gan_schedule", "mix_precision"), [("joint", "fp16"), ("joint", "fp32"), ("alternate", "bf16")]
)
def test_every_term_trains_and_is_logged(workplace, gan_schedule, mix_precision):
    options = IMAGE_TERMS | LATENT_TERMS | ADVERSARY_TERMS
    options |= {"gan_schedule": gan_schedule, "mix_precision": mix_precision}
    folder = workplace.train(f"all-{gan_schedule}-{mix_precision}", 12, **options)
    lines = rows(folder / "training_losses.csv")
    for name in ("mse", "color", "histogram", "contrast", "mmd", "kl"):
        values = [float(row[f"train/{name}_loss_per_pixel"]) for row in lines]
        assert all(-1 < value < 100 for value in values)
        assert any(values), name
    assert float(lines[0]["train/kl_weight"]) < float(lines[-1]["train/kl_weight"]) <= 1e-6
    penalties = [float(row["train/r1_penalty"]) for row in lines if row["train/r1_penalty"]]
    assert penalties and min(penalties) > 0
    content = load(folder, 12)
    if mix_precision == "fp16":  # alone skips updates, while its scaler looks for a scale
        assert content["player_state"]["generator"]["scaler"]["scale"] > 0
    else:
        assert not any(float(row["skipped/discriminator"]) for row in lines)
    state = content["state_dict"]
    assert all(v.isfinite().all() for part in state.values() for v in part.values())


def test_terms_that_touch_one_player_leave_the_first_update_of_the_other(workplace):
    plain = load(workplace.train("neither", 3), 3)["state_dict"]
    r1 = load(workplace.train("r1", 3, r1_weight=5, r1_interval=1), 3)["state_dict"]
    mmd = load(workplace.train("mmd", 3, mmd_weight=5), 3)["state_dict"]
    # The discriminator starts at step 2: its first update comes after the generator's.
    assert largest_difference(plain["gen_model"], r1["gen_model"]) == 0
    assert largest_difference(plain["disc_model"], r1["disc_model"]) > 0
    assert largest_difference(plain["gen_model"], mmd["gen_model"]) > 0


def test_joint_and_alternate_agree_on_a_generator_that_trains_alone(workplace):
    options = IMAGE_TERMS | LATENT_TERMS | {"disc_start": 100}
    joint = load(workplace.train("joint", 4, **options), 4)["state_dict"]
    turns = load(workplace.train("turns", 4, gan_schedule="alternate", **options), 4)["state_dict"]
    assert largest_difference(joint["gen_model"], turns["gen_model"]) == 0


@pytest.mark.parametrize("gan_only", [False, True])
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_frozen_half_stays_as_it_was_with_all_losses_and_by_the_gan_alone(
    workplace, half, gan_only
):
    options = {f"freeze_{half}": True, "no_adaptive_weight": half == "decoder" or None}
    if gan_only:
        options |= {"rec_weight": 0, "kl_weight": 0, "wavelet_loss": None, "disc_start": 0}
        options |= {"no_adaptive_weight": True}
    folder = workplace.train(f"frozen-{half}-{gan_only}", 3, save_ckpt_step=1, **options)
    other = {"encoder": "decoder", "decoder": "encoder"}[half]
    assert not differences(parts(folder, 1, f"{half}."), parts(folder, 3, f"{half}."))
    assert largest_difference(parts(folder, 1, other), parts(folder, 3, other)) > 0


def test_flags_without_effect_are_said(workplace, caplog):
    caplog.set_level(logging.INFO, "wfimagevae")
    workplace.train("idle", 1, disc_weight=0, kl_weight=0, r1_weight=1, kl_free_bits=1)
    assert "--r1_weight: without effect at --disc_weight 0" in caplog.text
    assert "--kl_free_bits: without effect at --kl_weight 0" in caplog.text


def test_free_bits_that_free_everything_are_said_once(workplace, caplog):
    caplog.set_level(logging.WARNING, "wfimagevae")
    workplace.train("free", 6, kl_free_bits=1024)
    (record,) = [r for r in caplog.records if "--kl_free_bits 1024" in r.getMessage()]
    assert "no gradient" in record.getMessage()
    loss = LPIPSWithDiscriminator2D(LossConfig(perceptual_weight=0, kl_free_bits=0.5))
    task = VaeTask(VaeOptions(image_path="x", disc_start=100), [], None, loss, None)
    caplog.clear()
    task.watch(10, {"train/kl_free_share": 0.99})
    assert not caplog.records


def test_a_modulated_model_with_curves_starts_from_a_plain_one(workplace, caplog):
    """SPADE is added to trained weights; the run resumes from its own checkpoints as ever."""
    caplog.set_level(logging.INFO)
    plain = workplace.train("plain", 2)
    path = workplace.folder / "spade.json"
    path.write_text(json.dumps(TINY_MODEL | {"spade": True}))
    options = {"model_config": path, "save_ckpt_step": 1}
    options |= {"pretrained_model_name_or_path": plain / "checkpoint-2.ckpt"}
    folder = workplace.train("spade", 3, **options)
    assert "no SPADE modulation" in caplog.text
    before, after = (parts(folder, step, "decoder.spade_out") for step in (1, 3))
    assert largest_difference(before, after) > 0
    whole = load(folder, 3)["state_dict"]
    (folder / "checkpoint-3.ckpt").unlink()
    (folder / "checkpoint-2.ckpt").unlink()
    workplace.go_on("spade", 3, **options)
    assert not differences(whole, load(folder, 3)["state_dict"])
