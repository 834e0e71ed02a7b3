"""The plan: what would be trained, counted without building it."""

import re
import tarfile

import pytest
import torch
from torch import nn

from tests.images import write_images
from tests.pipeline.files import COLOURS, TINY_FLOW, TINY_VAE, PipelinePlace, options_of
from wfimagevae.model.losses.discriminator import NLayerDiscriminator
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.pipeline.checks import load_pipeline
from wfimagevae.pipeline.document import PipelineError
from wfimagevae.pipeline.fluxflow import OPTIONS
from wfimagevae.pipeline.networks import _dry, _kept_bytes
from wfimagevae.pipeline.plan import describe_plan
from wfimagevae.task.flow_space import build_datasets


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return PipelinePlace(tmp_path_factory.mktemp("plans"))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_plan_counts_what_is_trained_and_frozen(place):
    content = place.content("out")
    steps = content["training"]["pipeline"]["steps"]
    steps[1] |= {"train_vae": "decoder", "n_epochs": 3, "lambda_adv": 0.5}
    del steps[1]["steps"]
    plan = "\n".join(describe_plan(load_pipeline(place.write(content))))
    vae = ModelRegistry.get_model("WFVAE2Image").from_config(TINY_VAE)
    critic = parameters(NLayerDiscriminator(1))
    encoder, decoder = parameters(vae.encoder), parameters(vae.decoder)
    assert f"trains decoder {decoder:,}, discriminator {critic:,}: {decoder + critic:,}" in plan
    assert f"frozen encoder {encoder:,}" in plan
    keys = {"text_encoder": "bytes", "text_length": 24, "in_channels": 4, "input_size": 4}
    flow = ModelRegistry.get_model("FlowDiT-S/2")(**TINY_FLOW, **keys, num_classes=0)
    text = parameters(flow.text_encoder)
    assert f"trains flow {parameters(flow) - text:,}, text_encoder {text:,}" in plan
    assert "lambda_adv 0.5 -> --disc_weight 1536 (times 3 H W = 3072" in plan
    assert "3 epochs = 11 updates of 2 x 1 x 1 = 2 images" in plan  # of 7 images
    assert "latents of the VAE of step gan" in plan
    assert "the VAE starts from step warmup, raw weights and their average" in plan
    assert not (place.folder / "out").exists()


def test_the_plan_tells_what_becomes_of_each_rate(place):
    content = place.content("rates")
    steps = content["training"]["pipeline"]["steps"]
    vae = {"type": "StepLR", "step_size": 30}
    critic = {"type": "ReduceLROnPlateau", "patience": 3}
    steps[1]["optimization"] = {"schedulers": {"vae": vae, "discriminator": critic}}
    steps[1]["options"] = {"eval_steps": 2}
    steps[2]["optimization"] = {"schedulers": {"flow": {"type": "ExponentialLR", "gamma": 0.99}}}
    plan = "\n".join(describe_plan(load_pipeline(place.write(content))))
    assert "lr 0.001 step, times 0.1 every 30 updates, down to 0 of it" in plan
    told = "its discriminator: adamw, lr 0.004 plateau, times 0.1 after 3 validations in a row"
    assert told in plan
    assert "lr 0.001 exponential, times 0.99 every update" in plan


def test_a_window_longer_than_the_step_is_refused(place):
    content = place.content("window")
    step = content["training"]["pipeline"]["steps"][0]
    del step["steps"]
    transition = {"mode": "loss_threshold", "metric": "vae_loss", "threshold": 1, "max_epochs": 2}
    step["transition_on"] = transition
    with pytest.raises(PipelineError, match=r"mean is over 20 .* 7 updates .* have 3"):
        describe_plan(load_pipeline(place.write(content)))


def test_data_that_is_empty_is_told_with_the_step(place):
    content = place.content("empty")
    (place.folder / "nothing").mkdir()
    content["data"]["data_path"] = str(place.folder / "nothing")
    with pytest.raises(PipelineError, match=r"step 'warmup': no images(.|\n)*step 'flow': no im"):
        describe_plan(load_pipeline(place.write(content)))


def held_out_without_captions(place) -> str:
    return str(write_images(place.folder / "silent", 2, first_seed=3))


def held_out_without_images(place) -> str:
    (place.folder / "hollow").mkdir()
    return str(place.folder / "hollow")


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (held_out_without_images, r"'warmup': no images in .*hollow(.|\n)*'flow': no images in"),
        (
            held_out_without_captions,
            r"1 problem:\n.*'flow': none of 2 images has a caption.*silent",
        ),
    ],
)
def test_held_out_data_is_opened_while_a_file_is_validated(place, held_out, message):
    content = place.content("held_out_plan")
    content["training"]["options"]["eval_steps"] = 1
    content["data"]["eval_data_path"] = held_out(place)
    with pytest.raises(PipelineError, match=message):
        plan_of(place, content)
    # Nor does data that is counted later, as counting would download it, hide it.
    data = {"webdataset_url": f"pipe:cat {shard_of(place, 'train')}", "use_webdataset": True}
    del content["data"]["data_path"]
    content["data"] |= data
    with pytest.raises(PipelineError, match=message):
        plan_of(place, content)
    content["training"]["options"]["eval_steps"] = 0
    assert "counted when training begins" in plan_of(place, content)


