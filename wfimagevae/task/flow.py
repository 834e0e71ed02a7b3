"""Flow training: one player who learns velocities, or average velocities, of data."""

import logging
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import ClassVar

import torch
from torch import nn

from wfimagevae.dataset.loader import TrainLoader
from wfimagevae.dataset.protocol import TrainData
from wfimagevae.engine.checkpoint import Part
from wfimagevae.engine.cost import count_macs
from wfimagevae.engine.device import multiply_in_fp8
from wfimagevae.engine.distributed import World
from wfimagevae.engine.ema import Averages
from wfimagevae.engine.loop import Task
from wfimagevae.engine.player import Player, PlayerPart
from wfimagevae.engine.run import Watcher
from wfimagevae.engine.sharding import shard
from wfimagevae.engine.train import run_training
from wfimagevae.files import read_config
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.model.flow.velocity_model import VelocityModel, build_velocity_model
from wfimagevae.objective.flow_matching import FlowMatching
from wfimagevae.objective.options import OBJECTIVES
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.flow_space import (
    FlowSpace,
    build_datasets,
    check_bucket_sizes,
    open_space,
    warn_of_another_encoder,
    with_resolution,
)
from wfimagevae.task.flow_validation import FlowValidator

log = logging.getLogger("wfimagevae")

CPU = torch.device("cpu")
TEXT_ENCODER = "text_encoder."
SAMPLES = {"pixel": "images", "latent": "latents", "point": "points"}


def train(options: FlowOptions, folder: Path | None = None, watcher: Watcher | None = None) -> bool:
    """Trains a flow; arguments, result and errors as `run_training`."""
    options = with_resolution(options)
    if options.fsdp and options.objective == "mean_flow" and options.compile is None:
        log.info("a sharded MeanFlow is not compiled unless --compile says so")
        options = options.changed(compile=False)
    return run_training(options, _assemble, folder, watcher)


def _assemble(options: FlowOptions, process: World, folder: Path) -> "FlowTask":
    # Data and the space in which it is learned; the network, checked against both.
    device = process.device
    options.check_guidance(draws=options.eval_steps > 0)
    data = build_datasets(options)
    space = open_space(options, data[0], device, data[1])
    # A network to be sharded may be too large for one device.
    network = build_network(options, space, CPU if options.fsdp else device)
    check_bucket_sizes(data[0], space, network)
    objective = build_objective(options, network, space)
    return assemble(FlowTask, options, space, objective, data, process, folder)


def assemble(
    kind: type["FlowTask"],
    options: FlowOptions,
    space: FlowSpace,
    objective: nn.Module,
    data: tuple[TrainData, TrainData | None],
    process: World,
    folder: Path,
) -> "FlowTask":
    """A task of one player: who it is, what it learns from, and who judges it.

    ``data`` are the training data, and data held out where there is validation.
    """
    network, (dataset, held_out), device = objective.network, data, process.device
    macs = count_macs(network, *network.example_inputs(network.device))
    if options.fp8:
        if objective.average_velocity:
            raise ValueError(
                f"--objective {options.objective} takes a forward derivative, and --fp8 has none: "
                "leave it out"
            )
        count = multiply_in_fp8(network.blocks_to_shard(), device, options.mix_precision)
        log.info("%d linear layers multiply in FP8", count)
    if options.compile:
        objective.compile(options.compile_mode)
    if options.fsdp:
        how = options.mix_precision, options.fsdp_hybrid
        shard(network, network.blocks_to_shard(), device, *how)
    player = build_flow_player(options, objective, kind.player_name)
    player.flops_per_sample = 2.0 * objective.passes * macs
    place = device, process.rank, process.size
    tokenise = space.text and space.text.tokenise
    loader = TrainLoader(dataset, options.batch_size, options, *place, tokenise=tokenise)
    validator = None
    if held_out is not None and options.eval_steps:
        generator = build_generator(options, objective, space)
        validator = kind.judge(options, objective, generator, held_out, process, folder)
    # What the training is about to do, in a few lines.
    classes = f"{network.num_classes} classes" if network.num_classes else "no classes"
    if space.text is not None:
        name, source, length = (space.text.facts[name] for name in ("kind", "source", "length"))
        classes += f"; text by {name}" + (f":{source}" if source else "") + f", length {length}"
    elif not network.num_classes:
        classes += ", no text: --cfg_dropout_prob has no effect"
    numbers = network.num_parameters(), network.num_parameters(only_trainable=True)
    log.info(
        "%s: %s parameters, %s of them learn, %.3g GMAC a sample of %s; %s",
        *(options.model_name, *map("{:,}".format, numbers), macs / 1e9),
        *(" x ".join(map(str, space.shape)), classes),
    )
    averaged = f", average of the weights {options.ema_decay}" if options.ema else ""
    log.info("%s on %s%s", type(objective).__name__, options.dataset, averaged)
    return kind(options, space, player, loader, validator)


