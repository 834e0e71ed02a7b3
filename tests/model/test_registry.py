"""The registry; every registered autoencoder runs forward, backward, saves and reloads.

All other names do so in tests/model/flow and tests/model/glide.
"""

import pytest
import torch

from tests.model.test_wfvae2_image import ALL_VARIANTS, tiny_model
from wfimagevae.model import ImageBaseAE
from wfimagevae.model.flow.velocity_model import VelocityModel
from wfimagevae.model.registry import ModelRegistry


@ALL_VARIANTS
def test_registered_models_run_learn_save_and_reload(options, tmp_path):
    model = tiny_model(**options)
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
    assert type(reloaded) is type(model) is ModelRegistry.get_model("WFVAE2Image")
    assert options.items() <= dict(reloaded.config).items()
    expected = model(x, sample_posterior=False).sample
    assert torch.equal(reloaded(x, sample_posterior=False).sample, expected)
    z = model.encode(x).latent_dist.mode()
    exported = torch.export.export(model.decoder, (z,))
    torch.testing.assert_close(exported.module()(z)[0], expected)


@torch.no_grad()
@ALL_VARIANTS
def test_tiles_change_registered_models_little(options):
    model = tiny_model(**options).eval()
    x = torch.rand(1, 3, 320, 288) * 2 - 1
    whole = model(x, sample_posterior=False).sample
    model.enable_tiling(tile_size=256, overlap=128)
    tiled = model(x, sample_posterior=False).sample
    assert 0 < (tiled - whole).square().mean() < 0.03 * whole.square().mean()


def test_every_advertised_name_is_registered():
    patches = {"DiT": (2, 4, 8), "FlowDiT": (1, 2, 4, 8)}
    presets = {
        f"{kind}-{size}/{patch}"
        for kind, choices in patches.items()
        for size in ("S", "B", "L", "XL")
        for patch in choices
    }
    classes = {"FlowTransformer", "MLP", "SmallCNN", "UNet", "WFVAE2Image", "Glide"}
    presets |= {f"GLIDE-{name}" for name in ("base", "upsample", "latent")}
    presets |= {f"GLIDE-{name}-inpaint" for name in ("base", "upsample")}
    assert presets | classes <= set(ModelRegistry.names())


def test_a_model_is_found_by_name_and_by_class_name_and_none_by_another():
    by_class = ModelRegistry.get_model("WFVAE2ImageModel")
    assert ModelRegistry.get_model("WFVAE2Image") is by_class
    message = "unknown model 'WFVAEImage'; did you mean 'WFVAE2Image'\\? Registered: DiT-B/2, "
    with pytest.raises(ValueError, match=message):
        ModelRegistry.get_model("WFVAEImage")
    with pytest.raises(ValueError, match="unknown model 'diffusers:folder/vae'; Registered: DiT-"):
        ModelRegistry.get_model("diffusers:folder/vae", VelocityModel)
    with pytest.raises(ValueError, match="'WFVAE2Image' is taken by WFVAE2ImageModel"):
        ModelRegistry.register("WFVAE2Image")(dict)
