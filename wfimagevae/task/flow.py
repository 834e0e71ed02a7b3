"""Flow training: one player who learns velocities, or average velocities, of data."""

import logging
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from wfimagevae.dataset import TrainLoader
from wfimagevae.dataset.loader import train_loader
from wfimagevae.engine.checkpoint import Stateful
from wfimagevae.engine.cost import count_parameters
from wfimagevae.engine.distributed import World
from wfimagevae.engine.ema import Averages
from wfimagevae.engine.loop import Task
from wfimagevae.engine.player import Player, PlayerPart
from wfimagevae.engine.run import Watcher
from wfimagevae.engine.schedules import run_length
from wfimagevae.engine.sharding import shard
from wfimagevae.engine.train import run_training
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.task.flow_networks import (
    build_generator,
    build_network,
    build_objective,
    sample_macs,
)
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.flow_space import (
    FlowSpace,
    build_datasets,
    check_bucket_sizes,
    open_space,
    with_resolution,
)
from wfimagevae.task.flow_validation import FlowValidator

log = logging.getLogger("wfimagevae")

CPU = torch.device("cpu")
TEXT_ENCODER = "text_encoder."
SAMPLES = {"pixel": "images", "latent": "latents", "point": "points"}


def train(options: FlowOptions, folder: Path | None = None, watcher: Watcher | None = None) -> bool:
    """Trains a flow; arguments, result and errors as `run_training`."""
    return run_training(with_resolution(options), _assemble, folder, watcher)


def _assemble(options: FlowOptions, process: World, folder: Path) -> "FlowTask":
    # Data and the space in which it is learned; the network, checked against both.
    device = process.device
    options.check_guidance(draws=options.eval_steps > 0)
    dataset, held_out = build_datasets(options)
    space = open_space(options, dataset, device, held_out)
    # A network to be sharded may be too large for one device.
    network = build_network(options, space, CPU if options.fsdp else device)
    check_bucket_sizes(dataset, space, network)
    objective = build_objective(options, network, space)
    macs = sample_macs(network)
    num_parameters = count_parameters(network)
    if options.fsdp:
        shard(network, network.blocks_to_shard(), device)
    # The one player, what it learns from, and who judges it.
    max_steps, _ = run_length(options, len(dataset), process.size)
    player = build_flow_player(options, objective, max_steps)
    player.flops_per_sample = 2.0 * objective.passes * macs
    loader = train_loader(dataset, options.batch_size, options, device, process.rank, process.size)
    validator = None
    if held_out is not None and options.eval_steps:
        generator = build_generator(options, objective, space)
        validator = FlowValidator(options, objective, generator, held_out, process, folder)
    # What the training is about to do, in a few lines.
    classes = f"{network.num_classes} classes" if network.num_classes else "no classes"
    if not network.is_conditional:
        classes += ", no text: --cfg_dropout_prob has no effect"
    if space.text is not None:
        kind, source, length = (space.text.facts[name] for name in ("kind", "source", "length"))
        classes += f"; text by {kind}" + (f":{source}" if source else "") + f", length {length}"
    log.info(
        "%s: %s parameters, %.3g GMAC a sample of %s; %s",
        *(options.model_name, f"{num_parameters:,}", macs / 1e9),
        *(" x ".join(map(str, space.shape)), classes),
    )
    averaged = f", average of the weights {options.ema_decay}" if options.ema else ""
    log.info("%s on %s%s", options.objective, options.dataset, averaged)
    return FlowTask(options, space, player, loader, validator)


class FlowTask(Task):
    """One player, who trains a flow in a space."""

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
        super().__init__((player,), player.objective.network, loader, validator)
        self.options, self.space, self.objective = options, space, player.objective
        self.samples = SAMPLES[space.facts["space"]]

    def generator(self) -> FlowGenerator:
        """What draws samples from the network in training."""
        return build_generator(self.options, self.objective, self.space)

    def validate(self, step: int) -> tuple[dict[str, float], float, dict[str, Path]]:
        """Held-out loss and energy distance; minus the latter, in one step if it can, scores."""
        values, pictures = self.validator(self.players[0].ema, step, self.pulse)
        drawn = {name.split("/")[-1]: value for name, value in values.items()}
        return values, -drawn.get("energy_distance_one_step", drawn["energy_distance"]), pictures

    def parts(self) -> dict[str, Stateful]:
        facts = GeneratorFacts(self.space.facts | self.objective.facts)
        return super().parts() | {"generator": facts}


class GeneratorFacts:
    """What generating from a checkpoint needs to know; a resumed run must agree on the data.

    ``facts`` are plain values: those of `FlowSpace` and of the objective.
    """

    def __init__(self, facts: dict):
        self.facts = facts

    def state_dict(self) -> dict:
        return self.facts

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError where the checkpoint's flow learned samples of another kind."""
        names = ("space", "dataset", "class_names", "shift", "scale")
        before, now = (
            {name: facts.get(name) for name in names}
            | {"VAE": facts.get("vae", {}).get("fingerprint")}
            | {"text encoder": facts.get("text", {}) | {"source": None}}
            for facts in (state, self.facts)
        )
        if changed := [name for name in before if before[name] != now[name]]:
            raise ValueError(
                f"the run to resume learned data with another {', '.join(changed)}: give its data "
                "again, or start a new run from its weights (--pretrained_model_name_or_path)"
            )


def build_flow_player(options: FlowOptions, objective: nn.Module, max_steps: int) -> Player:
    """The player of an objective, with its average of the weights.

    Learning-rate schedules end at ``max_steps``.

    Raises:
        ValueError: options for a text encoder inside the network, and there is none to train.
    """
    # Freeze the network's own text encoder, or all but that.
    network, changes = objective.network, options.text_encoder_options
    inside = [p for name, p in network.named_parameters() if name.startswith(TEXT_ENCODER)]
    asked = [name for name in ("freeze_flow", "freeze_text_encoder") if getattr(options, name)]
    if asked and not inside:
        raise ValueError(
            f"--{asked[0]}: this network has no text encoder inside; see --text_encoder"
        )
    for name, parameter in network.named_parameters():
        is_inside = name.startswith(TEXT_ENCODER)
        if options.freeze_text_encoder if is_inside else options.freeze_flow:
            parameter.requires_grad_(False)
    # It may have an optimizer and a schedule of its own.
    inside = [parameter for parameter in inside if parameter.requires_grad]
    if changes and not inside:
        raise ValueError(
            "--text_encoder_options: no text encoder is trained here; --text_encoder bytes is one"
        )
    parts = [PlayerPart("text_encoder", inside, changes)] if changes else []
    blocks = network.blocks_to_shard()
    player = Player("flow", objective, options, max_steps, blocks=blocks, parts=parts)
    if options.ema:
        player.ema = Averages(network, options.ema_decay, options.ema_warmup)
    return player
