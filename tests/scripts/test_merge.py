import json

import pytest
import torch

from scripts import merge_encoder_and_decoder
from tests.refusals import refused
from wfimagevae.model import WFVAE2ImageModel

WIDE = {"encoder_energy_flow_size": 32, "decoder_energy_flow_size": 32}


def make_model(folder, seed, **changes):
    torch.manual_seed(seed)
    config = {"latent_dim": 4, "base_channels": [8, 16], "layer_res_type": ["ResnetBlock2D"]}
    config |= {"encoder_energy_flow_size": 8, "decoder_energy_flow_size": 8}
    WFVAE2ImageModel(**(config | changes)).save_pretrained(folder)
    return folder


def merge(first, second, target, *more):
    words = ["--encoder_from", first, "--decoder_from", second, "--save_dir", target, *more]
    merge_encoder_and_decoder.main([str(word) for word in words])
    return WFVAE2ImageModel.from_pretrained(target)


def test_merged_model_encodes_as_one_and_decodes_as_the_other(tmp_path):
    first = make_model(tmp_path / "first", 0, shift=[1.0, 2, 3, 4], encoder_num_resblocks=1)
    second = make_model(tmp_path / "second", 1, decoder_base_channels=[8, 24])
    merged = merge(first, second, tmp_path / "merged")
    a, b = WFVAE2ImageModel.from_pretrained(first), WFVAE2ImageModel.from_pretrained(second)
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        z = merged.encode(x).latent_dist.mode()
        assert torch.equal(z, a.encode(x).latent_dist.mode())
        assert torch.equal(merged.decode(z).sample, b.decode(z).sample)
    refused("where the model comes from", merge, first, second, second)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["shift"] == [1, 2, 3, 4]
    assert config["encoder_num_resblocks"] == 1 and config["decoder_base_channels"] == [8, 24]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"latent_dim": 8}, r"latent_dim \(4 and 8\)"),
        ({"norm_type": "groupnorm", "base_channels": [32, 32], **WIDE}, "norm_type"),
        ({"base_channels": [8, 16, 24], "layer_res_type": ["ResnetBlock2D"] * 2}, "layer_res_type"),
    ],
)
def test_halves_that_do_not_fit_are_refused_by_name(change, named, tmp_path):
    first = make_model(tmp_path / "first", 0)
    second = make_model(tmp_path / "second", 1, **change)
    refused(f"do not fit: .*{named}", merge, first, second, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_bare_checkpoint_takes_the_config_given_and_the_other_model_its_own(tmp_path):
    first = make_model(tmp_path / "first", 0)
    second = make_model(tmp_path / "second", 1, decoder_base_channels=[8, 24])
    model = WFVAE2ImageModel.from_pretrained(second)
    bare = tmp_path / "bare.ckpt"
    torch.save({"state_dict": {"gen_model": model.state_dict()}}, bare)
    refused("give model_config", merge, first, bare, tmp_path / "merged")
    config = ("--model_config", second / "config.json")
    merged = merge(first, bare, tmp_path / "merged", *config)
    assert torch.equal(merged.decoder.conv_in.weight, model.decoder.conv_in.weight)
    refused("every model has its own", merge, first, second, tmp_path / "again", *config)
    with pytest.raises(ValueError, match=r"--model_config nowhere\.json: no such file"):
        merge(first, bare, tmp_path / "again", "--model_config", "nowhere.json")
