"""Image-VAE training as its users run it: learning, turns, bad input, files."""

import json
import logging
import time
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from tests.images import TINY_MODEL, smooth_image
from tests.task.training import Workplace, differences, largest_difference, load, refused, rows
from train_ddp import main
from wfimagevae.command_line import run_cli
from wfimagevae.model.losses import LossConfig, LPIPSWithDiscriminator2D
from wfimagevae.task.vae import VaeTask
from wfimagevae.task.vae_options import VaeOptions


def test_a_tiny_model_overfits_a_photograph_past_25_db(tmp_path):
    from skimage import data

    photograph = Image.fromarray(data.astronaut()).resize((64, 64), Image.Resampling.LANCZOS)
    workplace = Workplace(tmp_path)
    (tmp_path / "one").mkdir()
    photograph.save(tmp_path / "one" / "astronaut.png")
    config = TINY_MODEL | {"latent_dim": 16, "base_channels": [16, 32, 32]}
    config |= {"decoder_base_channels": [16, 32, 32]}
    config |= {"encoder_energy_flow_size": 16, "decoder_energy_flow_size": 16}
    (tmp_path / "small.json").write_text(json.dumps(config))
    options = {"image_path": tmp_path / "one", "eval_image_path": tmp_path / "one"}
    options |= {"resolution": 64, "eval_resolution": 64, "eval_crop_size": 64, "batch_size": 1}
    options |= {"lr": 6e-3, "lr_schedule": "cosine", "warmup_steps": 30}
    options |= {"loss_type": "l2", "rec_weight": 4, "kl_weight": 0, "disc_weight": 0}
    options |= {"log_steps": 100, "csv_log_steps": 100, "model_config": tmp_path / "small.json"}
    folder = workplace.train("overfit", 500, eval_steps=500, **options)
    assert rows(folder / "validation.jsonl")[-1]["val/psnr"] > 25


@pytest.mark.parametrize(
    ("schedule", "start", "updates"),
    [
        ("joint", 3, (10, 7)),
        ("alternate", 3, (6, 4)),
        ("alternate", 4, (7, 3)),
        ("joint", 99, (10, 0)),
    ],
)
def test_learning_rates_fall_over_the_updates_a_player_will_make(schedule, start, updates):
    options = VaeOptions(image_path="x", gan_schedule=schedule, disc_start=start)
    players = [Mock(schedules=[]), Mock(schedules=[])]
    task = VaeTask(options, players, None, Mock(), None)
    assert tuple(task.updates(10)) == updates
    turns = [player for step in range(10) for player in task.turn(step)]
    assert tuple(map(turns.count, players)) == updates


def test_the_discriminator_may_learn_ahead(workplace):
    ahead = load(workplace.train("ahead", 4, disc_start=100, disc_train_start=1), 4)
    alone = load(workplace.train("alone", 4, disc_weight=0), 4)
    assert ahead["player_state"]["discriminator"]["num_updates"] == 3
    assert not differences(*(content["state_dict"]["gen_model"] for content in (ahead, alone)))


def test_gan_only_training_is_weights(workplace):
    off = {"rec_weight": 0, "wavelet_loss": None, "kl_weight": 0, "no_adaptive_weight": True}
    folder = workplace.train("gan", 4, **off)
    last = rows(folder / "training_losses.csv")[-1]
    assert float(last["train/nll_loss"]) == 0
    assert not {"train/kl_loss", "train/wl_loss", "train/perceptual_loss"} & last.keys()
    with refused("--no_adaptive_weight"):
        workplace.train("gan-adaptive", 4, rec_weight=0)


def test_bad_pixels_are_replaced_counted_and_named(workplace, tmp_path, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(smooth_image(40, 40, i)).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"not an image")
    caplog.set_level(logging.WARNING, "wfimagevae")
    run = workplace.train("broken", 6, image_path=folder)
    assert float(rows(run / "training_losses.csv")[-1]["data/unreadable"]) == 1
    assert sum("broken.jpg" in record.getMessage() for record in caplog.records) == 1


