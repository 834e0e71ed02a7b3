"""A step as the flags of its task's training. No torch here."""

from pathlib import Path
from typing import Any

from wfimagevae.options import BadOptions, Options
from wfimagevae.pipeline.components import DECODER, DISCRIMINATOR, ENCODER, TEXT_ENCODER
from wfimagevae.pipeline.document import Document
from wfimagevae.pipeline.optimization import optimization_flags
from wfimagevae.pipeline.schema import ModelSection, PipelineFile
from wfimagevae.pipeline.steps import MergedStep, Source, is_gan_only
from wfimagevae.pipeline.units import METRICS, Conversion, Units, convert_weights
from wfimagevae.task import TASKS, options_of

Flags = dict[str, Any]
_DEFAULT_SIZE = 1024


OptionClasses = dict[str, type[Options]]


def parsers() -> OptionClasses:
    """Each task's option class."""
    return {task: options_of(task) for task in TASKS}


def step_folder(content: PipelineFile, step: MergedStep) -> Path:
    """Where a step's run stands."""
    return Path(content.output.output_path) / "steps" / f"{step.index + 1:02d}_{step.name}"


def image_size(step: MergedStep, content: PipelineFile) -> int:
    """Height and width that a step trains on."""
    of_source = step.source.section.img_size if step.source else None
    size = step.settings.options.get("resolution") or of_source or content.data.img_size
    return size or _DEFAULT_SIZE


def step_flags(
    step: MergedStep,
    content: PipelineFile,
    document: Document,
    known: OptionClasses,
    units: Units | None = None,
) -> tuple[Flags, list[Conversion]]:
    """The flags that a step means, but for the weights that earlier steps leave it.

    Args:
        step: With all that it inherits.
        content: The file.
        document: Takes what cannot be met.
        known: Each task's parser.
        units: For loss weights; None leaves those out.

    Returns:
        Flag -> value as in a YAML file of flags, and the loss weights that were converted.
    """
    own = _vae_flags if step.task == "vae" else _flow_flags
    flags = _run_flags(step, content) | _data_flags(step, content) | own(step, content)
    flags |= optimization_flags(step, document)
    conversions = convert_weights(step, units) if units else []
    flags |= {conversion.flag: conversion.value for conversion in conversions}
    flags |= _stop_flags(step, units)
    task_flags = with_negatives(known[step.task])
    shared = {k: v for k, v in step.settings.options.items() if k in task_flags}
    given = {k: v for k, v in flags.items() if v is not None}
    return given | shared | step.own.get("options", {}), conversions


def parse_flags(options: type[Options], flags: Flags) -> Options:
    """The options of a training.

    Raises:
        ValueError: a flag is unknown, or its value is refused.
    """
    try:
        return options(**positive(options, flags))
    except BadOptions as error:
        problems = [f"--{name}: {text}" if name else text for name, text in error.problems]
        raise ValueError("; ".join(problems)) from None


def with_negatives(options: type[Options]) -> set[str]:
    """All flags, ``no_x`` of switches among them."""
    names = set(options.by_flag())
    return names | {f"no_{name}" for name in names}


def positive(options: type[Options], flags: Flags) -> Flags:
    """Flags without null ones, ``no_x: true`` as ``x: false``."""
    fields = options.by_flag()
    values = {"image_path": []} if "image_path" in fields else {}
    for name, value in flags.items():
        if name not in fields and name.removeprefix("no_") in fields and isinstance(value, bool):
            values[name.removeprefix("no_")] = not value
        elif value is not None:
            values[name] = value
    return values


def _run_flags(step: MergedStep, content: PipelineFile) -> Flags:
    settings, output = step.settings, content.output
    waits = settings.transition_on.mode == "loss_threshold"
    precision = {True: "fp16", False: "fp32"}.get(settings.use_fp16, settings.precision)
    return {
        "exp_name": step.name,
        "ckpt_dir": str(Path(output.output_path) / "steps"),
        "seed": content.training.seed,
        "device": content.training.device,
        "epochs": settings.transition_on.max_epochs if waits else settings.n_epochs,
        "max_steps": settings.steps,
        "max_steps_per_epoch": settings.max_steps,
        "batch_size": settings.batch_size,
        "grad_accum_steps": settings.gradient_accumulation_steps or 1,
        "dataset_num_worker": settings.workers,
        "mix_precision": precision,
        "lr": settings.lr,
        "clip_grad_norm": settings.initial_clipping_norm,
        "ema": settings.use_ema,
        "gradient_checkpointing": content.model.use_gradient_checkpointing,
        "log_steps": output.log_interval,
        "csv_log_steps": output.log_interval,
        "save_ckpt_step": output.checkpoint_save_interval,
        "keep_last": output.keep_last,
        "disable_live_plot": not output.generate_diagrams,
    }


