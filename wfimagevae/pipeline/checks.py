"""What a pipeline file's steps cannot mean, beyond keys and types. No torch here."""

import json
from collections.abc import Callable
from pathlib import Path

from wfimagevae.options import BadOptions
from wfimagevae.pipeline.components import ENCODER
from wfimagevae.pipeline.document import Document, Place, nearest
from wfimagevae.pipeline.flags import OptionClasses, positive, step_flags, with_negatives
from wfimagevae.pipeline.optimization import OPTIMIZED
from wfimagevae.pipeline.options import check_options, check_shared_options, is_governed
from wfimagevae.pipeline.origins import check_origins
from wfimagevae.pipeline.paths import check_paths
from wfimagevae.pipeline.schema import PipelineFile
from wfimagevae.pipeline.sizes import parse_size
from wfimagevae.pipeline.sources import check_data, check_sections, unknown_dataset
from wfimagevae.pipeline.steps import DEFAULTS, SHARED, MergedStep, declared, is_gan_only
from wfimagevae.pipeline.units import METRICS, OWN_METRICS, met_needs

# Settings that only one kind of step reads.
_ONLY = {
    "flow": ("cfg_dropout_prob", "cache_latents"),
    "vae": ("use_lpips", "train_spade", "kl_beta", "kl_warmup_steps", "kl_free_bits")
    + ("lambda_adv", "lambda_lpips", "mse_weight", "r1_gamma", "r1_interval")
    + ("instance_noise_std", "instance_noise_decay"),
}
_NEEDS = {
    "gan_training": ("lambda_adv", "r1_gamma", "r1_interval")
    + ("instance_noise_std", "instance_noise_decay"),
    "use_lpips": ("lambda_lpips",),
}
_COMPARE = ("use_lpips", "lambda_lpips", "mse_weight")
_TRAINS = {
    "train_vae": "write train_vae: decoder (or encoder) to train the other half",
    "gan_training": "options: {freeze_discriminator: true} lets one judge without learning",
    "train_diff": "options: {freeze_flow: true} trains its text encoder alone",
    "train_diff_full": "options: {freeze_flow: true} trains its text encoder alone",
}


def check_pipeline(
    document: Document, content: PipelineFile, steps: list[MergedStep], known: OptionClasses
) -> None:
    """Reports all that is wrong with a file whose keys and types are right."""
    _check_names(document, content, steps)
    check_paths(document, content)
    _check_sizes(document, content)
    check_sections(document, content, steps)
    check_shared_options(document, content, known)
    _check_shared_keys(document, content, steps)
    for step in steps:
        check_data(document, content, step)
        _check_modes(document, step)
        _check_length(document, step)
        _check_frozen(document, step)
        if step.task is None:
            continue
        _check_idle_keys(document, step)
        _check_transition(document, step)
        check_origins(document, content, steps, step)
        _check_model(document, content, steps, step)
        check_options(document, step, known)
        _check_flags(document, content, step, known)


def _check_names(document: Document, content: PipelineFile, steps: list[MergedStep]) -> None:
    first: dict[str, MergedStep] = {}
    for step in steps:
        other = first.setdefault(step.name.lower(), step)
        if other is not step:
            line = document.line((*other.place, "name"))
            document.report(
                (*step.place, "name"),
                f"step name {step.name!r} is taken by the step of line {line} (files are named "
                "after steps)",
            )
    pipeline = content.training.pipeline
    if pipeline.default_dataset is not None and pipeline.default_dataset not in pipeline.datasets:
        document.report(
            ("training", "pipeline", "default_dataset"),
            unknown_dataset(pipeline.default_dataset, content),
        )


def _check_sizes(document: Document, content: PipelineFile) -> None:
    for index, size in enumerate(content.output.sample_sizes or []):
        try:
            parse_size(size)
        except ValueError as error:
            document.report(("output", "sample_sizes", index), str(error))


