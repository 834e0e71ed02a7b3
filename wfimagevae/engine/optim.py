"""How long a run is, its optimizers and their state, and their learning rates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wfimagevae.engine.options import OptimizerOptions, TrainingOptions
from wfimagevae.engine.sharding import placed_like


def run_length(
    options: TrainingOptions,
    num_samples: int,
    num_processes: int,
    step: int = 0,
    position: float = 0,
) -> tuple[int, float]:
    """The step at which a run ends, and the steps that make an epoch, not always whole.

    ``--epochs`` counts samples, of which ``step`` steps have seen ``position``; but epochs of
    ``--max_steps_per_epoch``, as ``--max_steps``, count steps.
    """
    samples_a_step = options.batch_size * options.grad_accum_steps * num_processes
    epoch_steps = min(num_samples / samples_a_step, options.max_steps_per_epoch or math.inf)
    done = step if epoch_steps == options.max_steps_per_epoch else position / samples_a_step
    # Exact where all steps were of this size: a sum of whole numbers stays outside of ceil.
    length = step + math.ceil(options.epochs * epoch_steps - done)
    return options.max_steps or length, epoch_steps


class LrSchedule:
    """Factor of the learning rate at each update of a player: linear warm-up, then the decay.

    ``linear`` and ``cosine`` end at ``total_updates``, warm-up included. ``step`` multiplies by
    ``lr_gamma`` every ``lr_step_updates``, ``exponential`` does the same smoothly, ``plateau``
    after ``plateau_patience`` validations in a row without a better score.
    """

    def __init__(self, options: OptimizerOptions, total_updates: int = 1):
        self.options, self.total_updates = options, total_updates
        self.best, self.num_worse, self.num_drops = float("-inf"), 0, 0

    def __call__(self, update: int) -> float:
        options = self.options
        kind, gamma, least = options.lr_schedule, options.lr_gamma, options.min_lr_ratio
        done = update - options.warmup_steps
        if done < 0:
            return (update + 1) / (options.warmup_steps + 1)
        if kind == "constant":
            return 1.0
        if kind == "plateau":
            return max(least, gamma**self.num_drops)
        if kind == "step":
            return max(least, gamma ** (done // options.lr_step_updates))
        if kind == "exponential":
            return max(least, gamma ** (done / options.lr_step_updates))
        span = max(self.total_updates - options.warmup_steps, 1)
        done = min(done / span, 1.0)
        left = 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return least + (1 - least) * left

    def observe(self, score: float) -> None:
        """Tells ``plateau`` a validation's score; higher is better, NaN is not."""
        if self.options.lr_schedule != "plateau":
            return
        self.num_worse = 0 if score > self.best else self.num_worse + 1
        self.best = max(self.best, score)
        if self.num_worse == self.options.plateau_patience:
            self.num_worse, self.num_drops = 0, self.num_drops + 1

    def state_dict(self) -> dict:
        return {"best": self.best, "num_worse": self.num_worse, "num_drops": self.num_drops}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.num_worse = state["best"], state["num_worse"]
        self.num_drops = state["num_drops"]


def build_optimizer(
    options: OptimizerOptions,
    parameters: list[nn.Parameter],
    blocks: Sequence[nn.Module] = (),
    loss_divisor: float = 1.0,
) -> torch.optim.Optimizer:
    """The optimizer that the options name; Adam and AdamW fused where that exists.

    Args:
        blocks: A network's hidden layers: muon trains their matrices, and AdamW the rest
            (embeddings, biases, norms, first and last layers).
        loss_divisor: What the loss was divided by before backward; epsilon is divided by it too, so
            that normalised updates do not depend on it. Those of sgd do.

    Raises:
        ValueError: nothing to train, or a package or torch version is missing.
    """
    if not parameters:
        raise ValueError("nothing to train: every parameter is frozen")
    kind, lr, decay = options.optimizer, options.lr, options.weight_decay
    momentum = options.momentum
    if kind == "muon":
        return _muon(options, parameters, blocks, loss_divisor)
    if kind == "sgd":
        # Not fused: a skipped first step would leave its momentum uninitialised.
        momentum = 0.9 if momentum is None else momentum
        return torch.optim.SGD(parameters, lr, momentum, weight_decay=decay)
    eps = 1e-8 / loss_divisor
    if kind == "rmsprop":
        momentum = momentum or 0.0
        return torch.optim.RMSprop(parameters, lr, eps=eps, weight_decay=decay, momentum=momentum)
    usual = 0.99 if kind == "lion" else 0.999
    betas = options.beta1, usual if options.beta2 is None else options.beta2
    if kind == "lion":
        try:
            from pytorch_optimizer import Lion
        except ImportError:
            message = "--optimizer lion needs a package: pip install pytorch-optimizer"
            raise ValueError(message) from None
        return Lion(parameters, lr, betas, weight_decay=decay)
    # MPS: its fused kernel does not take found_inf, which skips bad updates without a sync.
    fused = parameters[0].device.type != "mps"
    optimizer_class = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    return optimizer_class(parameters, lr, betas, eps=eps, weight_decay=decay, fused=fused)