class FlowTask(Task):
    """One player, who trains a flow in a space."""

    player_name = "flow"
    judge = FlowValidator
    best_name = "best-energy-distance.ckpt"
    headline = ("train/loss", "train/error", "train/direction_loss")
    weights: ClassVar = {"flow": "state_dict.gen_model"}

    def __init__(
        self,
        options: FlowOptions,
        space: FlowSpace,
        player: Player,
        loader: TrainLoader,
        validator: FlowValidator | None = None,
    ):
        # What generating needs to know: plain values, and a resumed run must agree on the data.
        facts = space.facts | player.objective.facts
        own = {"generator": Part(lambda: facts, partial(check_same_data, facts))}
        super().__init__((player,), player.objective.network, loader, validator, own)
        self.options, self.space, self.objective = options, space, player.objective
        self.samples = SAMPLES[space.facts["space"]]

    def generator(self) -> FlowGenerator:
        """What draws samples from the network in training."""
        return build_generator(self.options, self.objective, self.space)

    def score(self, values: dict[str, float]) -> float:
        """Minus the energy distance of samples, of those in one step where it makes them."""
        drawn = {name.split("/")[-1]: value for name, value in values.items()}
        return -drawn.get("energy_distance_one_step", drawn["energy_distance"])


def check_same_data(now: dict, before: dict) -> None:
    """Raises ValueError where the facts of two flows say that they learn samples of other kinds."""
    names = ("space", "dataset", "class_names", "shift", "scale")
    now, before = (
        {name: facts.get(name) for name in names}
        | {"VAE": facts.get("vae", {}).get("fingerprint")}
        | {"text encoder": facts.get("text", {}) | {"source": None}}
        for facts in (now, before)
    )
    if changed := [name for name in before if before[name] != now[name]]:
        raise ValueError(
            f"the run to resume learned data with another {', '.join(changed)}: give its data "
            "again, or start a new run from its weights (--pretrained_model_name_or_path)"
        )


def build_flow_player(options: FlowOptions, objective: nn.Module, name: str = "flow") -> Player:
    """The player of an objective, with its average of the weights.

    Raises:
        ValueError: options for a text encoder inside the network, and there is none to train.
    """
    # Freeze the network's own text encoder, or all but that.
    network, changes = objective.network, options.text_encoder_options
    inside = [p for key, p in network.named_parameters() if key.startswith(TEXT_ENCODER)]
    asked = [flag for flag in ("freeze_flow", "freeze_text_encoder") if getattr(options, flag)]
    if asked and not inside:
        raise ValueError(f"--{asked[0]}: this network has no text encoder inside")
    for key, parameter in network.named_parameters():
        is_inside = key.startswith(TEXT_ENCODER)
        if options.freeze_text_encoder if is_inside else options.freeze_flow:
            parameter.requires_grad_(False)
    # It may have an optimizer and a schedule of its own.
    inside = [parameter for parameter in inside if parameter.requires_grad]
    if changes and not inside:
        raise ValueError("--text_encoder_options: no text encoder is trained here, as bytes would")
    parts = [PlayerPart("text_encoder", inside, options.changed(**changes))] if changes else []
    blocks = network.blocks_to_shard()
    player = Player(name, objective, options, blocks=blocks, parts=parts)
    if options.ema:
        player.ema = Averages(network, options.ema_decay, options.ema_warmup)
    return player


def build_network(options: FlowOptions, space: FlowSpace, device: torch.device) -> nn.Module:
    """The velocity network on its device, for the data's shape and classes.

    Raises:
        ValueError: a name, configuration or weights that do not fit the data.
    """
    name, pretrained = options.model_name, options.pretrained_model_name_or_path
    config = options.network_config
    if isinstance(config, str) and not Path(config).is_file():
        raise ValueError(f"--model_config {config}: no such file")
    keys = read_config(config)
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
        raise ValueError("this network takes text: give --text_encoder, or a config without it")
    if network.sample_shape != space.shape:
        raise ValueError(f"{name} takes samples of {network.sample_shape}, here are {space.shape}")
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
    return kind(network, space.encode, options, options.seed, space.condition)


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
