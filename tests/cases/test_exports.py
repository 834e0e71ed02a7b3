"""Exports in the hands of strangers: opened without this package, pushed, their cards read."""

import json
import os
import re
import stat
import subprocess
import sys
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from scripts import save_hf_model
from tests.refusals import refused
from tests.scripts.conftest import text_flow, tiny_vae  # noqa: F401, fixtures
from tests.scripts.flow_exports import command, export, generated
from wfimagevae.export.source import standalone_source
from wfimagevae.model import WFVAE2ImageModel
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.weight_files import weights_fingerprint

# What neither diffusers nor torch brings along is not there.
OPEN = """
import sys
from importlib.machinery import PathFinder

class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("wfimagevae", "scripts", "pydantic", "skimage", "own_vae"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hide)
import torch
from diffusers import AutoModel, DiffusionPipeline

torch.manual_seed(1)
folder, results = sys.argv[1], {}
image = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
for name in ("vae", "own"):
    vae = AutoModel.from_pretrained(f"{folder}/{name}", trust_remote_code=True)
    assert not vae.training
    results[name] = vae.decode(vae.encode(image).latent_dist.mode()).sample.detach()
for name, words in (
    ("text", {"prompt": ["a red circle", "x"], "guidance_scale": 2.0}),
    ("latent", {"class_labels": ["dog", 0], "num_images_per_prompt": 2}),
):
    pipeline = DiffusionPipeline.from_pretrained(f"{folder}/{name}", trust_remote_code=True)
    pictures = pipeline(num_inference_steps=2, seed=3, **words).images
    results[name] = [torch.tensor(list(picture.tobytes())) for picture in pictures]
    again = [pipeline(**words, num_inference_steps=1, output_type="np", return_dict=False,
                      generator=torch.Generator().manual_seed(i))[0] for i in (0, 0, 1)]
    assert (again[0] == again[1]).all() and (again[0] != again[2]).any()
torch.save(results, f"{folder}/results.pt")
"""
OWN = """
from diffusers.configuration_utils import register_to_config
from torch import nn
from wfimagevae.model import ImageBaseAE
from wfimagevae.model.modeling_aebase import DecoderOutput, EncoderOutput

WIDTH = 3
WIDTH *= 2  # moments


class Half(nn.Conv2d):
    pass


class OwnVae(ImageBaseAE):
    spatial_factor = 2

    @register_to_config
    def __init__(self, latent_dim=3, scale=None, shift=None):
        super().__init__()
        self.encoder = Half(3, WIDTH, 2, 2)
        self.decoder = nn.ConvTranspose2d(latent_dim, 3, 2, 2)
        self.set_latent_statistics(shift, scale)

    def encode(self, x):
        from wfimagevae.model.modules import DiagonalGaussian

        return EncoderOutput(DiagonalGaussian(self.encoder(x)))

    def decode(self, z):
        return DecoderOutput(self.decoder(z) + self.own_config()["more"])

    def own_config(self):  # as a method of our base class is called
        return {"more": 0.5}
"""