def _stop_flags(step: MergedStep, units: Units | None) -> Flags:
    transition = step.settings.transition_on
    if transition.mode != "loss_threshold" or transition.metric is None:
        return {}
    metric = METRICS.get(transition.metric)
    threshold = transition.threshold
    if metric and metric.per_latent and units and threshold is not None:
        threshold *= units.latents
    return {
        "stop_metric": metric.name if metric else transition.metric,
        "stop_below": threshold,
        "stop_window": transition.window,
    }


def _data_flags(step: MergedStep, content: PipelineFile) -> Flags:
    source = step.source
    size = image_size(step, content)
    flags: Flags = {"resolution": size}
    if step.task == "vae":
        flags |= {"eval_resolution": size, "eval_crop_size": size}
    if source is None:
        return flags
    train, held_out = {
        "vae": ("image_path", "eval_image_path"),
        "flow": ("data_path", "eval_data_path"),
    }[step.task]
    flags |= {train: source.paths or None, held_out: source.held_out or None}
    if not source.held_out:
        flags["eval_steps"] = 0
    section = source.section
    flags |= {
        "data_weights": section.data_weights,
        "reduced_min_sizes": content.data.reduced_min_sizes,
        "wds_image_key": section.webdataset_image_key,
    }
    if step.task == "flow":
        flags |= _caption_flags(source, content)
    return flags


def _caption_flags(source: Source, content: PipelineFile) -> Flags:
    if not content.model.text_encoder:
        return {}
    section = source.section
    flags: Flags = {
        "fixed_prompt_prefix": section.fixed_prompt_prefix or content.data.fixed_prompt_prefix
    }
    folders = source.paths
    if source.is_webdataset:
        flags["wds_caption_key"] = _caption_key(section)
        folders = source.held_out  # shards do not read --captions, whatever it says
        if not folders:
            return flags
    manifest = any(path.endswith((".jsonl", ".json")) for path in folders)
    return flags | {"captions": section.captions_file or ("manifest" if manifest else "sidecar")}


def _caption_key(section: Any) -> str | None:
    """As FluxFlow means it: a field of the JSON member; ``txt`` alone is a member of its own."""
    key, kind = section.webdataset_caption_key, section.webdataset_label_key
    if kind is None and key in (None, "txt"):
        return key
    return f"json:{(key or 'prompt').removeprefix('json:')}"


def _vae_flags(step: MergedStep, content: PipelineFile) -> Flags:
    settings, frozen = step.settings, step.frozen
    flags = _network_flags(content.model, "vae", content) | {
        "freeze_encoder": _left_out(step, ENCODER) or None,
        "freeze_decoder": _left_out(step, DECODER) or None,
        "freeze_discriminator": (DISCRIMINATOR in frozen) or None,
        "kl_warmup_steps": settings.kl_warmup_steps if settings.kl_beta != 0 else None,
    }
    if not settings.use_lpips:
        flags["perceptual_weight"] = 0
    if not settings.gan_training:
        return flags | {"disc_weight": 0}
    flags |= {
        "r1_interval": settings.r1_interval,
        "instance_noise_std": settings.instance_noise_std,
        "instance_noise_decay": settings.instance_noise_decay,
    }
    if settings.lambda_adv is not None:
        flags["adaptive_weight"] = False
    if is_gan_only(settings):
        flags |= {"rec_weight": 0, "perceptual_weight": 0, "adaptive_weight": False}
    return flags


def _left_out(step: MergedStep, component: str) -> bool:
    return component not in step.trained


def _flow_flags(step: MergedStep, content: PipelineFile) -> Flags:
    settings, model = step.settings, content.model
    flags = _network_flags(model, "flow", content) | {
        "cfg_dropout_prob": settings.cfg_dropout_prob,
        "text_encoder": model.text_encoder,
        "text_length": model.text_length,
        "text_attention": model.text_attention,
        "sample_prompts": (model.text_encoder and content.output.sample_captions) or None,
    }
    if model.text_encoder == "bytes" and TEXT_ENCODER in step.frozen:
        flags["freeze_text_encoder"] = True
    return flags


def _network_flags(model: ModelSection, name: str, content: PipelineFile) -> Flags:
    section = getattr(model, name)
    return {
        "model_name": section.name,
        "model_config": config_file(content, name),
        "pretrained_model_name_or_path": section.pretrained,
    }


def config_file(content: PipelineFile, name: str) -> str | None:
    """The JSON file of a network's configuration; one written in the YAML gets a file."""
    config = getattr(content.model, name).config
    if isinstance(config, dict):
        return str(Path(content.output.output_path) / "model" / f"{name}.json")
    return config