def test_a_run_whose_images_all_fail_stops(workplace, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of 3 images"):
        workplace.train("all-broken", 6, image_path=tmp_path)


def test_training_that_diverges_stops_and_names_the_last_checkpoint(workplace, monkeypatch):
    original = LPIPSWithDiscriminator2D.generator_loss

    def poisoned(self, images, output, last_layer, step, *rest):
        loss, logs = original(self, images, output, last_layer, step, *rest)
        return (loss * float("nan") if step >= 4 else loss), logs

    monkeypatch.setattr(LPIPSWithDiscriminator2D, "generator_loss", poisoned)
    with pytest.raises(ValueError, match=r"3 updates of the generator.*checkpoint-4.ckpt"):
        workplace.train("diverged", 100, save_ckpt_step=1, keep_last=2, max_bad_updates=3)
    # Requeued, it starts amid the bad updates, and still knows what was good.
    again = {"resume_from_checkpoint": "auto", "max_bad_updates": 5}
    with pytest.raises(ValueError, match=r"5 updates of the generator.*checkpoint-4.ckpt"):
        workplace.train("diverged", 100, save_ckpt_step=1, keep_last=2, **again)
    # What was resumed is told by its own name: the best copy may be the only file of its step.
    folder = workplace.train("from-best", 3, eval_steps=2)
    path = folder / "best-psnr.ckpt"
    with pytest.raises(ValueError, match=rf"3 updates of .* checkpoint is {path}\."):
        workplace.train("from-best", 9, resume_from_checkpoint=path, max_bad_updates=3)
    content = load(workplace.run_folder("diverged"), 4)
    assert all(v.isfinite().all() for v in content["state_dict"]["gen_model"].values())


def test_validation_writes_figures_and_pictures(workplace):
    folder = workplace.train("pictures", 4, eval_steps=2, ema=True, disable_live_plot=None)
    first, second = rows(folder / "validation.jsonl")
    assert (first["step"], second["step"]) == (2, 4)
    assert {"val/psnr", "val/ssim", "val_ema/psnr", "val_ema/ssim"} <= first.keys()
    originals = sorted((folder / "val_images" / "original").iterdir())
    assert len(originals) == 3
    for step in ("step-00000002", "step-00000004"):
        assert len(list((folder / "val_images" / "reconstructed" / step).iterdir())) == 3
        maps = sorted((folder / "val_patch_scores" / step).iterdir())
        assert Image.open(maps[0]).size == (64, 32)  # the image and its reconstruction
    assert len(rows(folder / "val_patch_scores" / "summary.csv")) == 6
    assert np.asarray(Image.open(originals[0])).std() > 0
    assert (folder / "training_losses_live_page1.png").exists()
    options = json.loads((folder / "options.json").read_text())
    assert options["ema"] is True


def test_gradient_checkpointing_changes_no_update(workplace):
    plain = load(workplace.train("plain", 3), 3)["state_dict"]
    saving = load(workplace.train("saving", 3, gradient_checkpointing=True), 3)["state_dict"]
    assert largest_difference(plain["gen_model"], saving["gen_model"]) < 1e-6


def test_a_reference_checkpoint_resumes_all_but_its_optimizer(workplace, tmp_path, caplog):
    content = load(workplace.train("old", 3, ema=True), 3)
    old = {
        "epoch": 0,
        "current_step": 3,
        "optimizer_state": {"gen_optimizer": {"state": {}}, "disc_optimizer": {"state": {}}},
        "state_dict": {
            "gen_model": {"module." + k: v for k, v in content["state_dict"]["gen_model"].items()}
            | {"module.encoder.wavelet_transform_in.aa": torch.ones(1, 1, 2, 2)},
            "disc_model": content["state_dict"]["disc_model"]
            | {"perceptual_loss.lin0.model.1.weight": torch.zeros(1)},
        },
        "ema_state_dict": {"module." + k: v for k, v in content["ema_state_dict"].items()},
        "scaler_state": {},
        "sampler_state": {},
    }
    path = tmp_path / "checkpoint-3.ckpt"
    torch.save(old, path)
    caplog.set_level(logging.WARNING, "wfimagevae")
    # One more step that moves nothing shows what was there before it.
    still = {"lr": 1e-12, "weight_decay": 0, "ema_decay": 0.9999999, "no_ema_warmup": True}
    folder = workplace.train("from-old", 4, ema=True, resume_from_checkpoint=path, **still)
    assert "was not written by this repository" in caplog.text
    resumed = load(folder, 4)
    for node in (content, resumed):  # the spectral norm's estimate goes on
        critic = node["state_dict"]["disc_model"]
        node["critic"] = {k: v for k, v in critic.items() if not k.endswith(("_u", "_v"))}
    assert largest_difference(content["critic"], resumed["critic"]) < 1e-9
    raw, average = content["state_dict"]["gen_model"], content["ema_state_dict"]
    assert largest_difference(raw, average) > 1e-4
    assert largest_difference(raw, resumed["state_dict"]["gen_model"]) < 1e-9
    assert largest_difference(average, resumed["ema_state_dict"]) < 1e-6


def test_averages_that_a_resumed_run_drops_are_said(workplace, caplog):
    path = workplace.train("averaged", 1, ema=True, ema_decay="0.99,0.9") / "checkpoint-1.ckpt"
    caplog.set_level(logging.WARNING, "wfimagevae")
    workplace.train("one-dropped", 2, ema=True, ema_decay="0.99", resume_from_checkpoint=path)
    assert "dropped here: add 0.9 to --ema_decay" in caplog.text and "--ema " not in caplog.text
    others = {"ema": True, "ema_decay": "0.99,0.5", "resume_from_checkpoint": path}
    caplog.clear()
    workplace.train("one-exchanged", 2, **others)
    assert "dropped here: add 0.9 to --ema_decay" in caplog.text
    workplace.train("all-dropped", 2, resume_from_checkpoint=path)
    assert f"{path} holds an average of the weights, dropped here: add --ema" in caplog.text


def test_a_resumed_run_may_train_other_parts_if_its_optimizer_starts_anew(workplace):
    path = workplace.train("all-parts", 1) / "checkpoint-1.ckpt"
    options = {"freeze_encoder": True, "resume_from_checkpoint": path}
    with pytest.raises(ValueError, match=r"optimizer state is of .* --not_resume_optimizer"):
        workplace.train("decoder-only", 2, **options)
    workplace.train("decoder-only", 2, **options, not_resume_optimizer=True)


def test_a_resumed_run_may_have_another_discriminator_if_it_starts_anew(workplace):
    path = workplace.train("shallow", 1) / "checkpoint-1.ckpt"
    options = {"disc_num_layers": 2, "resume_from_checkpoint": path}
    words = "--disc_num_layers 1 does not fit this run's of 2: .*--not_resume_discriminator"
    with pytest.raises(ValueError, match=words):
        workplace.train("deeper", 2, **options)
    workplace.train("deeper", 2, **options, not_resume_discriminator=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": 30}, "multiple of 8"),
        ({"resolution": 32, "disc_num_layers": 4}, "--resolution 32 .* needs 48 px.*_layers 3 or"),
        (
            {"reduced_min_sizes": 16, "train_crop": "resized", "disc_num_layers": 3},
            "--reduced_min_sizes 16 is too small for the discriminator, which needs 24 px",
        ),
        ({"disc_cls": "wfimagevae.nothing.X"}, "--disc_cls"),
        ({"disc_cls": "torch.nn.Linear"}, "--disc_cls torch.nn.Linear is no class of losses"),
        ({"disc_cls": "wfimagevae.model.losses.LossConfig"}, "is no class of losses"),
        ({"disc_cls": "wfimagevae.model.losses"}, "is no class of losses"),
        ({"model_name": "WFVAE3Image"}, "did you mean"),
        ({"model_name": "FlowDiT-S/2"}, "'FlowDiT-S/2' is no image autoencoder; use WFVAE2Image"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"perceptual_weight": 1, "lpips_weights": "nowhere.pth"}, "nowhere.pth"),
        ({"image_path": "nowhere"}, "nowhere"),
        ({"model_config": "nowhere.json"}, "--model_config nowhere.json: no such file"),
        ({"tracker": "wandb", "image_path": "nowhere"}, "nowhere"),
        ({"tracker": "mlflow"}, "--tracker: invalid choice: 'mlflow' .choose from .*wandb"),
        ({"lr_schedule": "plateau"}, "follows validations"),
        ({"eval_steps": 0, "eval_image_path": "nowhere"}, "nowhere"),
        ({"freeze_decoder": True}, "--freeze_decoder freezes; add --no_adaptive_weight"),
        ({"freeze_decoder": True, "freeze_encoder": True}, "nothing to train"),
    ],
)
def test_bad_options_are_explained(workplace, options, words):
    with refused(words):
        workplace.train("bad", 2, **options)


