"""A step as the options of its task's training, and what that logs. No torch here."""

from typing import Any

from wfimagevae.pipeline.fluxflow import (
    DEFAULT_LAMBDA_ADV,
    INTERVAL,
    OPTIONS,
    PIXELS,
    RATIO,
    SCHEDULES,
    PipelineFile,
    Section,
    StepSection,
)
from wfimagevae.pipeline.instead import INSTEAD
from wfimagevae.pipeline.steps import Document, Pipeline, Problems, Step

Flags = dict[str, Any]
# Components with optimizers of their own, by task, and the flag that says what is different.
OPTIMIZED = {
    "vae": {"vae": None, "discriminator": "discriminator_options"},
    "flow": {"flow": None, "text_encoder": "text_encoder_options"},
}
_DECOUPLED = ("adamw", "lion", "muon")
_TAKEN_BY = {"betas": (*_DECOUPLED, "adam"), "momentum": ("sgd", "rmsprop", "muon")}


# Values that FluxFlow reports: their logged names here, and their words on the console.
METRICS = {
    "vae_loss": ("train/rec_loss_per_pixel", "VAE"),
    "kl_loss": ("train/kl_loss", "KL"),  # there the mean over latent values, logged the sum
    "g_loss": ("train/g_loss", "G"),
    "d_loss": ("train/disc_loss", "D"),
    "lpips_loss": ("train/perceptual_loss", "LPIPS"),
    "color_stats": ("train/color_loss", "ColorStats"),
    "hist_loss": ("train/histogram_loss", "Hist"),
    "contrast_loss": ("train/contrast_loss", "Contrast"),
    "flow_loss": ("train/loss", "Flow"),
}


def idleness(step: Step, key: str) -> str | None:
    """Why a step's training reads no such key; None if it does, or what it trains is unknown."""
    use = StepSection.keys().get(key)
    if use is None or step.task is None:
        return None
    if use.task not in (None, step.task):
        return f"is for {use.task} steps"
    missing = [need for need in use.needs if not getattr(step.settings, need)]
    return f"has no effect without {' and '.join(missing)}: true" if missing else None


def step_flags(pipeline: Pipeline, step: Step, latents: int | None = None) -> Flags:
    """The flags that a step means, but for weights that earlier steps leave it.

    Without ``latents``, how many values an image's latent has, loss weights are as the file gives
    them.
    """
    content, settings, network = pipeline.content, step.settings, step.task
    flags: Flags = {
        "seed": content.training.seed,
        "device": content.training.device,
        **content.output.flags_of(),
        **content.model.flags_of(),
        **getattr(content.model, network).flags_of(),
        "model_config": getattr(content.model, network).config,
        "exp_name": step.name,
        "ckpt_dir": str(pipeline.output / "steps"),
        "csv_log_steps": content.output.log_interval,
        "disable_live_plot": not content.output.generate_diagrams,
        **_data_flags(step, content),
        **read_flags(step, latents)[0],
        "grad_accum_steps": settings.gradient_accumulation_steps or 1,
    }
    if settings.use_fp16 is not None:
        flags["mix_precision"] = "fp16" if settings.use_fp16 else "fp32"
    if not content.model.text_encoder or not content.output.sample_captions:
        flags["sample_prompts"] = None
    transition = settings.transition_on
    if transition.mode == "loss_threshold":
        flags["epochs"] = transition.max_epochs
        if transition.metric is not None and transition.threshold is not None:
            # Ours of the KL term is the sum over latent values.
            is_sum = transition.metric == "kl_loss" and latents
            flags["stop_below"] = transition.threshold * (latents if is_sum else 1)
            flags["stop_metric"], _ = METRICS.get(transition.metric, (transition.metric, ""))
            flags["stop_window"] = transition.window
    if step.task == "vae":
        flags |= {f"freeze_{h}": h not in step.trained or None for h in ("encoder", "decoder")}
        flags["freeze_discriminator"] = "discriminator" in step.frozen or None
        flags |= {} if settings.use_lpips else {"perceptual_weight": 0}
        flags |= {} if settings.gan_training else {"disc_weight": 0}
        if settings.gan_training and (settings.lambda_adv is not None or step.is_gan_only):
            flags["adaptive_weight"] = False
        flags |= {"rec_weight": 0, "perceptual_weight": 0} if step.is_gan_only else {}
    elif content.model.text_encoder == "bytes" and "text_encoder" in step.frozen:
        flags["freeze_text_encoder"] = True
    flags |= _optimization_flags(step, pipeline.document)
    known = OPTIONS[step.task].by_flag().keys()
    flags = {flag: value for flag, value in flags.items() if flag in known and value is not None}
    options = {flag: v for flag, v in settings.options.items() if flag in known - INSTEAD.keys()}
    over = {flag: value for flag, value in pipeline.flags.items() if flag in known}
    return flags | options | over


