"""The registry; every registered autoencoder runs forward, backward, saves and reloads.

The flow models, which are all other names, do so in tests/model/flow.
"""

import pytest
import torch

from wfimagevae.model import ImageBaseAE
from wfimagevae.model.registry import ModelRegistry

TINY = {
    "WFVAE2Image": {
        "latent_dim": 4,
        "base_channels": [8, 16, 24],
        "encoder_energy_flow_size": 8,
        "decoder_energy_flow_size": 8,
    }
}


VARIANTS = [
    ("WFVAE2Image", {}),
    ("WFVAE2Image", {"activation": "relu"}),
    ("WFVAE2Image", {"activation": "bezier"}),
    ("WFVAE2Image", {"spade": True}),
    ("WFVAE2Image", {"activation": "bezier", "spade": True, "decoder_num_resblocks": 3}),
]


def test_every_autoencoder_is_tried():
    assert {name for name, _ in VARIANTS} == TINY.keys()


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_registered_models_run_learn_save_and_reload(name, options, tmp_path):
    model = ModelRegistry.get_model(name)(**TINY[name] | options)
    factor = model.spatial_factor
    x = torch.rand(2, 3, 3 * factor, 2 * factor) * 2 - 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = (model(x, sample_posterior=False).sample - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    model.eval().save_pretrained(tmp_path)
    reloaded = ImageBaseAE.from_pretrained(tmp_path)
    assert type(reloaded) is type(model)
    expected = model(x, sample_posterior=False).sample
    assert torch.equal(reloaded(x, sample_posterior=False).sample, expected)


@torch.no_grad()
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_tiles_change_registered_models_little(name, options):
    torch.manual_seed(0)
    model = ModelRegistry.get_model(name)(**TINY[name] | options).eval()
    x = torch.rand(1, 3, 320, 288) * 2 - 1
    whole = model(x, sample_posterior=False).sample
    model.enable_tiling(tile_size=256, overlap=128)
    tiled = model(x, sample_posterior=False).sample
    assert 0 < (tiled - whole).square().mean() < 0.03 * whole.square().mean()


def test_a_model_is_found_by_name_and_by_class_name():
    by_class = ModelRegistry.get_model("WFVAE2ImageModel")
    assert ModelRegistry.get_model("WFVAE2Image") is by_class
    assert ModelRegistry.get_model("FlowTransformer").__name__ == "FlowTransformer"


def test_every_advertised_name_is_registered():
    patches = {"DiT": (2, 4, 8), "FlowDiT": (1, 2, 4, 8)}
    presets = {
        f"{kind}-{size}/{patch}"
        for kind, choices in patches.items()
        for size in ("S", "B", "L", "XL")
        for patch in choices
    }
    classes = {"FlowTransformer", "MLP", "SmallCNN", "UNet", "WFVAE2Image"}
    assert set(ModelRegistry.names()) == presets | classes


def test_unknown_names_suggest_the_nearest():
    message = "unknown model 'WFVAEImage'; did you mean 'WFVAE2Image'\\? Registered: DiT-B/2, "
    with pytest.raises(ValueError, match=message):
        ModelRegistry.get_model("WFVAEImage")


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="'WFVAE2Image' is taken by WFVAE2ImageModel"):
        ModelRegistry.register("WFVAE2Image")(dict)
