"""Checkpoints load strictly: what does not fit is an error, what is peculiar is told."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.legacy.conftest import TINY, TINY_2, by_formula, save_model
from tests.refusals import refused
from wfvae_video import WFVAE, WFVAE2
from wfvae_video.loading import WEIGHTS


@pytest.fixture
def folder(tiny_video_vae, tmp_path):
    """A copy of the tiny model, and its weights."""
    for path in tiny_video_vae.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def same(model, weights):
    state = model.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[k], weights[k]) for k in state)


def test_folders_load_with_and_without_haar_kernels(folder):
    weights = load_file(folder / WEIGHTS)
    kernels = {
        "encoder.wavelet_transform_in.gh_v_conv.conv.weight": torch.ones(1, 1, 2, 2, 2),
        "encoder.wavelet_transform_l1.ad": torch.ones(1, 1, 2, 2),
        "decoder.inverse_wavelet_transform_out.hh": torch.ones(1, 1, 2, 2, 2),
    }
    save_file(weights | kernels, folder / WEIGHTS)
    model = WFVAE.from_pretrained(folder)
    assert same(model, weights) and not model.training
    weights["encoder.wavelet_transform_in.extra"] = torch.ones(1)
    save_file(weights, folder / WEIGHTS)
    refused("Unexpected key.*wavelet_transform_in.extra", WFVAE.from_pretrained, folder)


def test_a_checkpoint_wins_and_gives_its_average_unless_told_otherwise(folder, monkeypatch):
    raw = load_file(folder / WEIGHTS)
    average = {f"module.{key}": value + 1 for key, value in raw.items()}
    content = {"epoch": 1, "state_dict": {"gen_model": raw, "dics_model": {}}}
    path = folder / "checkpoint-500.ckpt"
    torch.save(content | {"ema_state_dict": average}, path)
    for source in (folder, path):
        expected = {key: value + 1 for key, value in raw.items()}
        assert same(WFVAE.from_pretrained(source), expected)
    monkeypatch.setenv("NOT_USE_EMA_MODEL", "1")
    assert same(WFVAE.from_pretrained(folder), raw)
    monkeypatch.delenv("NOT_USE_EMA_MODEL")
    for other in (content | {"ema_state_dict": {}}, {"state_dict": raw}, raw):
        torch.save(other, path)
        assert same(WFVAE.from_pretrained(folder), raw)


def test_older_names_are_renamed_and_told(folder, caplog):
    weights = load_file(folder / WEIGHTS)
    older = {}
    for key, value in weights.items():
        key = key.replace(".connect_l2.", ".connect_l3.")
        older[key.replace(".connect_l1.", ".connect_l2.")] = value
    save_file(older, folder / WEIGHTS)
    assert same(WFVAE.from_pretrained(folder), weights)
    assert "older names, connect_l2 and connect_l3 read as l1 and l2" in caplog.text


def test_statistics_of_other_lengths_and_unknown_keys_are_told(folder, caplog):
    config = json.loads((folder / "config.json").read_text())
    config |= {"scale": [0.5, 0.5], "vae_scale_factor": 8, "_diffusers_version": "0.30"}
    (folder / "config.json").write_text(json.dumps(config))
    WFVAE.from_pretrained(folder)
    assert "scale has 2 entries for 4 latent channels" in caplog.text
    assert "passed over unknown keys: vae_scale_factor" in caplog.text
    assert "shift" not in caplog.text and "_diffusers" not in caplog.text


def test_missing_weights_and_other_shapes_are_named(folder):
    weights = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in weights.items() if "decoder.conv_out" not in k}, folder / WEIGHTS)
    words = 'WFVAE: Missing key.*"decoder.conv_out.weight", "decoder.conv_out.bias"'
    refused(words, WFVAE.from_pretrained, folder)
    weights["decoder.conv_out.bias"] = torch.zeros(7)
    save_file(weights, folder / WEIGHTS)
    refused("size mismatch for decoder.conv_out.bias", WFVAE.from_pretrained, folder)


def test_what_is_no_model_is_refused_in_a_line(folder, tmp_path_factory):
    read, empty = WFVAE.from_pretrained, tmp_path_factory.mktemp("empty")
    refused("does not exist", read, empty / "none")
    refused("holds no model", read, empty)
    refused("is of a WFVAE, not of a WFVAE2", WFVAE2.from_pretrained, folder)
    config = folder / "config.json"
    good = json.loads(config.read_text())
    for text, words in (
        ("[1]", "holds no JSON object"),
        ("{", "holds no JSON object"),
        (json.dumps(good | {"scale": 3}), "describes no WFVAE"),
        (json.dumps(good | {"norm_type": "batch"}), "norm_type 'batch' is unknown"),
    ):
        config.write_text(text)
        refused(words, read, folder)
    config.write_text(json.dumps(good))
    (folder / "a.ckpt").write_bytes(b"nothing")
    refused("a.ckpt holds no readable weights", read, folder)
    torch.save({"epoch": 3}, folder / "a.ckpt")
    refused("holds no state dict, but {'epoch': 3}", read, folder)
    (folder / "b.ckpt").write_bytes(b"nothing")
    refused("several checkpoints, a.ckpt, b.ckpt", read, folder)
    (folder / "a.ckpt").unlink()
    (folder / "b.ckpt").unlink()
    (folder / WEIGHTS).write_bytes(b"nothing")
    refused("holds no readable weights", read, folder)
    config.unlink()
    refused("config.json is missing", read, folder)


def test_a_model_of_levels_loads_and_names_its_attention_as_public_code_does(tmp_path):
    model = by_formula(WFVAE2(**TINY_2))
    assert model.config.mid_layers_type[1] == "Attention3DFix"
    folder = save_model(model, tmp_path / "two", mid_layers_type=["ResnetBlock3D",
                        "AttnBlock3DFix", "ResnetBlock3D"])  # fmt: skip
    assert same(WFVAE2.from_pretrained(folder), model.state_dict())
    assert "encoder.mid.1.q.conv.weight" in model.state_dict()
    assert "encoder.down1.0.weight" in WFVAE(**TINY).state_dict()
