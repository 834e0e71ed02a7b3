"""Networks of a pipeline on the meta device: their sizes, before anything is built."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from wfimagevae.engine.cost import count_parameters
from wfimagevae.files import read_json, write_atomically
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.weight_files import config_beside, find_weights, read_facts
from wfimagevae.pipeline.flags import config_file
from wfimagevae.pipeline.schema import PipelineFile
from wfimagevae.pipeline.units import Units

_DEFAULT_VAE = "WFVAE2Image"


@dataclass(frozen=True)
class VaeFacts:
    """What a plan needs to know of the autoencoder.

    Attributes:
        network: On the meta device.
        name: Registered name.
    """

    network: nn.Module
    name: str

    @property
    def config(self) -> dict:
        """What builds it again."""
        return {k: v for k, v in self.network.config.items() if not k.startswith("_")}

    @property
    def encoder(self) -> int:
        """Parameters."""
        return count_parameters(self.network.encoder)

    @property
    def decoder(self) -> int:
        """Parameters."""
        return count_parameters(self.network.decoder)

    def units(self, size: int) -> Units:
        """Values of an image of ``size`` pixels a side, and of its latent.

        Raises:
            ValueError: the size is no multiple of the autoencoder's.
        """
        factor = self.network.spatial_factor
        if size % factor:
            raise ValueError(f"img_size {size} must be a multiple of {factor}")
        return Units(3 * size**2, self.network.config.latent_dim * (size // factor) ** 2)


def vae_facts(content: PipelineFile) -> VaeFacts:
    """The file's autoencoder.

    Raises:
        ValueError: no such model, or a configuration that it refuses.
    """
    section = content.model.vae
    name = section.name or _DEFAULT_VAE
    model_class = ModelRegistry.get_model(name)
    config = section.config
    if config is None and section.pretrained:
        config = _config_of(section.pretrained)
    elif isinstance(config, str):
        config = read_json(config)
    with torch.device("meta"):
        return VaeFacts(model_class.from_config(config or {}), name)


def network_config(content: PipelineFile, vae: VaeFacts, task: str) -> dict:
    """What a step's network is built from: its registered name and its configuration's content.

    Args:
        content: The file.
        vae: Its autoencoder.
        task: Of the step.
    """
    if task == "vae":
        return {"name": vae.name} | vae.config
    section = content.model.flow
    config = section.config
    config = read_json(config) if isinstance(config, str) else config
    return {"name": section.name} | (config or {})


def _config_of(pretrained: str) -> dict:
    source = find_weights(pretrained)
    if source.is_dir():
        return read_json(source / "config.json")
    return read_facts(source, "config") or config_beside(source)


def write_configs(content: PipelineFile) -> None:
    """Gives each network's configuration that the YAML itself holds a file of its own."""
    for name in ("vae", "flow"):
        config = getattr(content.model, name).config
        if isinstance(config, dict):
            text = json.dumps(config, indent=2) + "\n"
            path = Path(config_file(content, name))
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                write_atomically(path, lambda file, text=text: file.write(text.encode()))
