"""Optimizers and schedules of a pipeline file as the flags of a training. No torch here."""

from wfimagevae.pipeline.document import Document
from wfimagevae.pipeline.schema import (
    TORCH_OPTIMIZERS,
    TORCH_SCHEDULES,
    OptimizerSection,
    SchedulerSection,
)
from wfimagevae.pipeline.steps import MergedStep

# What each component's settings become: flags of the training, or one player's own options.
_FLAGS = {
    "vae": None,
    "flow": None,
    "discriminator": "discriminator_options",
    "text_encoder": "text_encoder_options",
}
# Components with optimizers of their own, by task.
OPTIMIZED = {"vae": ("vae", "discriminator"), "flow": ("flow", "text_encoder")}
# Values of torch that ours always have.
_FIXED = {"eps": 1e-8, "alpha": 0.99, "centered": False, "amsgrad": False}
_DECOUPLED = {"adamw": True, "lion": True, "muon": True}
# What torch's names mean where the file leaves a value out: FluxFlow's documented defaults.
_TORCH_DEFAULTS = {
    "CosineAnnealingLR": {"min_lr_ratio": 0.1},
    "LinearLR": {"min_lr_ratio": 0.1},
    "StepLR": {"lr_gamma": 0.1},
    "ReduceLROnPlateau": {"lr_gamma": 0.1, "plateau_patience": 10},
}
# What has no usual value.
_NEEDED = {"StepLR": "step_size", "ExponentialLR": "gamma", "exponential": "gamma"}
# What each schedule reads, and the flag that takes it.
_SCHEDULE_KEYS = {
    "cosine": {"eta_min_factor": "min_lr_ratio"},
    "linear": {"end_factor": "min_lr_ratio"},
    "step": {"step_size": "lr_step_updates", "gamma": "lr_gamma"},
    "exponential": {"gamma": "lr_gamma"},
    "constant": {},
    "plateau": {"factor": "lr_gamma", "patience": "plateau_patience"},
}


def optimization_flags(step: MergedStep, document: Document) -> dict[str, object]:
    """Flags of a step's optimizers and schedules; what cannot be met is reported.

    A VAE's or flow's settings are the training's own flags, those of a discriminator or text
    encoder its ``--..._options``.
    """
    flags: dict[str, object] = {}
    chosen = step.settings.optimization
    for name in OPTIMIZED[step.task]:
        optimizer = getattr(chosen.optimizers, name)
        schedule = getattr(chosen.schedulers, name)
        own = _optimizer_flags(optimizer, step, document, name) if optimizer else {}
        own |= _schedule_flags(schedule, step, document, name) if schedule else {}
        if _FLAGS[name] is None:
            flags |= own
        elif own:
            flags[_FLAGS[name]] = own
    if step.settings.lr_min is not None:
        flags.setdefault("min_lr_ratio", step.settings.lr_min)
        flags.setdefault("lr_schedule", "cosine")
    return flags


def _optimizer_flags(
    section: OptimizerSection, step: MergedStep, document: Document, name: str
) -> dict[str, object]:
    where = ("optimization", "optimizers", name)
    kind = TORCH_OPTIMIZERS.get(section.type, section.type)
    flags: dict[str, object] = {"optimizer": kind}
    for key, fixed in _FIXED.items():
        value = getattr(section, key)
        if value not in (None, fixed):
            place = step.origin(document, *where, key)
            document.report(place, f"{key} {value} of {name}: every optimizer here has {fixed}")
    decoupled = section.decoupled_weight_decay
    if decoupled is not None and decoupled != _DECOUPLED.get(kind, False):
        instead = "AdamW" if decoupled else "Adam"
        document.report(
            step.origin(document, *where, "decoupled_weight_decay"),
            f"{section.type} does not do that; write type: {instead}",
        )
    takes_betas, takes_momentum = kind in ("adamw", "adam", "lion", "muon"), kind in _MOMENTUM
    for key, taken in (("betas", takes_betas), ("momentum", takes_momentum)):
        if getattr(section, key) is not None and not taken:
            place = step.origin(document, *where, key)
            document.report(place, f"{section.type} has no {key}; leave it out")
    if section.betas is not None and takes_betas:
        flags["beta1"], flags["beta2"] = section.betas
    for key in ("lr", "momentum", "weight_decay"):
        if getattr(section, key) is not None:
            flags[key] = getattr(section, key)
    return flags


_MOMENTUM = ("sgd", "rmsprop", "muon")


def _schedule_flags(
    section: SchedulerSection, step: MergedStep, document: Document, name: str
) -> dict[str, object]:
    where = ("optimization", "schedulers", name)
    kind = TORCH_SCHEDULES.get(section.type, section.type)
    flags: dict[str, object] = {"lr_schedule": kind, "min_lr_ratio": 0.0}
    flags |= _TORCH_DEFAULTS.get(section.type, {})
    if step.settings.lr_min is not None:
        flags["min_lr_ratio"] = step.settings.lr_min
    if section.warmup_steps is not None:
        flags["warmup_steps"] = section.warmup_steps
    if kind == "exponential":  # torch multiplies by gamma at every update
        flags["lr_step_updates"] = 1
    needed = _NEEDED.get(section.type)
    if needed and getattr(section, needed) is None:
        place = step.origin(document, *where)
        document.report(place, f"{section.type} of {name} needs {needed}: it has no usual value")
    if kind == "plateau" and not _validates(step):
        document.report(
            step.origin(document, *where),
            f"{section.type} of {name} waits for validations, and this step has none: give "
            "held-out data (eval_data_path, eval_image_folder) and no eval_steps: 0",
        )
    keys = _SCHEDULE_KEYS[kind]
    for key in section.model_fields_set - {"type", "warmup_steps"}:
        value = getattr(section, key)
        place = step.origin(document, *where, key)
        if value is None:
            continue
        if key in keys:
            flags[keys[key]] = value
        elif problem := _unmet(key, value):
            document.report(place, f"{section.type} of {name}: {problem}")
    return flags


def _validates(step: MergedStep) -> bool:
    """Whether a step will be validated; data that is drawn needs no held-out files."""
    held_out = step.source is None or bool(step.source.held_out)
    return bool(step.settings.options.get("eval_steps", held_out))


def _unmet(key: str, value: object) -> str | None:
    """Why a schedule's key cannot be met; None where it says what happens anyway."""
    if (key == "start_factor" and value == 1) or (key == "mode" and value == "min"):
        return None
    return {
        "start_factor": "a schedule begins at the full rate; write warmup_steps to climb to it",
        "total_iters": "a schedule ends with its step; leave total_iters out",
        "mode": "it waits for better validations, whatever their metric; leave mode out",
    }.get(key, f"it has no {key}; leave it out")