def _muon(
    options: OptimizerOptions,
    parameters: list[nn.Parameter],
    blocks: Sequence[nn.Module],
    loss_divisor: float,
) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"--optimizer muon needs torch 2.9 or newer, this is {torch.__version__}")
    hidden = {p for block in blocks for p in block.parameters() if p.dim() == 2}
    matrices = [p for p in parameters if p in hidden]
    others = [p for p in parameters if p not in hidden]
    if not matrices:
        raise ValueError("--optimizer muon: this network names no hidden layers; use adamw")
    muon = torch.optim.Muon(
        matrices,
        options.lr,
        options.weight_decay,
        0.95 if options.momentum is None else options.momentum,
        eps=1e-7 / loss_divisor,
        adjust_lr_fn="match_rms_adamw",  # one learning rate suits both
    )
    adamw = options.changed(optimizer="adamw")
    rest = [build_optimizer(adamw, others, loss_divisor=loss_divisor)] if others else []
    return Combined([muon, *rest])


class Combined(torch.optim.Optimizer):
    """Optimizers of one parameter group each, as one with all their groups and states."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]):
        self.parts = [part for one in optimizers for part in getattr(one, "parts", [one])]
        super().__init__([part.param_groups[0] for part in self.parts], {})

    def step(self, closure=None) -> None:
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state
            part.step()


_START_ANEW = "add --not_resume_optimizer to start its state anew"


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's moments and counts as a checkpoint sees them.

    Learning rate, betas and decay stay as the optimizer has them. Moments get their parameter's
    strides and shards: fused CPU AdamW walks both in memory order, and with channels_last
    parameters and contiguous moments it would update the wrong elements.
    """

    optimizer: torch.optim.Optimizer

    def state_dict(self) -> dict:
        return self.optimizer.state_dict() | {"kind": type(self.optimizer).__name__}

    def load_state_dict(self, state: dict) -> None:
        kind, own = state.get("kind", "AdamW"), type(self.optimizer).__name__
        if kind != own:
            raise ValueError(
                f"the checkpoint's optimizer is {kind}, this run's is {own}; {_START_ANEW}"
            )
        groups = self.optimizer.state_dict()["param_groups"]
        sizes = [len(group["params"]) for group in state["param_groups"]]
        own_sizes = [len(group["params"]) for group in groups]
        if sizes != own_sizes:
            raise ValueError(
                f"optimizer state is of {sizes} parameters, this run trains {own_sizes}: freeze "
                f"the same parts as before, or {_START_ANEW}"
            )
        for group in state["param_groups"]:
            names = [set(state["state"][i]) for i in group["params"] if i in state["state"]]
            if any(each != names[0] for each in names):
                raise ValueError(f"some moments of the optimizer are missing; {_START_ANEW}")
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            index: {name: _fitted(value, parameters[index], name) for name, value in entry.items()}
            for index, entry in state["state"].items()
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _fitted(moment: Tensor, parameter: nn.Parameter, name: str) -> Tensor:
    shape = getattr(moment, "shape", ())
    if name == "step" and shape == () and moment is not None:
        return moment.clone() if isinstance(moment, Tensor) else moment
    if shape != parameter.shape:
        raise ValueError(
            f"optimizer state does not fit the network: {name} has shape "
            f"{tuple(shape)}, its parameter {tuple(parameter.shape)}; {_START_ANEW}"
        )
    return torch.empty_like(parameter).copy_(placed_like(moment, parameter)).detach()
