"""Flags written under ``options``: those that exist, and that no key of the file decides."""

from wfimagevae.pipeline.document import Document, Place, dotted, nearest
from wfimagevae.pipeline.flags import OptionClasses, with_negatives
from wfimagevae.pipeline.schema import PipelineFile
from wfimagevae.pipeline.steps import MergedStep, is_gan_only

_OPTIMIZER = "optimization: {optimizers: {vae or flow: ...}}"
_SCHEDULE = "optimization: {schedulers: {vae or flow: ...}}"
_TRANSITION = "transition_on"
_WEIGHTS = "model.vae.pretrained or model.flow.pretrained"
_FOLDER = "output.output_path"
_AGAIN = "nothing instead, as the same command goes on where it stopped"

# Flag -> what to write in the file instead: one value has one place.
_GOVERNED = {
    **dict.fromkeys(("optimizer", "weight_decay", "beta1", "beta2", "momentum"), _OPTIMIZER),
    **dict.fromkeys(("lr_schedule", "lr_gamma", "lr_step_updates", "warmup_steps"), _SCHEDULE),
    "plateau_patience": _SCHEDULE,
    "min_lr_ratio": f"lr_min, or {_SCHEDULE}",
    "discriminator_options": "optimization: {optimizers: {discriminator: ...}}",
    "text_encoder_options": "optimization: {optimizers: {text_encoder: ...}}",
    **dict.fromkeys(("stop_metric", "stop_below", "stop_window"), _TRANSITION),
    **dict.fromkeys(("pretrained_model_name_or_path", "weights_from", "vae"), _WEIGHTS),
    "model_name": "model.vae.name or model.flow.name",
    "model_config": "model.vae.config or model.flow.config",
    "gradient_checkpointing": "model.use_gradient_checkpointing",
    "text_encoder": "model.text_encoder",
    "text_length": "model.text_length",
    "text_attention": "model.text_attention",
    **dict.fromkeys(("exp_name", "ckpt_dir"), _FOLDER),
    **dict.fromkeys(("log_steps", "csv_log_steps"), "output.log_interval"),
    "save_ckpt_step": "output.checkpoint_save_interval",
    "keep_last": "output.keep_last",
    "disable_live_plot": "output.generate_diagrams",
    "sample_prompts": "output.sample_captions",
    **dict.fromkeys(("resume_from_checkpoint", "not_resume_optimizer"), _AGAIN),
    "not_resume_discriminator": _AGAIN,
    **dict.fromkeys(("config", "list_flags", "help", "task"), "the flags of that file themselves"),
    "seed": "training.seed",
    "device": "training.device",
    "epochs": "n_epochs",
    "max_steps": "steps",
    "max_steps_per_epoch": "max_steps",
    "batch_size": "batch_size",
    "grad_accum_steps": "gradient_accumulation_steps",
    "dataset_num_worker": "workers",
    "mix_precision": "precision",
    "lr": "lr",
    "clip_grad_norm": "initial_clipping_norm",
    "ema": "use_ema",
    "no_ema": "use_ema",
    **dict.fromkeys(("image_path", "data_path"), "data.data_path, or a data set's image_folder"),
    **dict.fromkeys(
        ("eval_image_path", "eval_data_path"),
        "data.eval_data_path, or a data set's eval_image_folder",
    ),
    "data_weights": "data_weights, of data or of a data set",
    "reduced_min_sizes": "data.reduced_min_sizes",
    "wds_image_key": "webdataset_image_key",
    "wds_caption_key": "webdataset_caption_key",
    "captions": "captions_file",
    "fixed_prompt_prefix": "fixed_prompt_prefix, of data or of a data set",
    "freeze_encoder": "train_vae: decoder",
    "freeze_decoder": "train_vae: encoder",
    "freeze_text_encoder": "freeze: [text_encoder]",
    "kl_weight": "kl_beta",
    "kl_warmup_steps": "kl_warmup_steps",
    "kl_free_bits": "kl_free_bits",
    "perceptual_weight": "use_lpips and lambda_lpips",
    "mse_weight": "mse_weight",
    "r1_weight": "r1_gamma",
    "r1_interval": "r1_interval",
    "instance_noise_std": "instance_noise_std",
    "instance_noise_decay": "instance_noise_decay",
    "cfg_dropout_prob": "cfg_dropout_prob",
}
# Flags that only a step itself may have: elsewhere they would meet steps whose keys decide them.
_OF_ONE_STEP = {
    "disc_weight": "lambda_adv, or disc_weight in the options of a step with gan_training",
    "adaptive_weight": "it in the options of a step with gan_training",
    "no_adaptive_weight": "adaptive_weight: false in the options of a step with gan_training",
    "rec_weight": "it in the options of a step with train_vae",
    "resolution": "img_size, of data or of a data set; or resolution in the options of a step",
}


def check_shared_options(document: Document, content: PipelineFile, known: OptionClasses) -> None:
    """Reports options above the steps that are no flag of any training, or that keys decide."""
    every = {name for cls in known.values() for name in with_negatives(cls)}
    training, pipeline = content.training, content.training.pipeline
    sections: list[tuple[Place, dict]] = [
        (("training",), training.options),
        (("training", "pipeline", "defaults"), pipeline.defaults.options),
    ]
    for name, data_set in pipeline.datasets.items():
        sections.append((("training", "pipeline", "datasets", name), data_set.options))
    refused = _GOVERNED | _OF_ONE_STEP
    for place, options in sections:
        for name in options:
            where = (*place, "options", name)
            if name not in every:
                document.report(where, f"unknown key {dotted(where)}{nearest(name, every)}")
            elif instead := refused.get(name):
                document.report(where, _refusal(name, instead))


def check_options(document: Document, step: MergedStep, known: OptionClasses) -> None:
    """Reports options of a step that its training does not have, or that keys decide."""
    flags = with_negatives(known[step.task])
    for name in step.own.get("options", {}):
        place = step.origin(document, "options", name)
        if name not in flags:
            hint = nearest(name, flags).split("; known")[0]
            document.report(place, f"a {step.task} training has no flag {name}{hint}")
        elif instead := _GOVERNED.get(name) or _decided_here(name, step):
            document.report(place, _refusal(name, instead))


def is_governed(name: str) -> bool:
    """Whether a key of the file decides a flag."""
    return name in _GOVERNED


def _decided_here(name: str, step: MergedStep) -> str | None:
    """What else a step must say for a flag that it may have only in some cases."""
    settings = step.settings
    if name in ("disc_weight", "adaptive_weight", "no_adaptive_weight"):
        if not settings.gan_training:
            return "gan_training: true with it"
        if settings.lambda_adv is not None or is_gan_only(settings):
            return "lambda_adv, which is a constant weight, alone"
    if name == "rec_weight" and is_gan_only(settings):
        return "train_vae: true to compare images"
    return None


def _refusal(name: str, instead: str) -> str:
    return f"{name} in options: a key of the file decides it; write {instead}"
