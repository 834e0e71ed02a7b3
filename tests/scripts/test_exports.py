"""Autoencoders as Hugging Face folders: of a training, and of the halves of two models."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from scripts import merge_encoder_and_decoder, save_hf_model
from tests.refusals import refused
from tests.scripts.flow_exports import command
from wfimagevae.export.card import option_table
from wfimagevae.export.folder import check_reload
from wfimagevae.generate.latent_cache import write_normalization
from wfimagevae.model import WFVAE2ImageModel


@pytest.fixture
def run_folder(tiny_vae, tmp_path):
    """A training run's folder whose EMA differs from its raw weights."""
    vae = WFVAE2ImageModel.from_pretrained(tiny_vae)
    raw = vae.state_dict()
    ema = {"module." + key: value + 0.01 for key, value in raw.items()}
    folder = tmp_path / "run"
    folder.mkdir()
    config = json.loads((tiny_vae / "config.json").read_text())
    content = {"state_dict": {"gen_model": raw}, "ema_state_dict": ema, "config": config}
    torch.save(content, folder / "checkpoint-20.ckpt")
    options = {"lr": 1e-4, "resolution": 64, "image_path": "/secret/photos"}
    (folder / "options.json").write_text(json.dumps(options))
    return folder


def export(source, folder, *more):
    flag = "--ckpt_path" if str(source).endswith(".ckpt") else "--from_pretrained"
    command(save_hf_model, flag, source, "--save_dir", folder, *more)
    return folder


def output(vae):
    image = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        return vae(image, sample_posterior=False).sample


