"""Flow training: one player who learns velocities, or average velocities, of data."""

from pathlib import Path

import torch
from torch import nn

from wfimagevae.dataset import TrainLoader
from wfimagevae.dataset.loader import train_loader
from wfimagevae.engine.distributed import World
from wfimagevae.engine.ema import Averages
from wfimagevae.engine.player import OptimizerState, Player, PlayerPart, build_player
from wfimagevae.engine.run import Watcher, run_length
from wfimagevae.engine.sharding import shard
from wfimagevae.engine.train import (
    Assembly,
    NetworkWeights,
    plain_config,
    run_tracker,
    run_training,
)
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.task.flow_networks import (
    build_generator,
    build_network,
    build_objective,
    describe_network,
    sample_macs,
)
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.flow_space import (
    build_datasets,
    check_bucket_sizes,
    open_space,
    with_resolution,
)
from wfimagevae.task.flow_validation import FlowValidator

CPU = torch.device("cpu")
TEXT_ENCODER = "text_encoder."
HEADLINE = ("train/loss", "train/error", "train/direction_loss")


def train(options: FlowOptions, folder: Path | None = None, watcher: Watcher | None = None) -> bool:
    """Trains a flow; arguments, result and errors as `run_training`."""
    return run_training(with_resolution(options), _assemble, folder, watcher)


def _assemble(options: FlowOptions, process: World, folder: Path) -> Assembly:
    # Data and the space in which it is learned; the network, checked against both.
    dataset, held_out = build_datasets(options)
    space = open_space(options, dataset, process.device, held_out)
    # A network to be sharded may be too large for one device.
    network = build_network(options, space, CPU if options.fsdp else process.device)
    check_bucket_sizes(dataset, space, network)
    # The one player.
    objective = build_objective(options, network, space)
    macs = sample_macs(network)
    lines = describe_network(options, network, space, macs)
    if options.fsdp:
        shard(network, network.blocks_to_shard(), process.device)
    max_steps = run_length(options, len(dataset), process.size).max_steps
    player = build_flow_player(options, objective, max_steps)
    player.flops_per_sample = 2.0 * objective.passes() * macs
    batch_size, device = options.batch_size, process.device
    loader = train_loader(dataset, batch_size, options, device, process.rank, process.size)
    # Validation and samples; the tracker comes last, as it may start processes.
    tracker = run_tracker(options, process, folder)
    draws = build_generator(options, objective, space, process.device)
    validator = None
    if held_out is not None and options.eval_steps:
        validator = FlowValidator(options, objective, draws, held_out, process, folder, tracker)
    task = FlowTask(player, validator, loader, {"config": plain_config(network)}, draws)
    generator = GeneratorFacts(space.facts | objective.facts())
    parts = _parts(task, network) | {"generator": generator}
    weights = {"flow": "state_dict.gen_model"}
    return Assembly(task, loader, tracker, parts, HEADLINE, lines, weights)


class FlowTask:
    """One player; validation by held-out data and by samples.

    Args:
        player: Who trains the network.
        validator: Makes figures and pictures; None without validation.
        loader: Training data.
        facts: What a checkpoint records besides its parts.
        generator: Draws samples from the network in training.
    """

    best_name = "best-energy-distance.ckpt"

    def __init__(
        self,
        player: Player,
        validator,
        loader: TrainLoader,
        facts: dict,
        generator: FlowGenerator | None = None,
    ):
        self.players, self.validator, self.loader = (player,), validator, loader
        self._facts, self.generator = facts, generator

    def turn(self, step: int) -> tuple[Player, ...]:
        """The one player."""
        return self.players

    def validate(self, step: int) -> tuple[dict[str, float], float]:
        """Held-out loss and energy distance; minus the latter, in one step if it can, scores."""
        values = self.validator(self.players[0].ema, step)
        drawn = {name.split("/")[-1]: value for name, value in values.items()}
        return values, -drawn.get("energy_distance_one_step", drawn["energy_distance"])

    def watch(self, step: int, values: dict[str, float]) -> None:
        """Nothing to warn of that the loop does not see."""

    def counters(self) -> dict[str, float]:
        """Files that could not be read so far."""
        return {"data/unreadable": self.loader.num_unreadable}

    def facts(self) -> dict:
        """Configuration of the network."""
        return self._facts


