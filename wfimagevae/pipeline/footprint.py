"""Parameters and memory of a step, from dry runs on shapes alone."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from wfimagevae.engine.cost import count_parameters
from wfimagevae.engine.device import autocast
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.model.losses.discriminator import NLayerDiscriminator
from wfimagevae.pipeline.components import DECODER, DISCRIMINATOR, ENCODER, FLOW, TEXT_ENCODER
from wfimagevae.task.flow_networks import build_network
from wfimagevae.task.flow_space import FlowSpace

# Values that each optimizer keeps for one parameter.
_MOMENTS = {"adamw": 2, "adam": 2, "lion": 1, "sgd": 1, "rmsprop": 1, "muon": 1}
# VGG16's features, as LPIPS keeps them: values for one pixel.
_VGG_VALUES, _VGG_PARAMETERS = 270, 14_714_688
_BYTES = 4


@dataclass
class Footprint:
    """What a step holds.

    Attributes:
        parameters: Of each component.
        states: Bytes of weights, gradients, optimizer and averages.
        activations: Bytes that backward needs of one micro-batch.
        notes: What is not counted.
        size_multiple: Height and width of a flow's samples are multiples of this.
        shapes: Of the weights that travel to later steps, by component and name.
    """

    parameters: dict[str, int] = field(default_factory=dict)
    states: int = 0
    activations: int = 0
    notes: list[str] = field(default_factory=list)
    size_multiple: int = 1
    shapes: dict[str, dict[str, tuple]] = field(default_factory=dict)


class _PlannedText:
    """Stands for a text encoder that is not loaded: only what sizes the network."""

    def __init__(self, config_keys: dict):
        self.config_keys = config_keys


def vae_footprint(
    options: TrainingOptions, build: Callable[[], nn.Module], trained: frozenset, dry_runs: dict
) -> Footprint:
    """Of a VAE step.

    Args:
        options: Of its training.
        build: Makes the autoencoder.
        trained: Components that learn.
        dry_runs: Of the steps so far; a step takes one of the same sizes from there.

    Raises:
        ValueError: images too small for the discriminator.
    """
    size, batch = options.resolution, options.batch_size
    names = ("resolution", "batch_size", "mix_precision", "gradient_checkpointing")
    key = (*(getattr(options, name) for name in names), trained & {ENCODER, DECODER})
    if key not in dry_runs:
        dry_runs[key] = _autoencoder(options, build, trained)
    counts, kept = dry_runs[key]
    found = Footprint(dict(counts), activations=kept)
    if options.disc_weight > 0:
        key = (*(getattr(options, name) for name in names), options.disc_num_layers)
        if key not in dry_runs:
            dry_runs[key] = _critic(options)
        found.parameters[DISCRIMINATOR], kept, found.shapes[DISCRIMINATOR] = dry_runs[key]
        found.activations += 2 * kept
    if options.perceptual_weight > 0:
        width = 4 if options.mix_precision == "fp32" else 2
        found.activations += batch * _VGG_VALUES * size**2 * width
        found.states += _VGG_PARAMETERS * _BYTES
    averaged = found.parameters[ENCODER] + found.parameters[DECODER]
    found.states += _state_bytes(found.parameters, options, trained, averaged)
    return found


def _autoencoder(
    options: TrainingOptions, build: Callable[[], nn.Module], trained: frozenset
) -> tuple[dict[str, int], int]:
    """Parameters of its halves, and the bytes that it keeps."""
    size, batch = options.resolution, options.batch_size
    with FakeTensorMode():
        vae = _dry(build).train()
        parts = {ENCODER: vae.encoder, DECODER: vae.decoder}
        for name, part in parts.items():
            part.requires_grad_(name in trained)
        images = torch.empty(batch, 3, size, size)
        kept = _kept_bytes(vae, options, lambda: vae(images))
    return {name: count_parameters(part) for name, part in parts.items()}, kept


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


def _shapes(network: nn.Module) -> dict[str, tuple]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def flow_footprint(
    options: TrainingOptions,
    shape: tuple[int, int, int],
    text_keys: dict | None,
    trained: frozenset,
) -> Footprint:
    """Of a flow step; the frozen networks that encode images and text come on top.

    Args:
        options: Of its training.
        shape: Of one sample.
        text_keys: Configuration keys that the text encoder decides; None without text.
        trained: Components that learn.
    """
    text = None if text_keys is None else _PlannedText(text_keys)
    space = FlowSpace(shape, 0, None, None, {}, None, text)
    found = Footprint()
    plain = options.changed(compile=False)
    with FakeTensorMode():
        network = _dry(lambda: build_network(plain, space, torch.device("meta")))
        inside = {n: p for n, p in network.named_parameters() if n.startswith(f"{TEXT_ENCODER}.")}
        counts = {TEXT_ENCODER: sum(p.numel() for p in inside.values())}
        counts = {name: count for name, count in counts.items() if count}
        found.parameters = {FLOW: count_parameters(network) - sum(counts.values())} | counts
        found.shapes = {FLOW: _shapes(network)}
        found.size_multiple = network.size_multiple or shape[-1]
        batch = options.batch_size
        x, t = torch.empty(batch, *shape), torch.empty(batch)
        condition = network.null_condition(batch, torch.device("cpu"))
        found.activations = _kept_bytes(network, options, lambda: network(x, t, condition))
    total = sum(found.parameters.values())
    found.states = _state_bytes(found.parameters, options, trained, total)
    return found


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