def test_export_reads_back_as_ema_or_as_raw_weights(run_folder, tmp_path, capsys, tiny_vae):
    folder = export(run_folder, tmp_path / "hf")
    assert "identical when read back" in capsys.readouterr().out
    names = ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    names += ["modeling_wfvae2_image.py", "picture.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    exported = WFVAE2ImageModel.from_pretrained(folder)
    trained = WFVAE2ImageModel.from_pretrained(run_folder)
    assert torch.equal(output(exported), output(trained))
    config = json.loads((folder / "config.json").read_text())
    assert config["_class_name"] == "WFVAE2ImageModel" and "_name_or_path" not in config
    folder = export(run_folder / "checkpoint-20.ckpt", tmp_path / "raw", "--use_raw_weights")
    exported = output(WFVAE2ImageModel.from_pretrained(folder))
    assert torch.equal(exported, output(WFVAE2ImageModel.from_pretrained(tiny_vae)))
    assert not torch.equal(exported, output(WFVAE2ImageModel.from_pretrained(run_folder)))


def test_card_tells_training_and_figures_but_no_paths_and_its_code_runs(run_folder, tmp_path):
    metrics = {"psnr": 31.25, "lpips": None, "protocol": {"count": 7, "size": "64x64"}}
    (tmp_path / "m.json").write_text(json.dumps(metrics | {"protocol_hash": "abc"}))
    folder = export(run_folder, tmp_path / "my-vae", "--metrics_json", tmp_path / "m.json")
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "# my-vae\n" in card
    assert "8x downsampling, 4 latent channels" in card
    assert (
        "| lr | 0.0001 |" in card and "| psnr |\n|---|\n| 31.2500 |" in card and "lpips" not in card
    )
    assert "Protocol abc: count 7, size 64x64." in card
    assert "secret" not in card and str(tmp_path) not in card
    code = card.split("```python\n")[1].split("```")[0]
    scope = {}
    exec(code.replace("path/to/this/folder", str(folder)).replace("256", "64"), scope)
    assert scope["reconstruction"].shape == (1, 3, 64, 64)


def test_a_card_tells_the_length_that_counted_alone():
    for steps, told in ((70, "| max_steps | 70 |"), (None, "| epochs | 10 |")):
        table = option_table({"max_steps": steps, "epochs": 10, "other": 1})
        assert table.splitlines()[4:] == [told]


def test_statistics_that_an_export_replaces_are_told_of(run_folder, tmp_path, caplog):
    folder = export(run_folder, export(run_folder, tmp_path / "hf"))
    assert "latent_stats" not in caplog.text
    config = json.loads((folder / "config.json").read_text())
    write_normalization(folder / "config.json", [0.5] * 4, [2.0] * 4)
    export(run_folder, folder)
    assert caplog.text.count("run latent_stats.py --write again") == 1
    assert json.loads((folder / "config.json").read_text()) == config
    (folder / "config.json").write_text("{")  # of an export that was interrupted
    export(run_folder, folder)
    assert json.loads((folder / "config.json").read_text()) == config


def test_rounding_is_no_difference_of_an_output_that_is_nearly_zero(tiny_vae, monkeypatch):
    """As that of a network that has only begun to learn."""
    vae, outputs = WFVAE2ImageModel.from_pretrained(tiny_vae), [1e-4, 1e-4 + 1e-6, 1e-4, 2e-4]
    say = lambda self, *_: [torch.tensor([outputs.pop(0)])]  # noqa: E731
    monkeypatch.setattr(WFVAE2ImageModel, "forward", say)
    check_reload(vae, tiny_vae)
    refused("output differs", check_reload, vae, tiny_vae)


def test_a_folder_that_differs_is_noticed(tiny_vae, tmp_path):
    vae = WFVAE2ImageModel.from_pretrained(tiny_vae)
    check_reload(vae, tiny_vae)
    with torch.no_grad():
        vae.last_layer[0, 0, 0, 0] += 1e-6
    refused(r"weights differ", check_reload, vae, tiny_vae)


def test_what_would_be_no_export_is_refused(run_folder, tiny_vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_vae, "vae")
    Path("broken.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    refused("where the model comes from", export, "vae", "vae/")
    for source in ("vae", "run/checkpoint-20.ckpt"):  # which would win over an export
        refused(r"holds \.ckpt files", export, source, "run")
    refused("is a file", export, "vae", "run/checkpoint-20.ckpt")
    for flag, value, words in (
        ("--metrics_json", "vae/config.json", "no protocol"),
        ("--metrics_json", "broken.json", "is not JSON"),
        ("--vae", "WFVAE2Image:x", "--vae WFVAE2Image:x belongs to a flow"),
        ("--text_encoder", "t5:x", "--text_encoder t5:x belongs to a flow"),
    ):
        refused(words, export, "vae", "hf", flag, value)
    assert sorted(tmp_path.rglob("*")) == before


def make_model(folder, seed, **changes):
    torch.manual_seed(seed)
    config = {"latent_dim": 4, "base_channels": [8, 16], "layer_res_type": ["ResnetBlock2D"]}
    config |= {"encoder_energy_flow_size": 8, "decoder_energy_flow_size": 8}
    WFVAE2ImageModel(**(config | changes)).save_pretrained(folder)
    return folder


def merge(first, second, target, *more):
    halves = ("--encoder_from", first, "--decoder_from", second, "--save_dir", target)
    command(merge_encoder_and_decoder, *halves, *more)
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


def test_halves_that_do_not_fit_are_refused_by_name(tmp_path):
    first = make_model(tmp_path / "first", 0)
    wide = {"encoder_energy_flow_size": 32, "decoder_energy_flow_size": 32}
    three = {"base_channels": [8, 16, 24], "layer_res_type": ["ResnetBlock2D"] * 2}
    for named, change in (
        (r"latent_dim \(4 and 8\)", {"latent_dim": 8}),
        ("norm_type", {"norm_type": "groupnorm", "base_channels": [32, 32], **wide}),
        ("layer_res_type", three),
    ):
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
    words = r"--model_config nowhere\.json: no such file"
    refused(words, merge, first, bare, tmp_path / "again", "--model_config", "nowhere.json")