class GeneratorFacts:
    """What generating from a checkpoint needs to know; a resumed run must agree on the data.

    Args:
        facts: Plain values: those of `FlowSpace` and of the objective.
    """

    def __init__(self, facts: dict):
        self.facts = facts

    def state_dict(self) -> dict:
        return self.facts

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError where the checkpoint's flow learned samples of another kind."""
        known = [_data_facts(facts) for facts in (state, self.facts)]
        if changed := [name for name in known[0] if known[0][name] != known[1][name]]:
            raise ValueError(
                f"the run to resume learned data with another {', '.join(changed)}: give its data "
                "again, or start a new run from its weights (--pretrained_model_name_or_path)"
            )


def _data_facts(facts: dict) -> dict:
    """What must not change while a flow is trained."""
    names = ("space", "dataset", "class_names", "shift", "scale")
    vae = facts.get("vae", {}).get("fingerprint")
    text = {name: fact for name, fact in facts.get("text", {}).items() if name != "source"}
    return {name: facts.get(name) for name in names} | {"VAE": vae, "text encoder": text}


def build_flow_player(options: FlowOptions, objective: nn.Module, max_steps: int) -> Player:
    """The player of an objective, with its average of the weights.

    Args:
        options: Of the training.
        objective: What it trains.
        max_steps: Where learning-rate schedules end.
    """
    freeze_parts(options, objective.network)
    player = build_player(
        "flow",
        objective,
        options,
        max_steps,
        blocks=objective.network.blocks_to_shard(),
        parts=_text_encoder_apart(options, objective.network),
    )
    if options.ema:
        player.ema = Averages(objective.network, options.ema_decay, options.ema_warmup)
    return player


def freeze_parts(options: FlowOptions, network: nn.Module) -> None:
    """Freezes the network's own text encoder, or all but that, as the flags say.

    Raises:
        ValueError: a text encoder to freeze or to train alone, and there is none inside.
    """
    has_encoder = any(name.startswith(TEXT_ENCODER) for name, _ in network.named_parameters())
    asked = [name for name in ("freeze_flow", "freeze_text_encoder") if getattr(options, name)]
    if asked and not has_encoder:
        raise ValueError(
            f"--{asked[0]}: this network has no text encoder inside; see --text_encoder"
        )
    for name, parameter in network.named_parameters():
        inside = name.startswith(TEXT_ENCODER)
        if options.freeze_text_encoder if inside else options.freeze_flow:
            parameter.requires_grad_(False)


def _text_encoder_apart(options: FlowOptions, network: nn.Module) -> list[PlayerPart]:
    """The network's own text encoder, where it has an optimizer or a schedule of its own."""
    own = options.text_encoder_options
    inside = [
        parameter
        for name, parameter in network.named_parameters()
        if name.startswith(TEXT_ENCODER) and parameter.requires_grad
    ]
    if own and not inside:
        raise ValueError(
            "--text_encoder_options: no text encoder is trained here; --text_encoder bytes is one"
        )
    return [PlayerPart("text_encoder", inside, own)] if own else []


def _parts(task: FlowTask, network: nn.Module) -> dict:
    """What a checkpoint holds, under the names that `from_pretrained` knows."""
    (player,) = task.players
    parts = {
        "state_dict.gen_model": NetworkWeights(network),
        "sampler_state": task.loader,
        "optimizer_state.gen_optimizer": OptimizerState(player.optimizer),
        "player_state.flow": player,
    }
    if player.ema is not None:
        parts |= player.ema.parts()
    return parts
