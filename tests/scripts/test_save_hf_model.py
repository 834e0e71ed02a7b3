import json
import shutil

import pytest
import torch

from scripts import save_hf_model
from wfimagevae.export.autoencoder import check_reload
from wfimagevae.export.folder import option_table
from wfimagevae.generate.latent_stats import write_normalization
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


def output(vae):
    image = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        return vae(image, sample_posterior=False).sample


def test_export_reads_back_as_the_ema_model(run_folder, tmp_path, capsys):
    folder = tmp_path / "hf"
    save_hf_model.main(["--from_pretrained", str(run_folder), "--save_dir", str(folder)])
    assert "identical when read back" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "README.md",
    }
    exported = WFVAE2ImageModel.from_pretrained(folder)
    trained = WFVAE2ImageModel.from_pretrained(run_folder)
    assert torch.equal(output(exported), output(trained))
    config = json.loads((folder / "config.json").read_text())
    assert config["_class_name"] == "WFVAE2ImageModel" and "_name_or_path" not in config


def test_raw_weights_differ_from_ema(run_folder, tiny_vae, tmp_path):
    arguments = ["--ckpt_path", str(run_folder / "checkpoint-20.ckpt"), "--use_raw_weights"]
    save_hf_model.main([*arguments, "--save_dir", str(tmp_path / "raw")])
    exported = output(WFVAE2ImageModel.from_pretrained(tmp_path / "raw"))
    assert torch.equal(exported, output(WFVAE2ImageModel.from_pretrained(tiny_vae)))
    assert not torch.equal(exported, output(WFVAE2ImageModel.from_pretrained(run_folder)))


def test_card_tells_training_and_figures_but_no_paths(run_folder, tmp_path):
    metrics = {"psnr": 31.25, "lpips": None, "protocol": {"count": 7, "size": "64x64"}}
    (tmp_path / "m.json").write_text(json.dumps(metrics | {"protocol_hash": "abc"}))
    folder = tmp_path / "my-vae"
    arguments = ["--from_pretrained", str(run_folder), "--save_dir", str(folder)]
    save_hf_model.main([*arguments, "--metrics_json", str(tmp_path / "m.json")])
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "# my-vae\n" in card
    assert "8x downsampling, 4 latent channels" in card
    assert "| lr | 0.0001 |" in card and "| psnr | 31.2500 |" in card and "lpips" not in card
    assert "7 images, 64x64, protocol abc" in card
    assert "secret" not in card and str(tmp_path) not in card


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_steps": 70, "epochs": 10}, "| max_steps | 70 |"),
        ({"max_steps": None, "epochs": 10}, "| epochs | 10 |"),
    ],
)
def test_a_card_tells_the_length_that_counted_alone(options, told):
    lines = option_table(options, ("max_steps", "epochs")).splitlines()
    assert [line for line in lines if "max_steps" in line or "epochs" in line] == [told]


def test_code_in_the_card_runs(run_folder, tmp_path):
    folder = tmp_path / "hf"
    save_hf_model.main(["--from_pretrained", str(run_folder), "--save_dir", str(folder)])
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    scope = {}
    exec(code.replace("path/to/this/folder", str(folder)).replace("256", "64"), scope)
    assert scope["reconstruction"].shape == (1, 3, 64, 64)


def test_statistics_that_an_export_replaces_are_told_of(run_folder, tmp_path, caplog):
    folder = tmp_path / "hf"
    words = ["--from_pretrained", str(run_folder), "--save_dir", str(folder)]
    save_hf_model.main(words)
    save_hf_model.main(words)
    assert "latent_stats" not in caplog.text
    config = json.loads((folder / "config.json").read_text())
    write_normalization(folder / "config.json", [0.5] * 4, [2.0] * 4)
    save_hf_model.main(words)
    assert caplog.text.count("run latent_stats.py --write again") == 1
    assert json.loads((folder / "config.json").read_text()) == config
    (folder / "config.json").write_text("{")  # of an export that was interrupted
    save_hf_model.main(words)
    assert json.loads((folder / "config.json").read_text()) == config


def test_a_folder_that_differs_is_noticed(tiny_vae, tmp_path):
    vae = WFVAE2ImageModel.from_pretrained(tiny_vae)
    check_reload(vae, tiny_vae)
    with torch.no_grad():
        vae.last_layer[0, 0, 0, 0] += 1e-6
    with pytest.raises(ValueError, match=r"decoder\.conv_out\.weight"):
        check_reload(vae, tiny_vae)


def test_an_export_never_overwrites_its_source(tiny_vae, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_vae, folder)
    with pytest.raises(ValueError, match="where the model comes from"):
        save_hf_model.main(["--from_pretrained", str(folder), "--save_dir", f"{folder}/"])


def test_a_target_that_would_not_be_read_back_is_refused(run_folder, tiny_vae, tmp_path):
    """A .ckpt wins over an export beside it."""
    checkpoint = str(run_folder / "checkpoint-20.ckpt")
    before = sorted(run_folder.iterdir())
    for source in (checkpoint, str(tiny_vae)):
        with pytest.raises(ValueError, match=r"holds \.ckpt files"):
            save_hf_model.main(["--from_pretrained", source, "--save_dir", str(run_folder)])
    assert sorted(run_folder.iterdir()) == before
    with pytest.raises(ValueError, match="is a file"):
        save_hf_model.main(["--from_pretrained", str(tiny_vae), "--save_dir", checkpoint])


def test_figures_must_be_those_of_an_evaluation(tiny_vae, tmp_path):
    base = ["--from_pretrained", str(tiny_vae), "--save_dir", str(tmp_path / "hf")]
    (tmp_path / "broken.json").write_text("{")
    for path, words in ((tiny_vae / "config.json", "no protocol"), ("broken.json", "is not JSON")):
        with pytest.raises(ValueError, match=words):
            save_hf_model.main([*base, "--metrics_json", str(tmp_path / path)])
    assert not (tmp_path / "hf").exists()


def test_from_another_folder(run_folder, tmp_path, run_script):
    done = run_script(
        "save_hf_model.py", "--from_pretrained", "run", "--save_dir", "out/hf", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "hf" / "config.json").is_file()


def test_an_autoencoder_takes_no_other_one_along(tiny_vae, tmp_path):
    words = ["--from_pretrained", str(tiny_vae), "--save_dir", str(tmp_path / "hf")]
    with pytest.raises(ValueError, match="belongs to a flow"):
        save_hf_model.main([*words, "--vae", "WFVAE2Image:elsewhere"])
    with pytest.raises(ValueError, match=r"--text_encoder t5:x belongs to a flow"):
        save_hf_model.main([*words, "--text_encoder", "t5:x"])
