"""The plan: what would be trained, counted without building it."""

import re

import pytest
import torch
from torch import nn

from tests.pipeline.files import TINY_FLOW, TINY_VAE, PipelinePlace
from wfimagevae.model.losses.discriminator import NLayerDiscriminator
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.pipeline.document import PipelineError
from wfimagevae.pipeline.footprint import _dry, _kept_bytes
from wfimagevae.pipeline.loading import load_pipeline
from wfimagevae.pipeline.planning import describe_plan


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


def test_kept_bytes_are_those_that_backward_reads():
    from torch._subclasses.fake_tensor import FakeTensorMode

    options = {"mix_precision": "fp32", "gradient_checkpointing": False}
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