def read_flags(step: Step, latents: int | None) -> tuple[Flags, list[str]]:
    """Flags of the keys that the step's training reads, loss weights in our units; these in words.

    Ours are for sums over an image, of 3 H W pixel values or C h w latent values. With the
    reconstruction's weight at 1 per pixel value, all others follow from

        3 H W (|error| + lambda_lpips LPIPS + lambda_adv g) + 3 H W kl_beta mean(KL),

    the mean-based loss times 3 H W. LPIPS already counts once per pixel value; our KL is the sum
    of all latents' divergences, C h w times their mean; the adversarial term is one number.
    """
    pixels, latents = (3 * step.size**2, latents) if latents else (1, 1)
    interval = step.settings.r1_interval or OPTIONS["vae"].by_flag()["r1_interval"].default
    rarer = f"divided by r1_interval {interval}: the rarer the term, the more it counts here"
    factors = {
        PIXELS: (pixels, f"times 3 H W = {pixels}"),
        RATIO: (pixels / latents, f"times 3 H W / C h w = {pixels} / {latents}"),
        INTERVAL: (1 / interval, rarer),
    }
    flags, conversions = {}, []
    for name, key in StepSection.keys().items():
        value = getattr(step.settings, name)
        if name == "lambda_adv" and value is None and step.is_gan_only:
            value = DEFAULT_LAMBDA_ADV
        is_free = name in ("kl_warmup_steps", "kl_free_bits") and step.settings.kl_beta == 0
        if not key.flag or value is None or idleness(step, name) or is_free:
            continue
        flags[key.flag] = value
        if key.unit and step.task == "vae":
            factor, reason = factors.get(key.unit, (1, key.unit))
            flags[key.flag] *= factor
            reason += "; constant weight" if name == "lambda_adv" else ""
            shown = f"{name} {value:g} -> --{key.flag} {flags[key.flag]:g} ({reason})"
            conversions.append(shown)
    return flags, conversions


def _data_flags(step: Step, content: PipelineFile) -> Flags:
    source = step.source
    flags: Flags = dict.fromkeys(("resolution", "eval_resolution", "eval_crop_size"), step.size)
    if source is None:
        return flags
    name = "image_path" if step.task == "vae" else "data_path"
    # Sizes above the images' own make no copies; and a VAE's crops are of scaled images then.
    reduced = [size for size in content.data.reduced_min_sizes or [] if size <= step.size]
    if reduced and step.task == "vae":
        flags["train_crop"] = "resized"
    section = source.section
    flags |= {
        name: section.paths or None,
        f"eval_{name}": section.held_out or None,
        "eval_steps": None if section.held_out else 0,
        "data_weights": section.data_weights,
        "reduced_min_sizes": reduced or None,
        "wds_image_key": section.webdataset_image_key,
    }
    if step.task == "vae" or not content.model.text_encoder:
        return flags
    folders, prefix = section.paths, section.fixed_prompt_prefix
    flags["fixed_prompt_prefix"] = prefix or content.data.fixed_prompt_prefix
    if section.is_webdataset:
        key, kind = section.webdataset_caption_key, section.webdataset_label_key
        if kind or key not in (None, "txt"):  # a field of the JSON member, as FluxFlow means it
            key = f"json:{(key or 'prompt').removeprefix('json:')}"
        flags["wds_caption_key"] = key
        folders = section.held_out  # shards do not read --captions, whatever it says
    if folders:
        manifest = any(path.endswith((".jsonl", ".json")) for path in folders)
        flags["captions"] = section.captions_file or ("manifest" if manifest else "sidecar")
    return flags


def _optimization_flags(step: Step, document: Document) -> Flags:
    """Flags of a step's optimizers and schedules; what cannot be met is reported.

    A VAE's or flow's settings are the training's own flags, those of a discriminator or text
    encoder its ``--..._options``.
    """
    chosen, lr_min = step.settings.optimization, step.settings.lr_min
    flags: Flags = {} if lr_min is None else {"min_lr_ratio": lr_min, "lr_schedule": "cosine"}
    for name, overrides in OPTIMIZED[step.task].items():
        own: Flags = {}
        for kind, read in (("optimizers", _read_optimizer), ("schedulers", _read_schedule)):
            if section := getattr(chosen, kind).get(name):
                for key, text in read(step, section, name, own):
                    place = step.origin(document, "optimization", kind, name, *key)
                    document.report(place, text)
        if own:
            flags |= {overrides: own} if overrides else own
    return flags


def _read_optimizer(step: Step, section: Section, name: str, flags: Flags) -> Problems:
    kind = section.type.lower()
    decoupled = section.decoupled_weight_decay
    if decoupled is not None and decoupled != (kind in _DECOUPLED):
        text = f"{section.type} does not do that; write type: {'AdamW' if decoupled else 'Adam'}"
        yield ("decoupled_weight_decay",), text
    for key, kinds in _TAKEN_BY.items():
        if getattr(section, key) is not None and kind not in kinds:
            yield (key,), f"{section.type} has no {key}; leave it out"
    values = {"optimizer": kind} | section.flags_of()
    if section.betas is not None and kind in _TAKEN_BY["betas"]:
        values["beta1"], values["beta2"] = section.betas
    flags |= {flag: value for flag, value in values.items() if value is not None}


def _read_schedule(step: Step, section: Section, name: str, flags: Flags) -> Problems:
    schedule, lr_min = SCHEDULES[section.type], step.settings.lr_min
    flags |= {"lr_schedule": schedule.kind, "min_lr_ratio": 0.0, **schedule.flags}
    flags |= {} if lr_min is None else {"min_lr_ratio": lr_min}
    title = f"{section.type} of {name}"
    if schedule.needs and getattr(section, schedule.needs) is None:
        yield (), f"{title} needs {schedule.needs}: it has no usual value"
    # Data that is drawn needs no held-out files.
    validates = step.source is None or bool(step.source.section.held_out)
    if schedule.kind == "plateau" and not step.settings.options.get("eval_steps", validates):
        text = "waits for validations, and this step has none: give held-out data (eval_data_path, "
        yield (), f"{title} {text}eval_image_folder) and no eval_steps: 0"
    for key, use in section.keys().items():
        value = getattr(section, key)
        if value is not None and key in (*schedule.keys, "warmup_steps"):
            flags[use.flag] = value
        elif value is not None:
            yield (key,), f"{title} has no {key}; leave it out"
