"""From files to models: what is accepted, what is chosen, what is refused."""

import json
import logging
import pickle
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.test_wfvae2_image import tiny_model
from wfimagevae.model import ImageBaseAE, read_checkpoint_weights
from wfimagevae.model.vae.modeling_wfvae2_image import WFVAE2ImageModel

GOLDEN = Path(__file__).parents[1] / "golden" / "wfvae2_image_layernorm"
WEIGHTS = "diffusion_pytorch_model.safetensors"
BIAS = "encoder.conv_in.bias"


def plain_config(model) -> dict:
    return json.loads(model.to_json_string())


def weights_of(model, value: float) -> dict:
    """The model's state dict with one bias set, by which it is recognized."""
    return {k: torch.full_like(v, value) if k == BIAS else v for k, v in model.state_dict().items()}


def write_checkpoint(path, model, raw=1.0, ema=None, embed=True):
    content = {
        "current_step": 7,
        "optimizer_state": {"gen_optimizer": {}, "disc_optimizer": {}},
        "state_dict": {"gen_model": weights_of(model, raw), "disc_model": {}},
        "ema_state_dict": weights_of(model, ema) if ema is not None else {},
    }
    torch.save(content | ({"config": plain_config(model)} if embed else {}), path)


def marker(model) -> float:
    bias = dict(model.named_parameters())[BIAS]
    assert torch.equal(bias, bias[0].expand_as(bias))
    return bias[0].item()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("ema", "raw", "value"), [(2.0, "0", 2.0), (2.0, "1", 1.0), (None, "0", 1.0)]
)
def test_a_checkpoint_gives_its_ema_weights_in_eval_mode(
    model, tmp_path, monkeypatch, caplog, ema, raw, value
):
    """Raw ones if the environment wants them, or if there are no others."""
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, model, raw=1.0, ema=ema)
    monkeypatch.setenv("NOT_USE_EMA_MODEL", raw)
    loaded = ImageBaseAE.from_pretrained(path)
    assert type(loaded) is WFVAE2ImageModel and not loaded.training
    assert marker(loaded) == value
    four_d = [p for p in loaded.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in four_d)
    warnings = [] if ema else [f"{path} has no EMA weights; taking the raw ones"]
    assert [record.message for record in caplog.records] == warnings
    assert read_checkpoint_weights(path, use_ema=True)[0][BIAS][0] == (ema or 1.0)


def test_a_folder_gives_the_checkpoint_of_the_highest_step(model, tmp_path):
    write_checkpoint(tmp_path / "best-psnr.ckpt", model, ema=1.0)
    assert marker(ImageBaseAE.from_pretrained(tmp_path)) == 1
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"several checkpoints without a step: best-psnr\.ckpt, l"):
        ImageBaseAE.from_pretrained(tmp_path)
    for step in (500, 10000, 9999):
        write_checkpoint(tmp_path / f"checkpoint-{step}.ckpt", model, ema=float(step))
    assert marker(ImageBaseAE.from_pretrained(tmp_path)) == 10000


def test_config_comes_from_the_file_or_beside_it_or_the_argument(model, tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, model, embed=False)
    with pytest.raises(ValueError, match=r"embeds no config and has no config\.json beside it"):
        ImageBaseAE.from_pretrained(path)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(plain_config(model) | {"dropout": 0.5}))
    assert ImageBaseAE.from_pretrained(path, model_config=other).config.dropout == 0.5
    (tmp_path / "config.json").write_text(json.dumps(plain_config(model) | {"dropout": 0.25}))
    assert ImageBaseAE.from_pretrained(path).config.dropout == 0.25
    assert ImageBaseAE.from_pretrained(path, model_config=other).config.dropout == 0.5
    write_checkpoint(path, model)
    assert ImageBaseAE.from_pretrained(path).config.dropout == 0.0


def test_a_checkpoint_of_another_kind_of_network_is_named_whatever_config_is_given(model, tmp_path):
    path, own = tmp_path / "flow.ckpt", tmp_path / "own.json"
    own.write_text(json.dumps(plain_config(model)))
    weights = {"x_embedder.weight": torch.zeros(1)}
    config = {"_class_name": "FlowTransformer", "depth": 1}
    torch.save({"state_dict": {"gen_model": weights}, "config": config}, path)
    for given in (None, own):
        with pytest.raises(ValueError, match="'FlowTransformer', which is no WFVAE2ImageModel"):
            WFVAE2ImageModel.from_pretrained(path, model_config=given)


