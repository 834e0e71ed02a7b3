"""SPADE modulation of the decoder by the latent."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F

from tests.model.test_wfvae2_image import TINY, gradients, tiny_model
from wfimagevae.export.folder import merge
from wfimagevae.model import ImageBaseAE
from wfimagevae.model.modules.blocks import Spade
from wfimagevae.model.vae.modeling_wfvae2_image import WFVAE2ImageModel


def test_it_scales_and_shifts_by_convolutions_of_the_resized_latent():
    spade = Spade(4, 6).double()
    torch.nn.init.normal_(spade.conv_out.weight)
    torch.nn.init.normal_(spade.conv_out.bias)
    x, latent = torch.randn(2, 6, 8, 12).double(), torch.randn(2, 4, 2, 3).double()
    resized = F.interpolate(latent, (8, 12), mode="bilinear", align_corners=False)
    scale, shift = spade.conv_out(spade.conv_in(resized).relu()).split(6, dim=1)
    torch.testing.assert_close(spade(x, latent), x * (1 + scale) + shift)


@pytest.mark.parametrize("norm_type", ["layernorm", "groupnorm"])
def test_a_fresh_modulation_changes_nothing(norm_type):
    widths = {"base_channels": [32, 32, 32], "decoder_energy_flow_size": 32}
    options = widths | {"encoder_energy_flow_size": 32, "norm_type": norm_type}
    plain = tiny_model(**options).eval()
    model = WFVAE2ImageModel(**TINY | options, spade=True).eval()
    weights = plain.state_dict()
    extra = model.state_dict().keys() - weights.keys()
    assert extra and all(key.startswith("decoder.") and ".spade" in key for key in extra)
    model.load_state_dict(model.state_dict() | weights)
    x = torch.rand(2, 3, 24, 40) * 2 - 1
    want = plain(x, sample_posterior=False).sample
    torch.testing.assert_close(model(x, sample_posterior=False).sample, want)
    # One modulation for each norm of the decoder.
    norms = [n for n, m in plain.decoder.named_modules() if type(m).__name__.startswith("Channel")]
    assert len(extra) == 4 * len(norms)


def test_pretrained_weights_without_one_get_a_fresh_one_and_nothing_else_is_missing(
    tmp_path, caplog
):
    plain = tiny_model().eval()
    config = json.loads(plain.to_json_string())
    content = {"state_dict": {"gen_model": plain.state_dict()}, "config": config}
    torch.save(content, tmp_path / "a.ckpt")
    (tmp_path / "spade.json").write_text(json.dumps(config | {"spade": True}))
    with caplog.at_level(logging.INFO):
        model = ImageBaseAE.from_pretrained(tmp_path / "a.ckpt", tmp_path / "spade.json")
    assert "no SPADE modulation" in caplog.text and model.config.spade
    x = torch.rand(1, 3, 16, 16)
    want = plain(x, sample_posterior=False).sample
    torch.testing.assert_close(model(x, sample_posterior=False).sample, want)

    broken = {k: v for k, v in model.state_dict().items() if "norm_out.spade" not in k}
    del broken["decoder.spade_out.conv_in.bias"]
    torch.save({"state_dict": {"gen_model": broken}}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"missing: decoder\.spade_out\.conv_in\.bias"):
        ImageBaseAE.from_pretrained(tmp_path / "b.ckpt", tmp_path / "spade.json")
    content["config"] = config | {"spade": True}
    torch.save(content, tmp_path / "c.ckpt")
    for load in (lambda: ImageBaseAE.from_pretrained(tmp_path / "c.ckpt"),
                 lambda: model.load_weights(plain.state_dict())):  # fmt: skip
        with pytest.raises(ValueError, match="missing: decoder"):
            load()


def test_the_latent_speaks_at_every_level():
    model, seen = tiny_model(spade=True), []
    z = torch.randn(1, 4, 2, 3)
    for module in model.modules():
        if isinstance(module, Spade):
            module.register_forward_hook(lambda m, args, y: seen.append(args))
    model.decode(z)
    assert {tuple(x.shape[2:]) for x, _ in seen} == {(2, 3), (4, 6), (8, 12)}
    assert all(torch.equal(latent, z) for _, latent in seen)


def test_a_fresh_modulation_learns():
    model = WFVAE2ImageModel(**TINY, spade=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {k: v.clone() for k, v in model.state_dict().items() if ".spade" in k}
    for _ in range(2):  # the first step moves the convolutions that start at zero
        gradients(model, torch.randn(1, 3, 16, 16), torch.randn(1, 4, 2, 2))
        optimizer.step()
    after = model.state_dict()
    assert all(not torch.equal(after[key], value) for key, value in before.items())


def test_a_modulated_decoder_merges_with_a_plain_encoder():
    plain, modulated = tiny_model().eval(), tiny_model(spade=True).eval()
    merged = merge(plain, modulated)
    z = torch.randn(1, 4, 3, 2)
    assert merged.config.spade
    assert torch.equal(merged.decode(z).sample, modulated.decode(z).sample)
    assert not merge(modulated, plain).config.spade


def test_the_1024_example_grows_by_a_sixth():
    def size(**options):
        with torch.device("meta"):
            return sum(p.numel() for p in WFVAE2ImageModel(**options).parameters())

    assert size(spade=True) / size() == pytest.approx(7 / 6, rel=0.01)
