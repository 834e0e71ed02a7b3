"""The training loop: updates in turn; reports, validations and checkpoints when they are due."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

from torch import nn

from wfimagevae.engine.checkpoint import Part
from wfimagevae.engine.interrupt import Pulse
from wfimagevae.engine.optim import OptimizerState
from wfimagevae.engine.player import Player
from wfimagevae.engine.run import Run


class Task:
    """A kind of training, put together: what the loop and checkpoints ask of it.

    Args:
        players: Who trains; the first one trains ``network``, what the run is for.
        loader: Endless micro-batches of this process, over a ``dataset`` of known size, as
            `dataset.TrainLoader` gives them.
        validator: Makes figures and pictures of held-out data, under names that begin with a
            prefix, at a step, with a pulse between parts; None where nothing is validated.
        own_parts: What else a checkpoint holds, by name.

    Attributes:
        best_name: File of the checkpoint that scored best.
        headline: Names shown in the progress line.
        samples: What is trained on, in the words of the log: images, latents, points.
        weights: Player -> part of a checkpoint with the weights that it trains.
        fresh_parts: How the names of parts begin that start anew, whatever a checkpoint holds.
        pulse: What a validation calls between its parts: `Run.pulse`.
    """

    best_name: str
    headline: tuple[str, ...] = ()
    samples: str = "images"
    weights: ClassVar[dict[str, str]] = {}
    fresh_parts: tuple[str, ...] = ()
    pulse: Pulse | None = None

    def __init__(
        self,
        players: Sequence[Player],
        network: nn.Module,
        loader: Iterator[dict],
        validator: Callable | None = None,
        own_parts: Mapping[str, Part] | None = None,
    ):
        self.players, self.network, self.loader = players, network, loader
        self.validator, self.own_parts = validator, own_parts or {}

    def turn(self, step: int) -> Sequence[Player]:
        """Whose update it is at ``step``, in order."""
        return self.players

    def updates(self, steps: int) -> Sequence[int]:
        """How many updates each player makes in so many steps."""
        return [steps] * len(self.players)

    def validate(self, step: int) -> tuple[dict[str, float], float, dict]:
        """Figures, one score of which the highest is the best, and pictures. Collective.

        Figures are named ``val/...`` and, of the average of the weights, ``val_ema/...``.
        """
        ema = self.players[0].ema
        values, pictures = self.validator("val", step, self.pulse, draw=ema is None)
        if ema is not None:
            with ema.applied():
                averaged, pictures = self.validator("val_ema", step, self.pulse, draw=True)
            values |= averaged
        return values, self.score(values), pictures

    def score(self, values: dict[str, float]) -> float:
        """What a validation's figures are worth, by the weights that are used later."""
        raise NotImplementedError

    def watch(self, step: int, values: dict[str, float]) -> None:
        """Looks at logged means for what a person should be warned of."""

    def facts(self) -> dict:
        """Plain values to keep in checkpoints: the configuration alone brings the network back."""
        config = json.loads(json.dumps(self.network.own_config()))
        return {"config": {"_class_name": self.network.class_name()} | config}

    def parts(self) -> dict[str, Part]:
        """What a checkpoint holds, under the names that `from_pretrained` and old readers know."""
        # What is the task's own comes first: it tells best what does not fit.
        weights = Part(self.network.state_dict, self.network.load_weights)
        parts = {**self.own_parts, "state_dict.gen_model": weights, "sampler_state": self.loader}
        for short, player in zip(("gen", "disc"), self.players, strict=False):
            parts[f"optimizer_state.{short}_optimizer"] = OptimizerState(player.optimizer)
            parts[f"player_state.{player.name}"] = player
        ema = self.players[0].ema
        return parts | (ema.parts() if ema else {})


def fit(run: Run) -> None:
    """Trains until the last step, or until a signal asks to stop; ``run`` is advanced in place."""
    task = run.task
    with run.writer:  # which has written what was saved, however training ends
        run.begin()
        while micro_batches := run.draw():
            # One update of each player whose turn it is, all from the same micro-batches.
            players = task.turn(run.step)
            for player in players:
                run.means.add(player.update(micro_batches, run.step))
            run.advance(sum(player.flops_per_sample for player in players))
            run.report()
            run.conclude()
        run.finish_writing()
