import json
import shutil
import socket
import time
from unittest.mock import Mock

import pytest
import torch

from scripts import benchmark_vae, eval_image, recon_image
from tests.refusals import refused
from tests.scripts.flow_exports import command
from wfimagevae.generate.autoencoders import Autoencoder, load_autoencoder


def rows_of(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


CPU = ("--num_workers", 0, "--device", "cpu")


def benchmark(photos, *more):
    images = ("--real_image_dir", photos, "--resolution", 48, *CPU)
    return command(benchmark_vae, *images, "--timing_seconds", 0.01, *more)


def test_two_models_in_one_table_whose_figures_are_those_of_recon_image_and_eval_image(
    tiny_vae, diffusers_vae, photos, tmp_path, capsys
):
    models = ("--model", f"WFVAE2Image:{tiny_vae}", "--model", f"diffusers:{diffusers_vae}")
    output, metrics = tmp_path / "new" / "table.md", ("--metric", "psnr", "ssim")
    assert benchmark(photos, *models, *metrics, "--output", output) == 0
    assert output.read_text() in capsys.readouterr().out
    ours, other = rows_of(output.read_text())
    assert [ours["latent"], other["latent"]] == ["f8 c4", "f4 c3"]
    for row in (ours, other):
        assert float(row["PSNR"]) > 3 and -1 < float(row["SSIM"]) < 1
        assert float(row["encode img/s"]) > 0 and float(row["decode img/s"]) > 0
        assert float(row["GMAC"]) > 0
        assert float(row["peak memory (MiB)"]) > 4 * float(row["parameters (M)"]) * 1e6 / 2**20
    parameters = load_autoencoder(f"diffusers:{diffusers_vae}").network.num_parameters()
    assert other["parameters (M)"] == f"{parameters / 1e6:.2f}"
    assert "5 images of 48x48, protocol " in output.read_text()
    images = ("--real_image_dir", photos, "--generated_image_dir", tmp_path / "out", *CPU)
    images += ("--resolution", 48)
    command(recon_image, *images, "--from_pretrained", tiny_vae)
    command(eval_image, *images, *metrics, "--output_json", tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    assert ours["PSNR"] == f"{content['psnr']:.2f}" and ours["SSIM"] == f"{content['ssim']:.4f}"
    assert content["protocol_hash"] in output.read_text()


def test_a_checkpoint_without_a_configuration_is_given_one(tiny_vae, photos, tmp_path):
    weights = load_autoencoder(f"WFVAE2Image:{tiny_vae}").network.state_dict()
    bare = tmp_path / "bare" / "checkpoint-5.ckpt"
    bare.parent.mkdir()
    torch.save({"state_dict": {"gen_model": {f"module.{k}": v for k, v in weights.items()}}}, bare)
    own = ("--model", f"WFVAE2Image:{tiny_vae}", "--metric", "psnr")
    both = (*own, "--model", f"WFVAE2Image:{bare}", "--output", tmp_path / "table.md")
    refused("embeds no config", benchmark, photos, *both)
    config = ("--model_config", tiny_vae / "config.json")
    assert benchmark(photos, *both, *config) == 0
    first, second = rows_of((tmp_path / "table.md").read_text())
    assert first["PSNR"] == second["PSNR"] and first["latent"] == second["latent"]
    refused(r"--model_config .* has its own", benchmark, photos, *own, *config)


def test_an_output_that_is_not_finite_is_an_error():
    class Overflowing(Autoencoder):
        encode, decode = staticmethod(torch.abs), staticmethod(torch.logit)

    model, images = Overflowing(torch.nn.Linear(1, 1), 8), torch.ones(1, 3, 8, 8)
    refused("not finite in fp16", model.reconstruct, images, "fp16")


def test_unreadable_images_and_missing_weights_are_told(
    tiny_vae, photos, tmp_path, capsys, no_downloads
):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "bad.png").write_bytes(b"nothing")
    assert benchmark(folder, "--model", f"WFVAE2Image:{tiny_vae}") == 3
    output = capsys.readouterr().out
    assert "5 images of" in output and "left out: bad.png (" in output
    (row,) = rows_of(output)
    assert row["LPIPS"] == row["rFID"] == "n/a" and row["PSNR"] != "n/a"
    assert "rfid is unavailable: " in output


def test_wrong_specifications_are_explained(tiny_vae, photos, tmp_path):
    refused("is given twice", benchmark, photos, *("--model", f"WFVAE2Image:{tiny_vae}") * 2)
    refused(f"no model from {tiny_vae}", benchmark, photos, "--model", f"diffusers:{tiny_vae}")
    for spec in ("just/a/path", "diffusers:", ":x"):
        refused("write KIND:PATH", load_autoencoder, spec)
    refused("did you mean 'WFVAE2Image'", load_autoencoder, "WFVAE2Imag:x")
    refused("'FlowDiT-S/2' is no image autoencoder", load_autoencoder, "FlowDiT-S/2:x")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    refused(str(tmp_path), load_autoencoder, f"diffusers:{tmp_path}", error=(ValueError, OSError))
    words, spec = "neither a folder nor a hub name", f"diffusers:{tmp_path}/nothing"
    refused(words, load_autoencoder, spec, error=FileNotFoundError)  # and no hub is asked


def test_without_a_network_cached_models_load_without_waiting(diffusers_vae, tmp_path, monkeypatch):
    refuse = Mock(side_effect=socket.gaierror("no network in tests"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    words = "no model from nobody/such-model .*hub is out of reach"
    refused(words, load_autoencoder, "diffusers:nobody/such-model")
    repository = tmp_path / "models--nobody--cached"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(diffusers_vae, repository / "snapshots" / ("0" * 40) / "vae")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_autoencoder("diffusers:nobody/cached/vae").multiple == 4