def test_an_error_of_the_user_is_one_line(workplace, monkeypatch, capsys):
    flags = workplace.flags("one-line", 2, model_name="FlowDiT-S/2")
    monkeypatch.setattr("sys.argv", ["train_ddp.py", *flags])
    assert run_cli(main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: model 'FlowDiT-S/2' is no image autoencoder")


def test_wandb_writes_into_the_folder_of_a_fresh_run(workplace, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    caplog.set_level(logging.WARNING)
    folder = workplace.train("wandb", 2, tracker="wandb")
    assert "tracker wandb failed" not in caplog.text
    (record,) = folder.glob("wandb/offline-run-*/*.wandb")
    run_id = (folder / "wandb_id.txt").read_text()
    # Its service writes on for a moment.
    end, content = time.monotonic() + 30, b""
    while b"img_per_s" not in content and time.monotonic() < end:
        content = record.read_bytes()
    assert b"train/rec_loss" in content and b"img_per_s" in content
    workplace.go_on("wandb", 3, tracker="wandb")  # in the same record
    names = {path.stem for path in folder.glob("wandb/offline-run-*/*.wandb")}
    assert len(run_id) == 8 and names == {f"run-{run_id}"}


def test_options_say_where_the_losses_are_from_anywhere(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = workplace.train("own-csv", 2, csv_log_path="own.csv")
    path = json.loads((folder / "options.json").read_text())["csv_log_path"]
    assert path == str(tmp_path / "own.csv")
    assert (tmp_path / "own.csv").is_file()


@pytest.mark.parametrize("disc_start", [0, 5, 100])
@pytest.mark.parametrize("resumed_at", [None, 10, 20, 500])
def test_a_reconstruction_that_suffers_from_the_discriminator_is_said_once(
    caplog, disc_start, resumed_at
):
    """Even where it starts before the first line; a tenth more is not worth a word."""

    def new_task():
        loss = LPIPSWithDiscriminator2D(LossConfig(perceptual_weight=0, disc_start=disc_start))
        return VaeTask(VaeOptions(image_path="x", disc_start=disc_start), [], None, loss, None)

    task = new_task()
    caplog.set_level(logging.WARNING, "wfimagevae")
    for step in range(10, 1000, 10):
        if step == resumed_at:
            state, task = task.state_dict(), new_task()
            task.load_state_dict(state)
        rec = 0.02 if step < 300 else 0.022 if step < 500 else 0.06
        task.watch(step, {"train/rec_loss_per_pixel": rec})
        # The smooth value is above 0.025 at once: 0.06 - 0.038 * 0.9.
        assert len(caplog.records) == (step >= 500)
    assert "--disc_weight" in caplog.text
