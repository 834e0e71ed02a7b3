"""From files to velocity models: ours, exports, public SiT and DiT files."""

import argparse
import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.flow.models import SIT, inputs_for, small_model
from wfimagevae.model import ImageBaseAE
from wfimagevae.model.flow.velocity_model import VelocityModel

SIZE = {"hidden_size": 32, "depth": 2, "num_heads": 4}  # what a registered name would say
LABELS = "y_embedder.embedding_table.weight"


@pytest.fixture(scope="module")
def public():
    return load_file(SIT / "weights.safetensors")


def load(path, **options):
    overrides = SIZE | options.pop("overrides", {})
    return VelocityModel.from_pretrained(path, model_name="DiT-S/2", overrides=overrides, **options)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("SiT-tiny.pt", lambda weights: weights),
        ("sit.pth", lambda weights: {"model": {}, "ema": weights}),
        ("DiT-tiny.pt", lambda weights: {"model": weights}),
        ("dit.safetensors", None),
    ],
)
def test_public_files_load_and_their_shapes_tell_the_config(public, tmp_path, name, wrap):
    path = tmp_path / name
    save_file(public, path) if wrap is None else torch.save(wrap(public), path)
    model = load(path)
    expected = {"input_size": 8, "in_channels": 4, "num_classes": 10, "learn_sigma": True}
    assert expected.items() <= dict(model.config).items()
    assert model.prediction == ("epsilon" if name.lower().startswith("dit") else "velocity")
    assert not model.training
    assert load(path, overrides={"prediction": "velocity"}).prediction == "velocity"
    golden = load_file(SIT / "expected.safetensors")
    with torch.no_grad():
        velocity = model(golden["x"], golden["t"], golden["y"])
    torch.testing.assert_close(velocity, golden["velocity"], rtol=0, atol=1e-4)

    model.save_pretrained(tmp_path / "export")
    config = json.loads((tmp_path / "export/config.json").read_text())
    assert config["_class_name"] == "FlowTransformer"
    export = tmp_path / "export"
    for source in (export, export / "diffusion_pytorch_model.safetensors"):
        again = VelocityModel.from_pretrained(source)
        assert torch.equal(again(golden["x"], golden["t"], golden["y"]), velocity)


def test_average_velocity_starts_from_pretrained_velocities(public, tmp_path, caplog):
    torch.save(public, tmp_path / "sit.pt")
    with caplog.at_level(logging.INFO):
        model = load(tmp_path / "sit.pt", overrides={"average_velocity": True})
    assert "fresh one changes nothing" in caplog.text
    golden = load_file(SIT / "expected.safetensors")
    for t_end in (None, golden["t"], torch.ones(3)):
        velocity = model(golden["x"], golden["t"], golden["y"], t_end)
        torch.testing.assert_close(velocity, golden["velocity"], rtol=0, atol=1e-4)
    # Resuming stays strict, and so does a checkpoint whose config has end times.
    content = {"state_dict": {"gen_model": public}, "config": json.loads(model.to_json_string())}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"missing: t_end_embedder\.mlp\.0\.bias"):
        VelocityModel.from_pretrained(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"missing: t_end_embedder\.mlp\.0\.bias"):
        model.load_weights(public)


def test_fine_tuning_on_other_classes_or_sizes_must_be_allowed(public, tmp_path, caplog):
    torch.save(public, tmp_path / "sit.pt")
    for overrides in ({"num_classes": 3}, {"num_classes": 0}, {"input_size": 16}):
        with pytest.raises(ValueError, match=r"do not fit FlowTransformer: .*; add --ignore_mis"):
            load(tmp_path / "sit.pt", overrides=overrides)
        model = load(tmp_path / "sit.pt", overrides=overrides, ignore_mismatched_sizes=True)
        assert overrides.items() <= dict(model.config).items()
        block = "blocks.1.mlp.fc2.weight"
        assert torch.equal(model.state_dict()[block], public[block])
        assert model(*inputs_for(model)).isfinite().all()
    assert model.pos_embed.shape == (1, 64, 32)
    unconditional = {key: value for key, value in public.items() if key != LABELS}
    torch.save(unconditional, tmp_path / "unconditional.pt")
    assert load(tmp_path / "unconditional.pt").num_classes == 0
    options = {"overrides": {"num_classes": 3}, "ignore_mismatched_sizes": True}
    assert load(tmp_path / "unconditional.pt", **options).num_classes == 3


def test_files_that_are_no_weights_are_refused(public, tmp_path):
    path = tmp_path / "sit.pt"
    with_code = {"ema": public, "args": argparse.Namespace(lr=1)}
    for content, message in (
        (with_code, r"holds a argparse\.Namespace beside its weights"),
        ({"ema": {"steps": 3}}, "neither a state dict nor one as 'ema' or 'model'"),
        ({"a.weight": torch.zeros(2)}, r"of no SiT or DiT: 'x_embedder\.proj\.weight'"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load(path)
    path = path.with_suffix(".safetensors")
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load(path)


def test_a_public_file_needs_the_name_of_its_size(public, tmp_path):
    torch.save(public, tmp_path / "sit.pt")
    for name, message in (
        (None, "name the size of a public file: --model_name DiT-XL/2"),
        ("DiT-S/4", r"patches of \[2, 2\], the model for 4"),
        ("WFVAE2Image", "'WFVAE2Image' is no velocity network"),
        ("SiT", "unknown model 'SiT'"),
    ):
        with pytest.raises(ValueError, match=message):
            VelocityModel.from_pretrained(tmp_path / "sit.pt", model_name=name)


@pytest.mark.parametrize("name", ["FlowDiT-S/2", "UNet", "MLP"])
def test_training_checkpoints_give_their_averaged_weights(name, tmp_path):
    model = small_model(name, num_classes=4).eval()
    config = json.loads(model.to_json_string())
    raw = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    state_dict = {"gen_model": raw, "disc_model": {}}
    content = {"state_dict": state_dict, "ema_state_dict": model.state_dict(), "config": config}
    torch.save(content, tmp_path / "checkpoint-7.ckpt")
    inputs = inputs_for(model)
    for path in (tmp_path, tmp_path / "checkpoint-7.ckpt"):
        assert torch.equal(VelocityModel.from_pretrained(path)(*inputs), model(*inputs))
    average = VelocityModel.from_pretrained(tmp_path, overrides={"average_velocity": True})
    assert torch.equal(average(*inputs[:3], torch.ones(3)), model(*inputs))
    with pytest.raises(ValueError, match="is no ImageBaseAE"):
        ImageBaseAE.from_pretrained(tmp_path)
