"""The networks of flow training: velocity network, objective, generator, and their cost."""

from pathlib import Path
from pkgutil import resolve_name

import torch
from torch import nn

from wfimagevae.engine.cost import count_macs, shapes_only
from wfimagevae.files import read_json
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.model.flow.velocity_model import VelocityModel, build_velocity_model
from wfimagevae.objective.flow_matching import FlowMatching
from wfimagevae.objective.options import OBJECTIVES
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.flow_space import FlowSpace, warn_of_another_encoder


def build_network(options: FlowOptions, space: FlowSpace, device: torch.device) -> nn.Module:
    """The velocity network on its device, for the data's shape and classes.

    Raises:
        ValueError: a name, configuration or weights that do not fit the data.
    """
    name, pretrained = options.model_name, options.pretrained_model_name_or_path
    config = options.network_config
    if config and not Path(config).is_file():
        raise ValueError(f"--model_config {config}: no such file")
    keys = read_json(config) if config else {}
    keys.pop("_class_name", None)
    # Data and text encoder decide these keys.
    keys["num_classes"] = space.num_classes
    if space.text is not None:
        keys |= space.text.config_keys
        keys |= {"text_attention": options.text_attention} if options.text_attention else {}
    if len(space.shape) == 1:
        keys["num_dims"] = space.shape[0]
    else:
        keys |= {"in_channels": space.shape[0], "input_size": space.shape[1]}
    keys["average_velocity"] = resolve_name(OBJECTIVES[options.objective]).average_velocity
    if pretrained:
        warn_of_another_encoder(pretrained, space.text)
        network = VelocityModel.from_pretrained(
            pretrained,
            model_name=name,
            overrides=keys,
            ignore_mismatched_sizes=options.ignore_mismatched_sizes,
        )
        if network.prediction == "epsilon":  # a public DiT starts well, but predicts noise
            network.register_to_config(prediction="velocity")
    else:
        try:
            network = build_velocity_model(name, **keys)
        except TypeError as error:  # a key that this network does not have
            hint = "; of our networks FlowTransformer and its presets (FlowDiT-S/2, ...) take text"
            raise ValueError(
                f"--model_name {name} does not suit this data or config: {error}"
                + (hint if "'text_" in str(error) else "")
            ) from None
    if network.takes_text and space.text is None:
        raise ValueError(
            "this network takes text: give --text_encoder, or a config without text_encoder"
        )
    if network.sample_shape != space.shape:
        raise ValueError(
            f"{name} takes samples of {network.sample_shape}, the data has {space.shape}"
        )
    if options.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network.to(device).train()


def build_objective(options: FlowOptions, network: nn.Module, space: FlowSpace) -> FlowMatching:
    """The objective that the options name, which owns the network.

    Raises:
        ValueError: what this PyTorch cannot do.
    """
    kind = resolve_name(OBJECTIVES[options.objective])
    if kind.average_velocity and options.fsdp and options.compile and torch.__version__ < (2, 15):
        raise ValueError(
            f"--fsdp --compile with --objective {options.objective} needs torch 2.15, this is "
            f"{torch.__version__}: leave out --compile"
        )
    objective = kind(network, space.encode, options, options.seed, space.condition)
    if options.compile:
        objective.compile(options.compile_mode)
    return objective


def build_generator(
    options: FlowOptions, objective: FlowMatching, space: FlowSpace
) -> FlowGenerator:
    """What draws samples from the network in training."""
    facts = space.facts | objective.facts
    downsampling = options.resolution // space.shape[-1] if facts["space"] == "latent" else 1
    network, decode = objective.network, space.decode
    device = next(network.parameters()).device
    precision = options.mix_precision
    return FlowGenerator(network, device, facts, decode, space.text, downsampling, precision)


def sample_macs(network: nn.Module) -> int:
    """Multiply-accumulates of a forward pass for one sample."""
    device = next(network.parameters()).device
    with shapes_only():
        x = torch.empty(1, *network.sample_shape, device=device)
        t = torch.empty(1, device=device)
        return count_macs(lambda: network(x, t, network.null_condition(1, device)))