@pytest.fixture(scope="module")
def exports(tiny_vae, text_flow, tmp_path_factory):  # noqa: F811
    """Folders of four exports, and of what they were made of."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("exports")
    (source / "own_vae.py").write_text(OWN)
    facts = {"space": "latent", "class_names": ["cat", "dog"], "shift": [0.5], "scale": [2.0]}
    fingerprint = weights_fingerprint(WFVAE2ImageModel.from_pretrained(tiny_vae))
    facts["vae"] = {"source": f"WFVAE2Image:{tiny_vae}", "fingerprint": fingerprint}
    sizes = {"input_size": 2, "in_channels": 4, "num_classes": 2, "depth": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(source)
        patch.setattr(sys, "path", [*sys.path, str(source)])
        own = ModelRegistry.get_model("own_vae:OwnVae")
        own().save_pretrained(source / "own")
        export(source / "latent", facts, "FlowDiT-S/2", **sizes)
        places = {"vae": tiny_vae, "text": text_flow}
        places |= {name: source / name for name in ("own", "latent")}
        for name, place in places.items():
            words = ["--from_pretrained", place, "--save_dir", out / name]
            words += ["--model_name", "own_vae:OwnVae"] if name == "own" else []
            command(save_hf_model, *words)
    return out, places


def test_exports_open_where_this_package_is_not(exports, tmp_path):
    """huggingface/diffusers: remote code of AutoModel and of DiffusionPipeline."""
    out, places = exports
    variables = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-I", "-c", OPEN, str(out)]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | variables, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    results = torch.load(out / "results.pt")
    image = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        for name, cls in (("vae", WFVAE2ImageModel), ("own", sys.modules["own_vae"].OwnVae)):
            vae = cls.from_pretrained(places[name])
            assert torch.equal(
                vae.decode(vae.encode(image).latent_dist.mode()).sample, results[name]
            )
    for name, *more in (
        ("text", "--prompt", "a red circle", "x", "--guidance_scale", 2),
        ("latent", "--class_labels", "dog", "cat", "--num_images", 4),
    ):
        drawn = generated(places[name], tmp_path / name, "--steps", 2, "--seed", 3, *more)
        for ours, theirs in zip(drawn.values(), results[name], strict=True):
            assert abs(ours.reshape(-1) - theirs.numpy()).max() <= 1


def test_every_file_is_readable_for_others(exports):
    files = [path for path in exports[0].rglob("*") if path.is_file() and path.suffix != ".pt"]
    umask = os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_code_of_every_model_stands_alone_and_says_what_cannot(tmp_path, monkeypatch):
    for name in ModelRegistry.names():
        if isinstance(model := ModelRegistry.get_model(name), type):
            code = standalone_source(model)
            assert not re.search(r"^\s*(from|import) (wfimagevae|pydantic)", code, re.MULTILINE)
            assert code == standalone_source(model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bare").mkdir()
    for name in ("__init__", "part"):
        (tmp_path / "bare" / f"{name}.py").touch()
    for module, line, use, words in (
        ("whole", "import wfimagevae.model as models", "models", "write from ... import NAME"),
        (
            "bare/an",
            "from bare import part",
            "part",
            "bare has a module part: import from it",
        ),
        ("twice", "DEFAULT_SCALE = 3", "DEFAULT_SCALE", "two parts are called DEFAULT_SCALE"),
    ):
        code = OWN.replace("WIDTH =", f"{line}\nWIDTH =").replace(
            "super()", f"{use}\n        super()"
        )
        (tmp_path / f"{module}_vae.py").write_text(code)
        name = f"{module.replace('/', '.')}_vae:OwnVae"
        refused(words, standalone_source, ModelRegistry.get_model(name))


def test_a_card_has_all_that_a_stranger_asks(tiny_vae, tmp_path):  # noqa: F811
    protocol = {"count": 7, "size": "64x64", "source": "/secret", "versions": {"torch": "2"}}
    metrics = {"psnr": 31.25, "lpips": None, "protocol": protocol, "protocol_hash": "abc"}
    (tmp_path / "m.json").write_text(json.dumps(metrics))
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.jpg")
    words = ["--from_pretrained", tiny_vae, "--save_dir", tmp_path / "out", "--license", "mit"]
    words += ["--training_data", "Ten views of Oslo.", "--metrics_json", tmp_path / "m.json"]
    command(save_hf_model, *words, "--picture", tmp_path / "red.jpg")
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("license: mit\n", "pip install torch diffusers", "Ten views of Oslo.",
                 "AutoModel.from_pretrained", "| 31.2500 |", "Protocol abc: count 7, size 64x64.",
                 "![what the model makes](picture.png)"):  # fmt: skip
        assert part in card
    assert "secret" not in card and "lpips" not in card
    assert np.asarray(Image.open(tmp_path / "out" / "picture.png")).shape == (20, 30, 3)
    # Equal images have an infinite PSNR, which JSON lacks: no figure, no section.
    (tmp_path / "m.json").write_text(json.dumps(metrics | {"psnr": None}))
    command(save_hf_model, *words)
    assert "## Evaluation" not in (tmp_path / "out" / "README.md").read_text()
    words[3] = tmp_path / "new"
    for flag, value, told in (
        ("--license", "a: b", "no name of a license"),
        ("--picture", tmp_path / "m.json", "cannot identify image file .*m.json"),
        ("--metrics_json", tmp_path / "no.json", "No such file .*no.json"),
    ):
        refused(told, command, save_hf_model, *words, flag, value, error=(ValueError, OSError))
    assert not words[3].exists()  # refused before anything is written


def test_a_card_of_a_flow_quotes_what_eval_generation_wrote(text_flow, tmp_path):  # noqa: F811
    how = {"sampler": "heun", "steps": 25, "guidance": {"scale": 2.0}}
    row = {"fid": 9.5, "sampling": how, "protocol": {"real_count": 50}, "protocol_hash": "def"}
    (tmp_path / "m.json").write_text(json.dumps({"results": [row], "unavailable": {}}))
    words = ["--from_pretrained", text_flow, "--save_dir", tmp_path / "out"]
    command(save_hf_model, *words, "--metrics_json", tmp_path / "m.json")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| heun | 25 | 2.0 | 9.5000 |" in card and "Protocol def: real count 50." in card


def test_an_export_and_nothing_else_is_uploaded_by_those_who_may(
    exports,
    tiny_vae,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    words = ["--from_pretrained", tiny_vae, "--save_dir", tmp_path / "out", "--push_to_hub"]
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", Mock(side_effect=OSError("no network")))
    refused("--push_to_hub me/vae: no network", command, save_hf_model, *words, "me/vae")
    monkeypatch.undo()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    refused("hf auth login", command, save_hf_model, *words, "me/vae")
    refused("--push_to_hub a b", command, save_hf_model, *words, "a b")
    assert not (tmp_path / "out").exists()  # refused before anything is written
    api = Mock()
    api.return_value.create_repo.return_value = "https://huggingface.co/me/vae"
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    (tmp_path / "out").mkdir()
    command(save_hf_model, *words, "me/vae")
    assert "uploaded to https://huggingface.co/me/vae" in capsys.readouterr().out
    upload = api.return_value.upload_folder.call_args.kwargs
    assert upload["repo_id"] == "me/vae" and upload["folder_path"] == tmp_path / "out"
    assert 'from_pretrained("me/vae", ' in (tmp_path / "out" / "README.md").read_text()
    for folder in (tmp_path / "out", exports[0] / "latent"):
        files = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        private = ["notes.txt", "photos/me.png", "options.json"]
        taken = filter_repo_objects([*files, *private], allow_patterns=upload["allow_patterns"])
        assert sorted(taken) == sorted(files)


def test_a_folder_holds_one_kind_of_export(exports, tiny_vae, text_flow):  # noqa: F811
    out, _ = exports
    for source, target in ((tiny_vae, "text"), (text_flow, "vae")):
        words = ["--from_pretrained", source, "--save_dir", out / target]
        refused("another kind of export", command, save_hf_model, *words)
