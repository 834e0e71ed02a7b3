"""The plan: what would be trained, counted without building it."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.images import write_images
from tests.pipeline.files import (
    COLOURS,
    TINY_FLOW,
    TINY_VAE,
    changed,
    options_of,
    steps_of,
    write_shard,
)
from wfimagevae.model.losses.discriminator import NLayerDiscriminator
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.pipeline.checks import load_pipeline
from wfimagevae.task.flow_space import build_datasets


@pytest.fixture
def content(place, tmp_path):
    return place.content(tmp_path.name)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def flow_network():
    keys = {"text_encoder": "bytes", "text_length": 24, "in_channels": 4, "input_size": 4}
    return ModelRegistry.get_model("FlowDiT-S/2")(**TINY_FLOW, **keys, num_classes=0)


def test_the_plan_counts_what_is_trained_and_frozen(place, content):
    steps = steps_of(content)
    steps[1] |= {"train_vae": "decoder", "n_epochs": 3, "lambda_adv": 0.5}
    del steps[1]["steps"]
    plan = place.plan(content)
    vae = ModelRegistry.get_model("WFVAE2Image").from_config(TINY_VAE)
    critic = parameters(NLayerDiscriminator(1))
    encoder, decoder = parameters(vae.encoder), parameters(vae.decoder)
    flow, text = parameters(flow_network()), parameters(flow_network().text_encoder)
    for line in (
        f"trains decoder {decoder:,}, discriminator {critic:,}: {decoder + critic:,}",
        f"frozen encoder {encoder:,}",
        f"trains flow {flow - text:,}, text_encoder {text:,}",
        "lambda_adv 0.5 -> --disc_weight 1536 (times 3 H W = 3072",
        "3 epochs = 11 updates of 2 x 1 x 1 = 2 images",  # of 7 images
        "latents of the VAE of step gan",
        "the VAE starts from step warmup, raw weights and their average",
    ):
        assert line in plan
    assert not (place.folder / content["output"]["output_path"]).exists()


def test_the_plan_tells_what_becomes_of_each_rate_and_term(place, content, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(place.folder / "no_hub"))
    steps = steps_of(content)
    steps[0] |= {"use_lpips": True, "options": {"wavelet_loss": True, "wavelet_weight": 0.25}}
    vae = {"type": "StepLR", "step_size": 30}
    critic = {"type": "ReduceLROnPlateau", "patience": 3}
    steps[1]["optimization"] = {"schedulers": {"vae": vae, "discriminator": critic}}
    steps[1]["options"] = {"eval_steps": 2}
    steps[2]["optimization"] = {"schedulers": {"flow": {"type": "ExponentialLR", "gamma": 0.99}}}
    plan = place.plan(content)
    assert "lr 0.001 step, times 0.1 every 30 updates, down to 0 of it" in plan
    waits = "its discriminator: adamw, lr 0.004 plateau, times 0.1 after 3 validations in a row"
    assert waits in plan
    assert "lr 0.001 exponential, times 0.99 every update" in plan
    assert "wavelet_weight 0.25" in plan and "adversarial one adaptive" in plan
    assert plan.count("wavelet_weight") == 1
    assert "LPIPS downloads https" in plan


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (0, r"'warmup': no images in .*hollow(.|\n)*'flow': no images in"),
        (2, r"1 problem:\n.*'flow': none of 2 images has a capt.*hollow"),
    ],
)
def test_held_out_data_is_opened_while_a_file_is_validated(
    place, content, tmp_path, images, message
):
    content["training"]["options"]["eval_steps"] = 1
    content["data"]["eval_data_path"] = str(write_images(tmp_path / "hollow", images))
    place.refuses(content, message)
    # Nor does data that is counted later, as counting would download it, hide it.
    url = f"pipe:cat {shard_of(place, 'train')}"
    shards = {"data_path": None, "webdataset_url": url, "use_webdataset": True}
    content = changed(content, {f"data.{name}": value for name, value in shards.items()})
    place.refuses(content, message, allow_pipe=True)
    content["training"]["options"]["eval_steps"] = 0
    assert "counted when training begins" in place.plan(content, allow_pipe=True)
    command = "a file is never a command; give --allow_pipe on the command line"
    place.refuses(content, command)
    # Beside all else that is wrong, not once that is mended.
    wrong = changed(content, {"data.eval_data_path": "nowhere"})
    place.refuses(wrong, rf"2 problems:(.|\n)*nowhere does not exist(.|\n)*{command}")


def shard_of(place, name: str) -> str:
    """The place's images and captions of that name in one tar file."""
    return write_shard(place.folder / f"{name}.tar", sorted((place.folder / name).glob("*.png")))


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_held_out_data_beside_shards_has_captions(place, content, kind):
    content["training"]["options"]["eval_steps"] = 1
    held_out = str(place.folder / "held_out") if kind == "folder" else shard_of(place, "held_out")
    content["data"] = {"use_webdataset": True, "img_size": 32, "eval_data_path": held_out}
    content["data"]["webdataset_url"] = shard_of(place, "train")
    assert f"validated on {held_out}" in place.plan(content)
    captions = [f"a {colour} cloud" for colour in COLOURS]
    for data in build_datasets(options_of(load_pipeline(place.write(content)), -1)):
        assert set(data.read_batch(range(len(data)))["caption"]) == set(captions)


def test_memory_grows_with_the_batch(place, content):
    def activations(batch_size: int) -> float:
        content["training"]["batch_size"] = batch_size
        content["data"]["img_size"] = 256
        return float(re.search(r"([\d.]+) of activations", place.plan(content))[1])

    assert activations(32) == pytest.approx(2 * activations(16), rel=0.05)


