"""Networks of a user's own, outside of the package: trained, resumed, saved and read again."""

import json
import sys
from pathlib import Path

import pytest
import torch

from scripts.save_hf_model import main as save_hf_model
from tests.task.training import FlowPlace, Workplace, differences, load
from wfimagevae.generate.autoencoders import load_autoencoder
from wfimagevae.generate.generator_files import load_generator
from wfimagevae.model import ImageBaseAE, VelocityModel
from wfimagevae.model.flow.velocity_model import build_velocity_model
from wfimagevae.model.modeling_aebase import autoencoder_class
from wfimagevae.model.registry import ModelRegistry

NETWORKS = """
import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from wfimagevae.model import ImageBaseAE, VelocityModel
from wfimagevae.model.modeling_aebase import DecoderOutput, EncoderOutput
from wfimagevae.model.modules import DiagonalGaussian


class PatchVAE(ImageBaseAE):
    @register_to_config
    def __init__(self, latent_dim=4, patch_size=4, scale=None, shift=None):
        super().__init__()
        self.encoder = nn.Conv2d(3, 2 * latent_dim, patch_size, stride=patch_size)
        self.decoder = nn.ConvTranspose2d(latent_dim, 3, patch_size, stride=patch_size)
        self.set_latent_statistics(shift, scale)

    @property
    def spatial_factor(self):
        return self.config.patch_size

    @property
    def last_layer(self):
        return self.decoder.weight

    def encode(self, x):
        return EncoderOutput(DiagonalGaussian(self.encoder(x)))

    def decode(self, z):
        return DecoderOutput(self.decoder(z.to(self.decoder.weight.dtype)))


class TinyVelocity(VelocityModel):
    @register_to_config
    def __init__(
        self, input_size=16, in_channels=3, width=8, num_classes=0, average_velocity=False
    ):
        super().__init__()
        self.sample_shape = (in_channels, input_size, input_size)
        first, last = nn.Conv2d(in_channels, width, 1), nn.Conv2d(width, in_channels, 1)
        self.blocks = nn.ModuleList([first, last])
        self.add_embedders(width)

    def predict(self, x, t, c):
        return self.blocks[1](torch.tanh(self.blocks[0](x) + c[:, :, None, None]))


def narrow_velocity(**config):
    return TinyVelocity(width=4, **config)


class NoConfig(VelocityModel):
    def __init__(self, **config):
        super().__init__()


class FixedVAE(ImageBaseAE):
    @register_to_config
    def __init__(self, latent_dim=4):
        super().__init__()


class Counter:
    pass


def counter(**config):
    return Counter()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The name of a module in the working directory, forgotten at the end."""
    (tmp_path / "orchard").mkdir()
    (tmp_path / "orchard" / "__init__.py").touch()
    (tmp_path / "orchard" / "trees.py").write_text(NETWORKS)
    (tmp_path / "orchard" / "broken.py").write_text("import no_such_dependency")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "orchard.trees"
    forget_imports()


def forget_imports():
    """As in a new process: nothing of the package is imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "orchard"]:
        del sys.modules[name]


def class_name(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["_class_name"]


def test_an_own_autoencoder_trains_resumes_and_is_exported(package, tmp_path):
    name, place = f"{package}:PatchVAE", Workplace(tmp_path)
    (tmp_path / "patch.json").write_text(json.dumps({"_class_name": name, "latent_dim": 6}))
    options = {"model_name": name, "model_config": tmp_path / "patch.json", "wavelet_loss": None}
    options |= {"eval_steps": 2, "ema": True, "gan_schedule": "alternate"}
    whole = place.train("whole", 4, **options)
    place.train("parts", 2, **options)
    forget_imports()
    parts = place.go_on("parts", 4, **options)
    assert differences(load(whole, 4), load(parts, 4)) == []
    assert load(parts, 4)["config"]["_class_name"] == name

    arguments = ["--model_name", name, "--from_pretrained", str(parts)]
    save_hf_model([*arguments, "--save_dir", str(tmp_path / "export")])
    assert class_name(tmp_path / "export") == name
    forget_imports()
    vae = ImageBaseAE.from_pretrained(tmp_path / "export")
    again = load_autoencoder(f"{name}:{parts}").network
    assert vae.config.latent_dim == 6 and type(again) is type(vae)
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(vae(image, False).sample, again(image, False).sample)
    with pytest.raises(ValueError, match="PatchVAE cannot take images apart"):
        vae.enable_tiling()
    with pytest.raises(ValueError, match="this model gives none"):
        place.train("wavelets", 1, **options | {"wavelet_loss": True})


@pytest.mark.parametrize("builder", ["TinyVelocity", "narrow_velocity"])
def test_an_own_velocity_network_trains_resumes_and_generates(package, tmp_path, builder):
    place, options = FlowPlace(tmp_path), {"model_name": f"{package}:{builder}"}
    options |= {"model_config": None, "objective": "mean_flow"}
    whole = place.train("whole", 3, **options)
    place.train("parts", 2, **options)
    forget_imports()
    parts = place.go_on("parts", 3, **options)
    assert differences(load(whole, 3), load(parts, 3)) == []

    forget_imports()
    model = VelocityModel.from_pretrained(parts)
    assert model.config.width == (8 if builder == "TinyVelocity" else 4)
    model.save_pretrained(tmp_path / "export")
    assert class_name(tmp_path / "export") == f"{package}:TinyVelocity"
    x, t = torch.randn(2, 3, 16, 16), torch.rand(2)
    labels = model.null_condition(2, "cpu")
    again = VelocityModel.from_pretrained(tmp_path / "export")
    assert torch.equal(again(x, t, labels), model(x, t, labels))
    generator = load_generator(str(parts), device=torch.device("cpu"))
    assert type(generator.model) is type(model)


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (autoencoder_class, "no_such_orchard:A", "'no_such_orchard'; write package.module:Class"),
        (autoencoder_class, "orchard.pears:A", "No module named 'orchard.pears'; write"),
        (autoencoder_class, "orchard.broken:A", "No module named 'no_such_dependency'$"),
        (autoencoder_class, ".trees:A", "importing .trees: "),
        (autoencoder_class, "PatchVEA", "no class 'PatchVEA'; did you mean orchard.trees:Patch"),
        (autoencoder_class, "TinyVelocity", "no image autoencoder; use WFVAE2Image, or a class of"),
        (autoencoder_class, "Counter", "is no image autoencoder"),
        (autoencoder_class, "FixedVAE", "must take scale, shift in its __init__"),
        (build_velocity_model, "PatchVAE", "no velocity network; use another, such as DiT-S/2, or"),
        (build_velocity_model, "Counter", "is no velocity network"),
        (build_velocity_model, "counter", "is no velocity network"),
        (build_velocity_model, "NoConfig", "decorate its __init__ with .*register_to_config"),
    ],
)
def test_models_that_are_none_are_named(package, find, name, message):
    with pytest.raises(ValueError, match=message):
        find(name if ":" in name else f"{package}:{name}")


def test_own_models_join_no_list_of_ours(package):
    names = ModelRegistry.names()
    assert ModelRegistry.get_model(f"{package}:PatchVAE").__name__ == "PatchVAE"
    assert ModelRegistry.names() == names