def _check_modes(document: Document, step: MergedStep) -> None:
    settings = step.settings
    flow = settings.train_diff or settings.train_diff_full
    if flow and (settings.train_vae or settings.gan_training):
        document.report(
            step.place,
            f"step {step.name!r} trains the VAE and the flow at once: the flow would chase moving "
            "latents; write two steps, the VAE's first",
        )
    if settings.train_diff and settings.train_diff_full:
        document.report(
            step.origin(document, "train_diff_full"),
            "train_diff and train_diff_full are the same here: leave one out",
        )
    if step.task is None and not _is_unclear(document, step, *_TRAINS):
        document.report(
            step.place,
            f"step {step.name!r} trains nothing: set train_vae, gan_training or train_diff",
        )
    if settings.use_fp16 is not None and settings.precision is not None:
        document.report(
            step.origin(document, "use_fp16"),
            "use_fp16 and precision say the same: leave use_fp16 out",
        )


def _is_unclear(document: Document, step: MergedStep, *keys: str) -> bool:
    """Whether a key is written with a value that was refused, and what it says is unknown."""
    places = [step.origin(document, key) for key in keys]
    return any(place != step.place and document.is_wrong(place) for place in places)


def _check_length(document: Document, step: MergedStep) -> None:
    settings = step.settings
    waits = settings.transition_on.mode == "loss_threshold"
    if settings.steps is not None and "n_epochs" in step.own:
        place = (*step.place, "steps")
        document.report(place, "give n_epochs or steps, not both")
    if settings.steps is not None and settings.max_steps is not None:
        place = (*step.place, "steps")
        document.report(place, "max_steps limits an epoch; with steps it has no effect")
    if waits or settings.n_epochs or settings.steps:
        return
    if not _is_unclear(document, step, "n_epochs", "steps", "transition_on"):
        document.report(step.place, f"step {step.name!r} has no length: give n_epochs or steps")


def _check_frozen(document: Document, step: MergedStep) -> None:
    settings = step.settings
    if both := set(step.own.get("freeze", [])) & set(step.own.get("unfreeze", [])):
        place = (*step.place, "unfreeze")
        document.report(place, f"{', '.join(sorted(both))}: frozen and unfrozen in one step")
    if both := declared(settings) & step.frozen:
        flags = [flag for flag in _TRAINS if getattr(settings, flag)]
        advice = "; ".join(dict.fromkeys(_TRAINS[flag] for flag in flags))
        document.report(
            step.origin(document, "freeze"),
            f"step {step.name!r} freezes and trains {', '.join(sorted(both))}: leave it out of "
            f"freeze, or {advice}",
        )
    elif step.task is not None and not step.trained - {"discriminator"}:
        document.report(step.place, f"step {step.name!r} trains nothing but what it freezes")


def _check_idle_keys(document: Document, step: MergedStep) -> None:
    """What the step itself says and no training of its kind reads."""
    for key, value in step.own.items():
        reason = _idleness(step, key)
        if reason and value not in (None, False):
            document.report((*step.place, key), f"{key} {reason}; leave it out")
    for kind in ("optimizers", "schedulers"):
        for name in step.own.get("optimization", {}).get(kind, {}):
            if name not in OPTIMIZED[step.task]:
                place = (*step.place, "optimization", kind, name)
                document.report(place, f"{name} is not trained in a {step.task} step")


def _idleness(step: MergedStep, key: str) -> str | None:
    """Why a step's training reads no such key; None if it does, or what it trains is unknown."""
    if step.task is None:
        return None
    for task, keys in _ONLY.items():
        if key in keys and step.task != task:
            return f"is for {task} steps"
    for mode, keys in _NEEDS.items():
        if key in keys and not getattr(step.settings, mode):
            return f"has no effect without {mode}: true"
    if key in _COMPARE and is_gan_only(step.settings):
        return "compares images, which needs train_vae: true"
    return None


def _check_shared_keys(document: Document, content: PipelineFile, steps: list[MergedStep]) -> None:
    """What stands above the steps and none of them reads."""
    training = content.training
    for place, section in ((SHARED, training), (DEFAULTS, training.pipeline.defaults)):
        for key in section.model_fields_set:
            reasons = [_idleness(step, key) for step in steps]
            if getattr(section, key) not in (None, False) and all(reasons):
                told = " and ".join(dict.fromkeys(reasons))
                document.report((*place, key), f"no step reads {key}, which {told}; leave it out")