def test_a_reference_checkpoint_with_haar_buffers_loads(tmp_path):
    content = {"state_dict": {"gen_model": load_file(GOLDEN / "weights.safetensors")}}
    torch.save(content, tmp_path / "checkpoint-1.ckpt")
    (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text())
    loaded = ImageBaseAE.from_pretrained(tmp_path)
    assert len(loaded.state_dict()) == len(load_file(GOLDEN / "weights.safetensors")) - 24
    assert loaded.config.decoder_base_channels == [8, 16, 32]


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"weights": {}}, path)
    with pytest.raises(ValueError, match=r"holds weights: no state_dict\.gen_model"):
        ImageBaseAE.from_pretrained(path)
    # Whatever unpickling raises, for code too.
    garbage = [path.read_bytes()[:100], pickle.dumps(Path("code"))]
    garbage += [b"", b"X", b"q", b"h%", b"U_\x94", b"K\xaf.", b"PK\x03\x04"]
    for content in garbage:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.ckpt is not a readable checkpoint"):
            ImageBaseAE.from_pretrained(path)


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_models_name(monkeypatch):
    def refuse(*args, **options):
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ValueError, match=r"^nobody/such-model is no local path.*hub") as raised:
        ImageBaseAE.from_pretrained("nobody/such-model")
    assert "\n" not in str(raised.value)


def test_saving_and_reloading_is_exact(model, folder):
    loaded = ImageBaseAE.from_pretrained(str(folder))
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
        assert loaded.state_dict()[key].stride() == tensor.stride()
    loaded.save_pretrained(folder)
    assert "_name_or_path" not in json.loads((folder / "config.json").read_text())
    inner = ImageBaseAE.from_pretrained(folder.parent, subfolder="hf")
    assert plain_config(inner) == plain_config(model)
    config = plain_config(model) | {"_class_name": "WFVAE2Image"}  # a registered name serves, too
    assert type(ImageBaseAE.from_config(config, dropout=0.1)) is WFVAE2ImageModel


def test_missing_and_unexpected_keys_are_listed(folder):
    weights = load_file(folder / WEIGHTS)
    weights["extra.weight"] = weights.pop(BIAS)
    save_file(weights, folder / WEIGHTS)
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(ValueError, match=f"missing: {BIAS}; unexpected: extra.weight"):
            ImageBaseAE.from_pretrained(folder, **options)


def test_other_shapes_are_an_error_or_keep_fresh_weights(folder, caplog):
    weights = load_file(folder / WEIGHTS)
    weights[BIAS] = torch.zeros(5)
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"{BIAS}: \(5,\) in the file, \(8,\) in the model"):
        ImageBaseAE.from_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        loaded = ImageBaseAE.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert BIAS in caplog.text
    bias = loaded.encoder.conv_in.bias
    assert bias.shape == (8,)
    assert 0 < bias.abs().max() < 1  # initialized, not left as memory happened to be


def test_configs_of_other_models_are_refused(model):
    for change, message in (
        ({"_class_name": "AutoencoderKL"}, "unknown model 'AutoencoderKL'"),
        ({"_class_name": None}, "no _class_name"),
        ({"latent_dims": 4}, "no config key 'latent_dims'; known: activation, base_channels"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageBaseAE.from_config(plain_config(model) | change)


def test_folders_that_cannot_be_read_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"other\.json is of no use .* own config\.json counts"):
        ImageBaseAE.from_pretrained(folder, model_config="other.json")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        ImageBaseAE.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"holds no model: expected \.ckpt files, or config\.json"):
        ImageBaseAE.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["nowhere.ckpt", "./a/b", "/nowhere/model", "tests/nowhere", "x"])
def test_missing_local_paths_are_an_error_at_once(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ImageBaseAE.from_pretrained(name)
    assert time.perf_counter() - start < 1
