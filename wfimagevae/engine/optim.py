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
    if not others:
        return Combined([muon])
    adamw = options.changed(optimizer="adamw")
    return Combined([muon, build_optimizer(adamw, others, loss_divisor=loss_divisor)])


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


class OptimizerState:
    """An optimizer's moments and counts as a checkpoint sees them.

    Learning rate, betas and decay stay as the optimizer has them. Moments get their parameter's
    strides and shards: fused CPU AdamW walks both in memory order, and with channels_last
    parameters and contiguous moments it would update the wrong elements.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

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
        return moment
    if shape != parameter.shape:
        raise ValueError(
            f"optimizer state does not fit the network: {name} has shape "
            f"{tuple(shape)}, its parameter {tuple(parameter.shape)}; {_START_ANEW}"
        )
    return torch.empty_like(parameter).copy_(placed_like(moment, parameter)).detach()
