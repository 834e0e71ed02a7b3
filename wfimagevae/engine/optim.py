"""Optimizers, built by one factory, and their state."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wfimagevae.engine.options import OptimizerOptions
from wfimagevae.engine.sharding import placed_like


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
    if options.optimizer == "muon":
        return _muon(options, parameters, blocks, loss_divisor)
    return _BUILDERS[options.optimizer](options, parameters, loss_divisor)


def combine(optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """One optimizer that steps all of these, each its own way; of one, itself."""
    if len(optimizers) == 1:
        return optimizers[0]
    parts = [part for one in optimizers for part in getattr(one, "parts", [one])]
    return Combined(parts)


def _adam(options, parameters, loss_divisor, optimizer_class=torch.optim.Adam):
    # MPS: its fused kernel does not take found_inf, which skips bad updates without a sync.
    return optimizer_class(
        parameters,
        options.lr,
        _betas(options, 0.999),
        eps=1e-8 / loss_divisor,
        weight_decay=options.weight_decay,
        fused=parameters[0].device.type != "mps",
    )


def _adamw(options, parameters, loss_divisor):
    return _adam(options, parameters, loss_divisor, torch.optim.AdamW)


def _sgd(options, parameters, loss_divisor):
    # Not fused: a skipped first step would leave its momentum uninitialised.
    momentum = 0.9 if options.momentum is None else options.momentum
    return torch.optim.SGD(parameters, options.lr, momentum, weight_decay=options.weight_decay)


def _rmsprop(options, parameters, loss_divisor):
    return torch.optim.RMSprop(
        parameters,
        options.lr,
        eps=1e-8 / loss_divisor,
        weight_decay=options.weight_decay,
        momentum=options.momentum or 0.0,
    )


def _lion(options, parameters, loss_divisor):
    try:
        from pytorch_optimizer import Lion
    except ImportError:
        message = "--optimizer lion needs a package: pip install pytorch-optimizer"
        raise ValueError(message) from None
    return Lion(parameters, options.lr, _betas(options, 0.99), weight_decay=options.weight_decay)


def _muon(options, parameters, blocks, loss_divisor):
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"--optimizer muon needs torch 2.9 or newer, this is {torch.__version__}")
    hidden = {p for block in blocks for p in block.parameters() if p.dim() == 2}
    matrices = [p for p in parameters if p in hidden]
    others = [p for p in parameters if p not in hidden]
    if not matrices:
        raise ValueError(
            "--optimizer muon trains the matrices of a network's hidden layers, "
            "and this network names none; use adamw"
        )
    muon = torch.optim.Muon(
        matrices,
        options.lr,
        options.weight_decay,
        0.95 if options.momentum is None else options.momentum,
        eps=1e-7 / loss_divisor,
        adjust_lr_fn="match_rms_adamw",  # one learning rate suits both
    )
    return Combined([muon, *([_adamw(options, others, loss_divisor)] if others else [])])


def _betas(options: OptimizerOptions, usual: float) -> tuple[float, float]:
    return options.beta1, usual if options.beta2 is None else options.beta2


_BUILDERS = {"adamw": _adamw, "adam": _adam, "sgd": _sgd, "rmsprop": _rmsprop, "lion": _lion}


class Combined(torch.optim.Optimizer):
    """Optimizers of one parameter group each, as one with all their groups and states."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]):
        super().__init__([part.param_groups[0] for part in parts], {})
        self.parts = parts

    def step(self, closure=None) -> None:
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state
            part.step()


_START_ANEW = "add --not_resume_optimizer to start its state anew"


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads moments and counts; learning rate, betas and decay stay as the optimizer has them.

    Moments get their parameter's strides and shards: fused CPU AdamW walks both in memory order,
    and with channels_last parameters and contiguous moments it would update the wrong elements.
    """
    groups = optimizer.state_dict()["param_groups"]
    sizes = [len(group["params"]) for group in state["param_groups"]]
    own_sizes = [len(group["params"]) for group in groups]
    if sizes != own_sizes:
        raise ValueError(
            f"optimizer state is of {sizes} parameters, this run trains {own_sizes}: freeze the "
            f"same parts as before, or {_START_ANEW}"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {name: _fitted(value, parameters[index], name) for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _fitted(moment: Tensor, parameter: nn.Parameter, name: str) -> Tensor:
    if not torch.is_tensor(moment) or moment.dim() == 0:  # the step count
        return moment
    if moment.shape != parameter.shape:
        raise ValueError(
            f"optimizer state does not fit the network: {name} has shape "
            f"{tuple(moment.shape)}, its parameter {tuple(parameter.shape)}; {_START_ANEW}"
        )
    return torch.empty_like(parameter).copy_(placed_like(moment, parameter)).detach()