def shard_of(place, name: str) -> str:
    """The place's images and captions of that name in one tar file."""
    shard = place.folder / f"{name}.tar"
    with tarfile.open(shard, "w") as tar:
        for path in sorted((place.folder / name).iterdir()):
            tar.add(path, path.name)
    return str(shard)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_held_out_data_beside_shards_has_captions(place, kind):
    content = place.content(f"shards_and_{kind}")
    content["training"]["options"]["eval_steps"] = 1
    held_out = str(place.folder / "held_out") if kind == "folder" else shard_of(place, "held_out")
    content["data"] = {"use_webdataset": True, "img_size": 32, "eval_data_path": held_out}
    content["data"]["webdataset_url"] = shard_of(place, "train")
    loaded = load_pipeline(place.write(content))
    assert f"validated on {held_out}" in "\n".join(describe_plan(loaded))
    options = options_of(loaded, -1)
    captions = [f"a {colour} cloud" for colour in COLOURS]
    for data in build_datasets(options):
        assert set(data.read_batch(range(len(data)))["caption"]) == set(captions)


def test_kept_bytes_are_those_that_backward_reads():
    from torch._subclasses.fake_tensor import FakeTensorMode

    options = OPTIONS["flow"](mix_precision="fp32")
    with FakeTensorMode():
        network = _dry(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)))
        x = torch.empty(5, 8)
        # The input, the output of tanh (which the last layer reads, too); no weights.
        assert _kept_bytes(network, options, lambda: network(x)) == 4 * 5 * (8 + 16)


def test_memory_grows_with_the_batch(place):
    def activations(batch_size: int) -> float:
        content = place.content("memory", batch_size=batch_size)
        content["data"]["img_size"] = 256
        plan = "\n".join(describe_plan(load_pipeline(place.write(content))))
        return float(re.search(r"([\d.]+) of activations", plan)[1])

    assert activations(32) == pytest.approx(2 * activations(16), rel=0.05)


def plan_of(place, content: dict) -> str:
    return "\n".join(describe_plan(load_pipeline(place.write(content))))


def gan_twice(content: dict) -> None:
    steps = content["training"]["pipeline"]["steps"]
    steps[0] |= {"gan_training": True, "options": {"disc_num_layers": 2}}


def vae_between_flows(content: dict) -> None:
    del content["model"]["vae"]
    steps = content["training"]["pipeline"]["steps"]
    steps.insert(0, {"name": "pixels", "steps": 1, "train_diff": True})


def two_sizes(content: dict) -> None:
    content["model"]["flow"]["name"] = "DiT-S/2"
    steps = content["training"]["pipeline"]["steps"]
    steps.append({"name": "large", "steps": 1, "train_diff": True, "options": {"resolution": 64}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (gan_twice, "step 'gan': the discriminator of step warmup does not fit"),
        (vae_between_flows, "step 'flow': the flow of step pixels does not fit"),
        (two_sizes, "step 'large': the flow of step flow does not fit: its pos_embed"),
    ],
)
def test_weights_that_do_not_fit_the_next_step_are_refused(place, change, message):
    content = place.content("unfit")
    change(content)
    with pytest.raises(PipelineError, match=message):
        plan_of(place, content)


def test_images_too_small_for_the_discriminator_are_refused(place):
    content = place.content("small")
    content["training"]["options"]["disc_num_layers"] = 5
    with pytest.raises(PipelineError, match=r"'gan': 32 px images are too small.*disc_num_layers"):
        plan_of(place, content)


def test_bad_configurations_of_both_networks_are_told_with_their_lines(place):
    content = place.content("configs")
    content["model"]["vae"]["config"] = TINY_VAE | {"latent_dims": 4}
    content["model"]["flow"]["config"] = TINY_FLOW | {"hidden_sizes": 4}
    with pytest.raises(PipelineError, match=r"line 2: model.vae: (.|\n)*'flow': .*hidden_sizes"):
        plan_of(place, content)


def test_a_pretrained_flow_that_is_nowhere_is_refused(place, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    content = place.content("pretrained")
    content["model"]["flow"]["pretrained"] = "nowhere/flow_run"
    with pytest.raises(PipelineError, match="nowhere/flow_run is no local path"):
        plan_of(place, content)


def test_the_plan_of_a_pretrained_flow_is_of_that_network(place):
    keys = {"text_encoder": "bytes", "text_length": 24, "in_channels": 4, "input_size": 4}
    flow = ModelRegistry.get_model("FlowDiT-S/2")(**TINY_FLOW, **keys, num_classes=0)
    flow.save_pretrained(place.folder / "own_flow")
    content = place.content("own_flow_plan")
    content["model"]["flow"] = {"pretrained": str(place.folder / "own_flow")}  # its size is there
    text = parameters(flow.text_encoder)
    plan = plan_of(place, content)
    assert f"trains flow {parameters(flow) - text:,}, text_encoder {text:,}" in plan
    content["model"]["flow"]["config"] = {"depth": 2}
    with pytest.raises(PipelineError, match=r"'flow'.*missing: .*blocks.1"):
        plan_of(place, content)


def test_a_pretrained_vae_without_spade_is_not_trained_with_it(place):
    weights = place.folder / "plain_vae"
    ModelRegistry.get_model("WFVAE2Image").from_config(TINY_VAE).save_pretrained(weights)
    content = place.content("spade")
    content["model"]["vae"] = {"pretrained": str(weights)}
    content["training"]["pipeline"]["steps"][0]["train_spade"] = True
    with pytest.raises(PipelineError, match="train_spade: true and a model of the other kind"):
        plan_of(place, content)


def test_the_plan_names_the_wavelet_term_and_what_must_be_downloaded(place, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(place.folder / "no_hub"))
    content = place.content("terms")
    step = content["training"]["pipeline"]["steps"][0]
    step |= {"use_lpips": True, "options": {"wavelet_loss": True, "wavelet_weight": 0.25}}
    plan = plan_of(place, content)
    assert "disc_weight 0, wavelet_weight 0.25" in plan
    assert plan.count("wavelet_weight") == 1
    assert "LPIPS downloads https" in plan
