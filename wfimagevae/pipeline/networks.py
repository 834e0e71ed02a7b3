"""Networks of a pipeline on shapes alone: their sizes and memory, before anything is built."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from wfimagevae.engine.cost import count_parameters
from wfimagevae.engine.device import autocast
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.files import json_text, read_json, write_json
from wfimagevae.model.losses.discriminator import NLayerDiscriminator
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.text import open_text_encoder
from wfimagevae.model.weight_files import config_beside, find_weights, read_facts
from wfimagevae.pipeline.flags import Units, config_file
from wfimagevae.pipeline.fluxflow import OPTIONS, ModelSection, PipelineFile
from wfimagevae.pipeline.steps import Pipeline, Step
from wfimagevae.task.flow_networks import build_network
from wfimagevae.task.flow_space import FlowSpace

# Values that each optimizer keeps for one parameter.
_MOMENTS = {"adamw": 2, "adam": 2, "lion": 1, "sgd": 1, "rmsprop": 1, "muon": 1}
# VGG16's features, as LPIPS keeps them: values for one pixel.
_VGG_VALUES, _VGG_PARAMETERS = 270, 14_714_688
_BYTES = 4


@dataclass(frozen=True)
class VaeFacts:
    """What a plan needs to know of the autoencoder: it, on the meta device, and its name."""

    network: nn.Module
    name: str

    @property
    def config(self) -> dict:
        """The configuration that builds it again."""
        return {k: v for k, v in self.network.config.items() if not k.startswith("_")}

    def units(self, size: int) -> Units:
        """Values of an image of ``size`` pixels a side, and of its latent."""
        factor = self.network.spatial_factor
        return Units(3 * size**2, self.network.config.latent_dim * (size // factor) ** 2)


def vae_facts(model: ModelSection) -> VaeFacts:
    """A file's autoencoder.

    Raises:
        ValueError: no such model, or a configuration that it refuses.
    """
    section = model.vae
    name = section.name or OPTIONS["vae"].by_flag()["model_name"].default
    model_class = ModelRegistry.get_model(name)
    config = section.config
    if config is None and section.pretrained:
        source = find_weights(section.pretrained)
        if source.is_dir():
            config = read_json(source / "config.json")
        else:
            config = read_facts(source, "config") or config_beside(source)
    elif isinstance(config, str):
        config = read_json(config)
    with torch.device("meta"):
        return VaeFacts(model_class.from_config(config or {}), name)


def network_config(model: ModelSection, vae: VaeFacts, task: str) -> dict:
    """The registered name of a task's network and the content of its configuration."""
    if task == "vae":
        return {"name": vae.name} | vae.config
    config = model.flow.config
    config = read_json(config) if isinstance(config, str) else config
    return {"name": model.flow.name} | (config or {})


def write_configs(content: PipelineFile) -> None:
    """Gives each network's configuration that the YAML itself holds a file of its own."""
    for name in ("vae", "flow"):
        config = getattr(content.model, name).config
        if isinstance(config, dict):
            path = Path(config_file(content, name))
            if not path.exists() or path.read_text(encoding="utf-8") != json_text(config):
                write_json(path, config)


@dataclass
class Footprint:
    """What a step holds, by component; sizes in bytes."""

    parameters: dict[str, int] = field(default_factory=dict)
    states: int = 0  # weights, gradients, optimizer and averages
    activations: int = 0  # what backward needs of one micro-batch
    notes: list[str] = field(default_factory=list)  # what is not counted
    size_multiple: int = 1  # of the height and width of a flow's samples
    shapes: dict[str, dict[str, tuple]] = field(default_factory=dict)  # of weights that travel on


def vae_footprint(
    options: TrainingOptions, vae: VaeFacts, trained: frozenset, dry_runs: dict
) -> Footprint:
    """Size and memory of a VAE step; dry runs of one size serve all steps.

    Raises:
        ValueError: images too small for the discriminator.
    """
    size, batch = options.resolution, options.batch_size
    sizes = (size, batch, options.mix_precision, options.gradient_checkpointing)
    build = partial(ModelRegistry.get_model(vae.name).from_config, vae.config)
    key = (*sizes, trained & {"encoder", "decoder"})
    if key not in dry_runs:
        with FakeTensorMode():
            network = _dry(build).train()
            parts = {"encoder": network.encoder, "decoder": network.decoder}
            for name, part in parts.items():
                part.requires_grad_(name in trained)
            images = torch.empty(batch, 3, size, size)
            kept = _kept_bytes(network, options, lambda: network(images))
        dry_runs[key] = {n: count_parameters(part) for n, part in parts.items()}, kept
    counts, kept = dry_runs[key]
    footprint = Footprint(dict(counts), activations=kept)
    if options.disc_weight > 0:
        key = (*sizes, options.disc_num_layers)
        if key not in dry_runs:
            dry_runs[key] = _critic(options)
        count, kept, footprint.shapes["discriminator"] = dry_runs[key]
        footprint.parameters["discriminator"] = count
        footprint.activations += 2 * kept  # it sees real images and reconstructions
    if options.perceptual_weight > 0:
        width = 4 if options.mix_precision == "fp32" else 2
        footprint.activations += batch * _VGG_VALUES * size**2 * width
        footprint.states += _VGG_PARAMETERS * _BYTES
    averaged = counts["encoder"] + counts["decoder"]
    footprint.states += _state_bytes(footprint.parameters, options, trained, averaged)
    return footprint