def _check_transition(document: Document, step: MergedStep) -> None:
    transition = step.settings.transition_on

    def report(key: str, message: str) -> None:
        document.report(step.origin(document, "transition_on", key), message)

    if transition.mode == "epoch":
        own = step.own.get("transition_on", {}).keys()
        says_so = "mode" in transition.model_fields_set
        for key in (own if says_so else transition.model_fields_set) - {"mode"}:
            report(key, f"transition_on.{key} has no effect in mode epoch; see n_epochs")
        return
    missing = [
        key for key in ("metric", "threshold", "max_epochs") if getattr(transition, key) is None
    ]
    if missing:
        report(
            "mode",
            f"transition_on.{' and '.join(missing)} missing: mode loss_threshold needs "
            "a metric, a threshold and max_epochs as a limit",
        )
    if transition.max_epochs and "steps" in step.own:
        report("max_epochs", "unreachable: steps ends the training, not max_epochs; leave one out")
    epochs = step.own.get("n_epochs")
    if epochs and transition.max_epochs and epochs < transition.max_epochs:
        report(
            "max_epochs",
            f"unreachable: n_epochs {epochs} ends the step before max_epochs "
            f"{transition.max_epochs}; leave n_epochs out",
        )
    if transition.metric is not None:
        _check_metric(step, report)


def _check_metric(step: MergedStep, report: Callable[[str, str], None]) -> None:
    name, threshold = step.settings.transition_on.metric, step.settings.transition_on.threshold
    own, met = OWN_METRICS[step.task], met_needs(step)
    # Our name of one of FluxFlow's means the same, but for its unit.
    known = {metric.name: key for key, metric in METRICS.items()}
    key = known.get(name, name)
    needs = METRICS[key].needs if key in METRICS else own.get(name)
    if needs is None:
        names = own.keys() | {metric.name for metric in METRICS.values() if metric.needs in met}
        shown = names if name.startswith("train/") else METRICS
        report("metric", f"unknown metric {name!r}{nearest(name, shown)}")
    elif needs not in met:
        report("metric", f"unreachable: this step logs no {name}, which needs {needs}")
    elif key in METRICS and key != "g_loss" and threshold is not None and threshold <= 0:
        report("threshold", f"unreachable: {name} is never below 0")


def _check_model(
    document: Document, content: PipelineFile, steps: list[MergedStep], step: MergedStep
) -> None:
    vae, spade = content.model.vae, step.settings.train_spade
    known = step.task == "vae" and not vae.pretrained
    if known and spade is not None and _has_spade(vae.config) != spade:
        document.report(
            step.origin(document, "train_spade"),
            f"train_spade: {str(spade).lower()} and a model of the other kind: SPADE belongs to "
            "the architecture; write it as model.vae.config.spade",
        )
    if step.task == "flow":
        before = any(ENCODER in s.trained or s.task == "vae" for s in steps[: step.index])
        if not before and vae.config is not None and vae.pretrained is None:
            document.report(
                ("model", "vae"),
                f"step {step.name!r} would learn latents of a VAE that nothing trained: give "
                "model.vae.pretrained, or put a step with train_vae before it",
            )
        section = step.source.section if step.source else None
        if section and section.captions_file and not content.model.text_encoder:
            document.report(
                (*step.source.place, "captions_file"),
                "captions are for a text encoder: give model.text_encoder, such as bytes",
            )
        if step.settings.cache_latents and not before and vae.pretrained is None:
            place = step.origin(document, "cache_latents")
            document.report(place, "there is no VAE to make latents with: see model.vae.pretrained")


def _has_spade(config: str | dict | None) -> bool:
    if isinstance(config, str):
        path = Path(config)
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return bool((config or {}).get("spade"))


def _check_flags(
    document: Document, content: PipelineFile, step: MergedStep, known: OptionClasses
) -> None:
    """Every flag's value, by the task's own parser."""
    options = known[step.task]
    flags, _ = step_flags(step, content, document, known)
    values = {
        name: value
        for name, value in flags.items()
        if name in with_negatives(options)
        and not (is_governed(name) and name in step.settings.options)  # refused already
    }
    try:
        options(**positive(options, values))
    except BadOptions as error:
        for name, text in error.problems:
            if not name and document.is_wrong(step.place):
                continue  # told in the file's own words
            place = _place_of(name, step, document) if name else step.place
            document.report(place, f"{f'--{name}: ' if name else ''}{text} (step {step.name!r})")


def _place_of(flag: str, step: MergedStep, document: Document) -> Place:
    for key in (("options", flag), (flag,)):
        place = step.origin(document, *key)
        if place != step.place:
            return place
    return step.place
