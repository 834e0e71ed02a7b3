"""Networks of a pipeline on shapes alone: their sizes and memory, before anything is built."""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType

from wfimagevae.engine.cost import count_parameters
from wfimagevae.engine.device import autocast
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.files import DIFFUSERS, json_text, read_json, write_json
from wfimagevae.generate.autoencoders import load_diffusers
from wfimagevae.model.losses.discriminator import NLayerDiscriminator
from wfimagevae.model.modeling_aebase import autoencoder_class
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.text import open_text_encoder
from wfimagevae.model.weight_files import config_of, find_weights
from wfimagevae.pipeline.flags import Units, config_file
from wfimagevae.pipeline.fluxflow import OPTIONS, ModelSection, PipelineFile
from wfimagevae.pipeline.steps import Pipeline, Step
from wfimagevae.task.flow import build_network
from wfimagevae.task.flow_space import FlowSpace, check_bucket_sizes

# VGG16's features, as LPIPS keeps them: values for one pixel.
_VGG_VALUES, _VGG_PARAMETERS = 270, 14_714_688
_BYTES = 4


@dataclass(frozen=True)
class VaeFacts:
    """What a plan needs to know of the autoencoder: it, on the meta device, and its name."""

    network: nn.Module
    name: str

    def config(self, pipeline: Pipeline, step: Step) -> dict:
        """The configuration that builds it again, with the SPADE that steps so far train."""
        steps = [*pipeline.before(step, "vae"), step]
        has_spade = any(other.settings.train_spade for other in steps)
        own = {} if self.name.startswith(DIFFUSERS) else self.network.own_config()
        return own | ({"spade": True} if has_spade else {})

    def units(self, size: int) -> Units:
        """Values of an image of ``size`` pixels a side, and of its latent."""
        factor = self.network.spatial_factor
        return Units(3 * size**2, self.network.config.latent_channels * (size // factor) ** 2)


def vae_facts(model: ModelSection) -> VaeFacts:
    """A file's autoencoder.

    Raises:
        ValueError: no such model, or a configuration that it refuses.
    """
    section = model.vae
    name = section.name or OPTIONS["vae"].by_flag()["model_name"].default
    if (section.pretrained or "").startswith(DIFFUSERS):
        sketch = load_diffusers(section.pretrained.removeprefix(DIFFUSERS), "meta")
        sketch.network.spatial_factor = sketch.multiple
        return VaeFacts(sketch.network, section.pretrained)
    model_class = autoencoder_class(name, ("model.vae.pretrained: diffusers:PATH",))
    config = section.config
    if config is None and section.pretrained:
        config = config_of(find_weights(section.pretrained, fits=model_class.describes))
        if config is None:
            raise ValueError(f"{section.pretrained} has no config: give model.vae.config")
    elif isinstance(config, str):
        config = read_json(config)
    with torch.device("meta"):
        return VaeFacts(model_class.from_config(config or {}), name)


def network_config(pipeline: Pipeline, vae: VaeFacts, step: Step) -> dict:
    """The registered name of a step's network and the content of its configuration."""
    if step.task == "vae":
        return {"name": vae.name} | vae.config(pipeline, step)
    flow = pipeline.content.model.flow
    config = read_json(flow.config) if isinstance(flow.config, str) else flow.config
    return {"name": flow.name} | (config or {})


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

    parameters: dict[str, int]
    activations: int  # what backward needs of one micro-batch
    states: int = 0  # weights, gradients, optimizer and averages
    shapes: dict[str, dict[str, tuple]] = field(default_factory=dict)  # of weights that travel on
    note: str = ""  # what is not counted
    drawing: int = 0  # what the largest batch of samples needs in place of activations
    drawn: tuple[int, int, int] = (0, 0, 0)  # that batch: samples, width, height

    def add_states(self, options: TrainingOptions, trained: set[str]) -> None:
        """Counts weights, and gradients, optimizer's moments and averages of what is trained."""
        moments = 2 if options.optimizer in ("adam", "adamw") else 1
        averages = len(options.ema_decay) if options.ema else 0
        for name, count in self.parameters.items():
            copies = 1 + (1 + moments if name in trained else 0)
            copies += averages if name != "discriminator" else 0
            self.states += copies * count * _BYTES


def drawn_batch(pipeline: Pipeline, step: Step, options: TrainingOptions) -> tuple[int, int, int]:
    """The largest batch of samples that validation or the pipeline draws: count, width, height."""
    output, count = pipeline.content.output, options.eval_batch_size
    if step.task == "flow":
        count = min(count, max(options.eval_num_samples, options.eval_num_images))
    batches = [(count if options.eval_steps else 0, step.size, step.size)]
    if not output.no_samples and (output.test_image_address or step.task == "flow"):
        batches += [(1, *sides) for sides in output.sample_sizes or [(step.size, step.size)]]
    return max(batches, key=math.prod)


def vae_footprint(
    pipeline: Pipeline, step: Step, options: TrainingOptions, vae: VaeFacts
) -> Footprint:
    """Size and memory of a VAE step.

    Raises:
        ValueError: images too small for the discriminator.
    """
    size, precision = options.resolution, options.mix_precision
    inputs = (options.batch_size, 3, size, size), precision
    halves = tuple(half for half in ("encoder", "decoder") if half in step.trained)
    config = json.dumps(vae.config(pipeline, step))
    counts, kept = _autoencoder(vae.name, config, halves, *inputs)
    share = 4 if options.gradient_checkpointing else 1
    footprint = Footprint(dict(counts), kept // share)
    if options.disc_weight > 0:
        count, kept, shapes = _discriminator(options.disc_num_layers, *inputs)
        footprint.parameters["discriminator"] = count
        footprint.shapes["discriminator"] = shapes
        footprint.activations += 2 * (kept // share)  # it sees real images and reconstructions
    if options.perceptual_weight > 0:
        width = 4 if precision == "fp32" else 2
        footprint.activations += options.batch_size * _VGG_VALUES * size**2 * width
        footprint.states += _VGG_PARAMETERS * _BYTES
    footprint.add_states(options, step.trained)
    count, *sides = footprint.drawn = drawn_batch(pipeline, step, options)
    if count:
        factor = vae.network.spatial_factor
        sides = [max(side // factor, 1) * factor for side in reversed(sides)]
        footprint.drawing = _drawing(vae.name, config, (count, 3, *sides), precision)
    return footprint


def _build(name: str, config: str) -> nn.Module:
    if name.startswith(DIFFUSERS):
        return load_diffusers(name.removeprefix(DIFFUSERS), "meta").network
    return ModelRegistry.get_model(name).from_config(json.loads(config))


# Cached: steps of one size share a dry run, which takes seconds.
@cache
def _autoencoder(
    name: str, config: str, trained: tuple[str, ...], shape: tuple, precision: str
) -> tuple[dict[str, int], int]:
    """Parameters of the autoencoder's halves, and the bytes that a forward pass keeps."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = dry(lambda: _build(name, config)).train()
        parts = {half: getattr(network, half) for half in ("encoder", "decoder")}
        for half, part in parts.items():
            part.requires_grad_(half in trained)
        images = torch.empty(shape)
        kept = kept_bytes(network, precision, lambda: network(images))
    return {half: count_parameters(part) for half, part in parts.items()}, kept


@cache
def _drawing(name: str, config: str, shape: tuple, precision: str) -> int:
    """The bytes that the autoencoder holds while it shows images, or decodes latents."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = dry(lambda: _build(name, config)).eval()
        x = torch.empty(shape)
        call = network if shape[1] == 3 else network.decode
        return held_bytes(precision, lambda: call(x))


@cache
def _discriminator(layers: int, shape: tuple, precision: str) -> tuple[int, int, dict[str, tuple]]:
    """The discriminator's parameters, the bytes that it keeps, and its weights' shapes."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        critic = dry(lambda: NLayerDiscriminator(layers))
        if shape[-1] < critic.min_size:
            raise ValueError(
                f"{shape[-1]} px images are too small for a discriminator of {layers} layers: "
                "write options: {disc_num_layers: N} with a smaller N, or a larger img_size"
            )
        images = torch.empty(shape)
        kept = kept_bytes(critic, precision, lambda: critic(images))
    return count_parameters(critic), kept, _shapes(critic)


def flow_footprint(
    pipeline: Pipeline, step: Step, options: TrainingOptions, vae: VaeFacts
) -> Footprint:
    """Size and memory of a flow step, without frozen image encoders.

    Raises:
        ValueError: a network that does not fit, or sizes of samples that it cannot draw.
    """
    content, size, batch = pipeline.content, step.size, options.batch_size
    # Latents of an earlier step's VAE or of a trained one, else pixels.
    shape = (3, size, size)
    is_latent = pipeline.before(step, "vae") or content.model.vae.pretrained is not None
    if is_latent:
        factor = vae.network.spatial_factor
        shape = (vae.network.config.latent_channels, size // factor, size // factor)
    keys, note = _text_keys(content.model)
    # It stands for a text encoder that is not loaded: only what sizes the network.
    text = None if keys is None else SimpleNamespace(config_keys=keys)
    space = FlowSpace(shape, 0, None, None, {}, None, text)
    plain = options.changed(compile=False, resolution=size)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = dry(lambda: build_network(plain, space, torch.device("meta")))
        x, t = torch.empty(batch, *shape), torch.empty(batch)
        condition = network.null_condition(batch, torch.device("cpu"))
        sizes = [(side, side) for side in options.reduced_min_sizes]
        images = SimpleNamespace(sample_shape=(3, size, size), sizes=sizes)
        check_bucket_sizes(images, space, network)
        kept = kept_bytes(network, options.mix_precision, lambda: network(x, t, condition))
    multiple = size // shape[-1] * (network.size_multiple or shape[-1])
    for width, height in content.output.sample_sizes or []:
        if width % multiple or height % multiple:
            raise ValueError(
                f"sample size {width}x{height}: sides of this flow's pictures are multiples of "
                f"{multiple}"
            )
    # Samples are drawn, guided ones twice, and decoded.
    count, width, height = drawn = drawn_batch(pipeline, step, options)
    sides, drawing = [side * shape[-1] // size for side in (height, width)], 0
    if count:
        rows = count * (1 if options.guidance_scale == 1 else 2)
        with FakeTensorMode(allow_non_fake_inputs=True):
            x, t = torch.empty(rows, shape[0], *sides), torch.empty(rows)
            condition = network.null_condition(rows, torch.device("cpu"))
            drawing = held_bytes(options.mix_precision, lambda: network(x, t, condition))
        if is_latent:
            config = json.dumps(vae.config(pipeline, step))
            decoded = (count, shape[0], *sides), options.mix_precision
            drawing = max(drawing, _drawing(vae.name, config, *decoded))
    inside = [p for n, p in network.named_parameters() if n.startswith("text_encoder.")]
    count = sum(p.numel() for p in inside)
    parameters = {"flow": count_parameters(network) - count}
    parameters |= {"text_encoder": count} if count else {}
    footprint = Footprint(parameters, kept // (4 if options.gradient_checkpointing else 1))
    footprint.shapes, footprint.note = {"flow": _shapes(network)}, note
    footprint.drawing, footprint.drawn = drawing, drawn
    footprint.add_states(options, step.trained)
    if is_latent and not step.settings.cache_latents:  # the frozen encoder stays beside it
        footprint.states += _BYTES * count_parameters(vae.network.encoder)
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
    facts = read_json(path)
    facts |= facts.get("text_config") or {}
    width = facts.get("hidden_size") or facts.get("d_model")
    sizes = {"text_width": width, "pooled_width": facts.get("projection_dim") or width}
    note = f"the frozen text encoder {spec} comes on top"
    return {"text_encoder": "external", "text_length": model.text_length or 128, **sizes}, note


def _shapes(network: nn.Module) -> dict[str, tuple]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def dry(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose tensors are shapes, as if on the CPU; inside a `FakeTensorMode`."""
    with unset_fake_temporarily(), torch.device("meta"), warnings.catch_warnings():
        # Weights are read, so that those which do not fit are found, and go nowhere.
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
        network = build()
    return network.to_empty(device="cpu")


def kept_bytes(network: nn.Module, precision: str, forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps of a forward pass, parameters aside."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, autocast(torch.device("cpu"), precision):
        output = forward()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output  # its graph holds what is counted until here
    return size


def held_bytes(precision: str, forward: Callable[[], object]) -> int:
    """Most bytes that a pass without gradients holds at once, parameters aside."""
    with torch.no_grad(), autocast(torch.device("cpu"), precision), MemTracker() as tracker:
        forward()
    peaks = tracker.get_tracker_snapshot("peak").values()
    kinds = (_MemRefType.PARAM, _MemRefType.BUFFER)
    return sum(peak["Total"] - sum(peak[kind] for kind in kinds) for peak in peaks)
