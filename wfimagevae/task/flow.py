"""Flow training: one player who learns velocities, or average velocities, of data."""

from pathlib import Path

from torch import nn

from wfimagevae.dataset import TrainLoader
from wfimagevae.engine.distributed import World
from wfimagevae.engine.ema import Averages
from wfimagevae.engine.player import OptimizerState, Player
from wfimagevae.engine.sharding import shard
from wfimagevae.task.flow_build import (
    build_network,
    build_objective,
    build_validator,
    describe,
    objective_facts,
    update_flops,
)
from wfimagevae.task.flow_data import build_datasets, open_space
from wfimagevae.task.training import (
    Assembly,
    NetworkWeights,
    build_player,
    plain_config,
    run_schedule,
    run_tracker,
    run_training,
    train_loader,
)

HEADLINE = ("train/loss", "train/error", "train/direction_loss")


class FlowTask:
    """One player; validation by held-out data and by samples.

    Args:
        player: Who trains the network.
        validator: Makes figures and pictures; None without validation.
        loader: Training data.
        facts: What a checkpoint records besides its parts.
    """

    best_name = "best-energy-distance.ckpt"

    def __init__(self, player: Player, validator, loader: TrainLoader, facts: dict):
        self.players, self.validator, self.loader = (player,), validator, loader
        self._facts = facts

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
    return {name: facts.get(name) for name in names} | {"VAE": vae}


def train(options: dict) -> None:
    """Trains a flow as the flags of `flow_args` and `run_args` say.

    Args:
        options: Every flag's value, by name.

    Raises:
        ValueError: options that cannot be met, or training that diverged.
    """
    run_training(options, _assemble)


def _assemble(options: dict, here: World, folder: Path) -> Assembly:
    """Data, network, objective and player; the tracker comes last: it may start processes."""
    dataset, held_out = build_datasets(options)
    space = open_space(options, dataset, here.device)
    network = build_network(options, space, here.device)
    objective = build_objective(options, network, space)
    lines, flops = describe(options, network, space), update_flops(objective, options)
    if options["fsdp"]:
        shard(network, network.blocks_to_shard(), here.device)
    player = build_flow_player(options, objective, run_schedule(options, here, len(dataset)))
    loader = train_loader(options, dataset, here)
    tracker = run_tracker(options, here, folder)
    validator = build_validator(options, here, folder, objective, space, held_out, tracker)
    task = FlowTask(player, validator, loader, {"config": plain_config(network)})
    player.flops_per_sample = flops
    generator = GeneratorFacts(space.facts | objective_facts(options))
    parts = _parts(task, network) | {"generator": generator}
    return Assembly(task, loader, tracker, parts, HEADLINE, lines)


def build_flow_player(options: dict, objective: nn.Module, schedule) -> Player:
    """The player of an objective, with its average of the weights.

    Args:
        options: The trainer's flags.
        objective: What it trains.
        schedule: Of the run; learning-rate schedules end where it does.
    """
    blocks = objective.network.blocks_to_shard()
    player = build_player(
        options, "flow", objective, schedule.max_steps, options["lr"], blocks=blocks
    )
    if options["ema"]:
        player.ema = Averages(objective.network, options["ema_decay"], options["ema_warmup"])
    return player


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