def _critic(options: TrainingOptions) -> tuple[int, int, dict[str, tuple]]:
    """The discriminator's parameters, the bytes that it keeps, and its weights' shapes."""
    size, layers = options.resolution, options.disc_num_layers
    with FakeTensorMode():
        critic = _dry(lambda: NLayerDiscriminator(layers))
        if size < critic.min_size:
            raise ValueError(
                f"{size} px images are too small for a discriminator of {layers} layers: write "
                "options: {disc_num_layers: N} with a smaller N, or a larger img_size"
            )
        images = torch.empty(options.batch_size, 3, size, size)
        kept = _kept_bytes(critic, options, lambda: critic(images))
    return count_parameters(critic), kept, _shapes(critic)


def flow_footprint(
    pipeline: Pipeline, step: Step, options: TrainingOptions, shape: tuple[int, int, int]
) -> Footprint:
    """Size and memory of a flow step on samples of a shape, without frozen image encoders."""
    keys, note = _text_keys(pipeline.content.model)
    # It stands for a text encoder that is not loaded: only what sizes the network.
    text = None if keys is None else SimpleNamespace(config_keys=keys)
    space = FlowSpace(shape, 0, None, None, {}, None, text)
    footprint = Footprint(notes=[note] if note else [])
    plain = options.changed(compile=False)
    with FakeTensorMode():
        network = _dry(lambda: build_network(plain, space, torch.device("meta")))
        total = count_parameters(network)
        inside = [p for n, p in network.named_parameters() if n.startswith("text_encoder.")]
        count = sum(p.numel() for p in inside)
        footprint.parameters = {"flow": total - count} | ({"text_encoder": count} if count else {})
        footprint.shapes = {"flow": _shapes(network)}
        footprint.size_multiple = network.size_multiple or shape[-1]
        batch = options.batch_size
        x, t = torch.empty(batch, *shape), torch.empty(batch)
        condition = network.null_condition(batch, torch.device("cpu"))
        kept = _kept_bytes(network, options, lambda: network(x, t, condition))
    footprint.activations = kept
    footprint.states = _state_bytes(footprint.parameters, options, step.trained, total)
    return footprint


def _text_keys(model: ModelSection) -> tuple[dict | None, str]:
    """Configuration keys of the text encoder, without loading it, and what they leave open."""
    spec = model.text_encoder
    if not spec:
        return None, ""
    if spec == "bytes":
        return open_text_encoder(spec, "cpu", model.text_length).config_keys, ""
    path = Path(spec.partition(":")[2]) / "config.json"
    if not path.is_file():
        return None, f"{spec} is not on this machine: its layers are not counted"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts |= facts.get("text_config") or {}
    width = facts.get("hidden_size") or facts.get("d_model")
    sizes = {"text_width": width, "pooled_width": facts.get("projection_dim") or width}
    note = f"the frozen text encoder {spec} comes on top"
    return {"text_encoder": "external", "text_length": model.text_length or 128, **sizes}, note


def _shapes(network: nn.Module) -> dict[str, tuple]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _dry(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose tensors are shapes, as if on the CPU; inside a `FakeTensorMode`."""
    with unset_fake_temporarily(), torch.device("meta"), warnings.catch_warnings():
        # Weights are read, so that those which do not fit are found, and go nowhere.
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
        network = build()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(torch.empty(parameter.shape))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return network


def _state_bytes(
    parameters: dict[str, int], options: TrainingOptions, trained: frozenset, averaged: int
) -> int:
    moments = _MOMENTS[options.optimizer]
    values = sum(parameters.values())
    values += sum((1 + moments) * n for name, n in parameters.items() if name in trained)
    values += averaged * len(options.ema_decay) if options.ema else 0
    return values * _BYTES


def _kept_bytes(network: nn.Module, options: TrainingOptions, forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps of a forward pass, parameters aside."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, autocast(torch.device("cpu"), options.mix_precision):
        output = forward()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return size // 4 if options.gradient_checkpointing else size