def test_memory_counts_the_samples_that_are_drawn(place, content):
    def drawn() -> list[tuple[float, float]]:
        plan = place.plan(content)
        found = re.findall(r"about ([\d.]+) GiB .* or ([\d.]+) while 1 of 512x512 px", plan)
        return [tuple(map(float, pair)) for pair in found]

    content["output"]["sample_sizes"] = [[32, 64], [512, 512]]
    one = drawn()  # of the VAE's two steps, and of the flow's
    content["training"]["options"] |= {"eval_steps": 1, "eval_batch_size": 600}
    assert len(one) == 3 and all(total >= drawing > 0.01 for total, drawing in one)
    assert "while 600 of 32x32 px" in place.plan(content)
    content["output"]["no_samples"] = True
    content["training"]["options"]["eval_steps"] = 0
    assert "are drawn\n" not in place.plan(content)


WINDOW = {"mode": "loss_threshold", "metric": "vae_loss", "threshold": 1, "max_epochs": 2}
PIXELS = {"name": "pixels", "steps": 1, "train_diff": True}
LARGE = PIXELS | {"name": "large", "options": {"resolution": 64}}


TERMS = {f"{name}_weight": 1 for name in ("mmd", "color", "histogram", "contrast")}
TERMS = {"options": TERMS | {"wavelet_loss": True}}
ADVERSARIAL = {"gan_training": True, "r1_gamma": 1}
ALL_KL = {"kl_beta": 1e-4, "kl_free_bits": 0.1, "kl_warmup_steps": 3}
VAE = {"train_vae": True, "kl_beta": 0}
FLOW = {"train_diff": True}


@pytest.mark.parametrize(
    ("step", "metrics", "remedy"),
    [
        (VAE, "kl_loss train/kl_weight train/kl_free_share", ALL_KL),
        (VAE, "lpips_loss train/mse_loss", {"use_lpips": True, "mse_weight": 1}),
        (VAE, "color_stats hist_loss contrast_loss train/mmd_loss train/wl_loss", TERMS),
        (VAE, "g_loss d_loss train/d_weight train/logits_fake train/r1_penalty", ADVERSARIAL),
        (FLOW, "train/error", {"options": {"objective": "mean_flow"}}),
        (FLOW, "train/direction_loss", {"options": {"direction_weight": 1}}),
        (VAE, "flow_loss train/error train/logit_real", None),
        (FLOW, "vae_loss", None),
    ],
)
def test_a_transition_waits_for_nothing_that_the_step_does_not_log(
    place, content, step, metrics, remedy
):
    known = "flow_loss" if step is FLOW else "vae_loss"
    content["model"]["vae"] = {}  # a flow is of pixels
    for metric in metrics.split():
        waits = {"name": "one", "transition_on": WINDOW | {"metric": metric, "window": 1}}
        content["training"]["pipeline"]["steps"] = [step | waits]
        lines = place.write(content).read_text().splitlines()
        (line,) = [n for n, line in enumerate(lines, 1) if line.endswith(f"metric: {metric}")]
        message = f"line {line}: unreachable: this step logs no {metric}, but .*{known}"
        place.refuses(content, message)
        if remedy:
            content["training"]["pipeline"]["steps"] = [step | waits | remedy]
            assert "ends earlier once" in place.plan(content)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps.0.steps": None, "steps.0.transition_on": WINDOW}, r"over 20 .* 7 updates .* ha"),
        ({"data.data_path": "nothing"}, r"step 'warmup': no images(.|\n)*step 'flow': no im"),
        ({"data.img_size": 36}, "'warmup': img_size 36 must be"),
        (
            {"steps.0.gan_training": True, "steps.0.options": {"disc_num_layers": 2}},
            "step 'gan': the discriminator of step warmup does not fit",
        ),
        ({"model.vae": None, "steps.0": PIXELS}, "'flow': the flow of step pixels does not fit"),
        (
            {"model.flow.name": "DiT-S/2", "steps.3": LARGE},
            "step 'large': the flow of step flow does not fit: its pos_embed",
        ),
        (
            {"training.options.disc_num_layers": 5},
            r"'gan': img_size 32 is too small .*disc_num_layers",
        ),
        (
            {"model.vae.config.latent_dims": 4, "model.flow.config.hidden_sizes": 4},
            r"line 2: model.vae: (.|\n)*'flow': .*hidden_sizes",
        ),
        ({"model.flow": {"pretrained": "nowhere/flow_run"}}, "nowhere/flow_run is no local"),
        (
            {"data.reduced_min_sizes": [12]},
            r"'warmup': .*reduced_min_sizes gives crops of 12 x 12 px: .* multiples of 8",
        ),
    ],
)
def test_what_data_and_networks_show_to_be_wrong_is_refused(
    place, content, monkeypatch, values, message
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(place.folder)
    Path("nothing").mkdir(exist_ok=True)
    ModelRegistry.get_model("WFVAE2Image").from_config(TINY_VAE).save_pretrained("plain_vae")
    place.refuses(changed(content, values), message)


def test_the_plan_of_a_pretrained_flow_is_of_that_network(place, content):
    flow = flow_network()
    flow.save_pretrained(place.folder / "own_flow")
    content["model"]["flow"] = {"pretrained": str(place.folder / "own_flow")}  # its size is there
    text = parameters(flow.text_encoder)
    assert f"trains flow {parameters(flow) - text:,}, text_encoder {text:,}" in place.plan(content)
    content["model"]["flow"]["config"] = {"depth": 2}
    place.refuses(content, r"'flow'.*missing: .*blocks.1")
