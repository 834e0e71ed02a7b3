"""Pipelines as their users run them: what travels, what is frozen, what is refused."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.pipeline.files import changed, copied, last_checkpoint, steps_of
from tests.task.training import ROOT, differences
from train_ddp import main
from wfimagevae.files import read_torch_file

STEPS = ("warmup", "gan", "flow")
LINE = re.compile(
    r"\[\d+:\d\d:\d\d\] Step gan \(2/3\) \| Epoch 2/2 \| Batch 3/4 \| VAE [\d.e-]+ \| KL [\d.e-]+ "
    r"\| G -?[\d.e-]+ \| D [\d.e-]+ \| [\d.e-]+s/batch"
)


def test_console_metrics_plots_and_samples_are_those_of_the_documents(done):
    _, output, lines = done
    assert any(LINE.fullmatch(line) for line in lines), lines
    rows = (output / "graph" / "training_metrics_gan.jsonl").read_text().splitlines()
    row = json.loads(rows[-1])
    assert {"vae_loss", "kl_loss", "g_loss", "d_loss", "kl_weight"} == row["metrics"].keys()
    assert row["learning_rates"] == {"generator": 1e-3, "discriminator": 4e-3}
    assert (row["epoch"], row["batch"], row["global_step"]) == (2, 3, 6)
    names = {path.name for path in (output / "graph").glob("*.png")}
    pages = ("training_losses", "kl_loss", "learning_rates", "batch_times", "training_overview")
    expected = {f"{step}_{page}.png" for step in STEPS for page in pages}
    assert names == expected - {"flow_kl_loss.png"}  # a flow has no such term
    summary = (output / "graph" / "training_summary.txt").read_text()
    assert all(f"\n{step}\n" in f"\n{summary}" for step in STEPS)
    for size in ("32x32", "48x32"):
        samples = {path.name for path in (output / "samples" / size).glob("gan_*")}
        places = {name.split("-")[0].rsplit("_", 1)[0] for name in samples}
        assert places == {f"gan_002_{place}" for place in ("001_00002", "002_00001", "002_00003")}
        assert {name.split("-")[1] for name in samples} == {"original.webp", "nr.webp", "ns.webp"}
        assert len(list((output / "samples" / size).glob("flow_*-a_red_cloud.webp"))) == 3


def test_a_step_starts_from_raw_weights_and_average_of_the_step_before(place):
    """With a learning rate of almost nothing, what a step ends with is what it began with."""
    content = place.content("travel")
    steps = steps_of(content)
    steps[1] |= {"lr": 1e-30, "steps": 1}
    steps[2] = steps[1] | {"name": "again"}
    output = place.run(content)
    first, second, third = (last_checkpoint(output, name) for name in ("warmup", "gan", "again"))
    assert not differences(first["state_dict"]["gen_model"], second["state_dict"]["gen_model"])
    assert differences(first["state_dict"]["gen_model"], first["ema_state_dict"])
    updates = [c["player_state"]["generator"]["ema_updates"] for c in (first, second, third)]
    assert updates == [5, 6, 7]
    decay = 6 / 15  # (1 + n) / (10 + n) at n = 5: not that of a new average
    for name, average in second["ema_state_dict"].items():
        before, raw = first["ema_state_dict"][name], first["state_dict"]["gen_model"][name]
        torch.testing.assert_close(average, decay * before + (1 - decay) * raw.float())
    critic = [c["state_dict"]["disc_model"] for c in (second, third)]
    weights = [name for name in critic[0] if "weight_orig" in name]
    assert weights and all(torch.equal(critic[0][name], critic[1][name]) for name in weights)


def test_the_flow_learns_normalised_latents_of_the_last_vae(done):
    _, output, _ = done
    facts = last_checkpoint(output, "flow")["generator"]
    assert facts["space"] == "latent" and facts["text"]["kind"] == "bytes"
    folder = output / "steps" / "03_flow" / "autoencoder"
    config = json.loads((folder / "config.json").read_text())
    assert (facts["shift"], facts["scale"]) == (config["shift"], config["scale"])
    from wfimagevae.generate.autoencoders import load_autoencoder

    vae = load_autoencoder(f"WFVAE2Image:{folder}").network
    average = last_checkpoint(output, "gan")["ema_state_dict"]
    assert not differences(dict(vae.state_dict()), average)


def test_frozen_parts_stay_as_they_are_and_the_rest_learns(place):
    content = place.content("frozen")
    steps = steps_of(content)
    content["training"]["pipeline"]["defaults"] = {"freeze": ["compressor"]}
    steps[0] |= {"unfreeze": ["encoder"], "gan_training": True, "options": {"disc_start": 0}}
    steps[1] |= {"train_vae": "decoder", "options": {"freeze_discriminator": True}}
    steps[2] |= {"freeze": ["text_encoder"]}
    steps.insert(2, {"name": "pixels", "steps": 2, "train_diff": True})
    output = place.run(content)
    states = {s: last_checkpoint(output, s)["state_dict"] for s in ("warmup", "gan")}
    before, after = states["warmup"], states["gan"]
    learned = {path.split(".")[0] for path in differences(before["gen_model"], after["gen_model"])}
    assert learned == {"/decoder"}
    assert not differences(before["disc_model"], after["disc_model"])
    flows = [last_checkpoint(output, s)["state_dict"]["gen_model"] for s in ("pixels", "flow")]
    learned = differences(*flows)
    assert learned and not [path for path in learned if path.startswith("/text_encoder.")]


def test_gan_only_reaches_the_encoder_and_compares_no_pixel(place, capsys):
    content = place.content("gan_only")
    del steps_of(content)[2]
    gan_only = {"train_vae": False, "lambda_adv": 0.5, "kl_beta": 0, "options": {"disc_start": 0}}
    steps_of(content)[1] |= gan_only
    output = place.run(content)
    options = json.loads((output / "steps" / "02_gan" / "options.json").read_text())
    names = ("rec_weight", "perceptual_weight", "wavelet_loss", "kl_weight", "adaptive_weight")
    assert not any(options[name] for name in names)
    assert options["disc_weight"] == 0.5 * 3 * 32**2
    before, after = (last_checkpoint(output, s)["state_dict"]["gen_model"] for s in STEPS[:2])
    assert {p.split(".")[0] for p in differences(before, after)} == {"/encoder", "/decoder"}


def test_a_metric_ends_a_step_and_the_end_is_remembered(place):
    content = place.content("threshold")
    transition = {"mode": "loss_threshold", "metric": "kl_loss", "threshold": 1e3, "window": 2}
    step = {"name": "warmup", "train_vae": True, "transition_on": transition | {"max_epochs": 9}}
    output = place.run(changed(content, {"training.pipeline.steps": [step]}))
    state = last_checkpoint(output, "warmup")
    assert (state["current_step"], state["finished"]) == (4, True)  # two lines, of two steps each
    assert state["early_stop"]["reached"]
    options = json.loads((output / "steps" / "01_warmup" / "options.json").read_text())
    assert options["stop_below"] == 1e3 * 4 * 4 * 4  # our KL is the sum over the latent
    again = place.run(content)
    assert last_checkpoint(again, "warmup")["current_step"] == 4


def test_latents_are_cached_once_and_learned_from(place, done):
    content = copied(place, done, "cached")
    shutil.rmtree(Path(content["output"]["output_path"]) / "steps" / "03_flow")
    steps_of(content)[2]["cache_latents"] = True
    output = place.run(content)
    options = json.loads((output / "steps" / "03_flow" / "options.json").read_text())
    assert options["dataset"] == "latents"
    folder = output / "steps" / "03_flow"
    record = json.loads((folder / "latents" / "latents.json").read_text())
    assert record["num_samples"] == 7 and record["normalization"] == "vae"
    assert not (folder / "held_out_latents").exists()  # it never validates
    facts = read_torch_file(folder / "checkpoint-6.ckpt")["generator"]
    assert facts["vae"]["source"] == f"WFVAE2Image:{folder / 'autoencoder'}"
    assert (output / "samples" / "32x32").exists()
    place.run(content)  # finished: it is what the file says


def test_a_flow_without_text_draws_one_picture_of_each_size(place):
    content = place.content("textless")
    for section, key in (("model", "vae"), ("model", "text_encoder"), ("model", "text_length")):
        del content[section][key]
    del content["output"]["sample_captions"], content["output"]["test_image_address"]
    content["training"]["pipeline"]["steps"] = [{"name": "one", "steps": 2, "train_diff": True}]
    (picture,) = (place.run(content) / "samples" / "32x32").iterdir()
    assert picture.name.startswith("one_001_") and picture.name.endswith("-sample.webp")


@pytest.mark.slow
def test_two_processes_train_a_pipeline(place):
    content = place.content("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = place.start(content, [*launcher, "--nproc_per_node", "2"])
    assert process.wait() == 0
    output = Path(content["output"]["output_path"])
    for step in STEPS:
        state = last_checkpoint(output, step)
        assert state["finished"] and len(state["rng_state"]) == 2
        assert state["sampler_state"]["position"] == 4 * state["current_step"]


@pytest.mark.parametrize(
    ("text", "flag"), [("training:\n  lr: 1e-4\n", "--pipeline"), ("task: flow\n", "--config")]
)
def test_make_train_takes_pipelines_and_files_of_flags(tmp_path, text, flag):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    quiet = "--no-print-directory"  # as make says under another make
    command = ["make", quiet, "-n", "train", f"CONFIG={path}", "NPROC=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.endswith(f'torchrun --nproc_per_node 2 train_ddp.py {flag} "{path}"')


def test_a_file_of_flags_names_its_task_and_a_pipeline_is_none(place, tmp_path, capsys):
    path = tmp_path / "flow.yaml"
    path.write_text("task: flow\nsamplr: heun\n")
    with pytest.raises(SystemExit):
        main(["--config", str(path)])
    assert "unknown key 'samplr'; did you mean --sampler?" in capsys.readouterr().err
    pipeline = str(place.write(place.content("flat")))
    with pytest.raises(SystemExit):
        main(["--config", pipeline])
    assert "that file has sections; give it by --pipeline" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_stops_a_pipeline_and_the_same_command_goes_on(place):
    content = place.content("signal")
    steps_of(content)[1]["steps"] = 4000
    process = place.start(content)
    rows = Path(content["output"]["output_path"]) / "graph" / "training_metrics_gan.jsonl"
    deadline = time.monotonic() + 240
    while not (rows.exists() and rows.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 0
    state = last_checkpoint(Path(content["output"]["output_path"]), "gan")
    assert not state["finished"]
    steps_of(content)[1]["steps"] = state["current_step"] + 1
    output = place.run(content)
    assert last_checkpoint(output, "gan")["current_step"] == state["current_step"] + 1
    assert last_checkpoint(output, "flow")["finished"]
