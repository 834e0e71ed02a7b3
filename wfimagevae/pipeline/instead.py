"""What to write instead of flags that keys decide, and of FluxFlow's keys without meaning here."""

import re

from wfimagevae.pipeline import fluxflow

# What the file has in place of some flags: one value has one place.
_PLACES = {
    "optimization: {optimizers: {vae or flow: ...}}": "optimizer weight_decay beta1 beta2 momentum",
    "optimization: {schedulers: {vae or flow: ...}}": "lr_schedule lr_gamma lr_step_updates "
    "warmup_steps plateau_patience",
    "lr_min, or optimization: {schedulers: {vae or flow: ...}}": "min_lr_ratio",
    "optimization: {optimizers: {discriminator: ...}}": "discriminator_options",
    "optimization: {optimizers: {text_encoder: ...}}": "text_encoder_options",
    "transition_on": "stop_metric stop_below stop_window",
    "model.vae.name or model.flow.name": "model_name",
    "model.vae.config or model.flow.config": "model_config",
    "model.vae.pretrained or model.flow.pretrained": "pretrained_model_name_or_path weights_from "
    "vae",
    "output.output_path": "exp_name ckpt_dir",
    "output.log_interval": "csv_log_steps",
    "output.generate_diagrams": "disable_live_plot",
    "nothing instead, as the same command goes on where it stopped": "resume_from_checkpoint "
    "not_resume_optimizer not_resume_discriminator",
    "the flags of that file themselves": "config list_flags help",
    "train_vae, gan_training or train_diff": "task",
    "data.data_path, or a data set's image_folder": "image_path data_path",
    "data.eval_data_path, or a data set's eval_image_folder": "eval_image_path eval_data_path",
    "data.reduced_min_sizes": "reduced_min_sizes",
    "train_vae: decoder": "freeze_encoder",
    "train_vae: encoder": "freeze_decoder",
    "freeze: [text_encoder]": "freeze_text_encoder",
    "use_lpips": "perceptual_weight",
    "--allow_pipe on the command line": "allow_pipe",
}
# Flags that only a step itself may have: elsewhere they would meet steps whose keys decide them.
OF_ONE_STEP = {
    "disc_weight": "lambda_adv, or disc_weight in the options of a step with gan_training",
    "adaptive_weight": "it in the options of a step with gan_training",
    "rec_weight": "it in the options of a step with train_vae",
    "resolution": "img_size, of data or of a data set; or resolution in the options of a step",
}
_KEYS = {
    "{}, of data or of a data set": fluxflow.DataSection,
    "model.{}": fluxflow.ModelSection,
    "output.{}": fluxflow.OutputSection,
    "training.{}": fluxflow.TrainingSection,
    "{}": fluxflow.StepSection,
}
# Flag -> what to write.
INSTEAD = {key.flag: t.format(n) for t, cls in _KEYS.items() for n, key in cls.keys().items()}
INSTEAD |= {flag: text for text, flags in _PLACES.items() for flag in flags.split()}
INSTEAD = {flag: text for flag, text in INSTEAD.items() if flag and flag not in OF_ONE_STEP}
# Flags that win over the file where they stand beside it: those of keys, in the keys' units.
MAY_WIN = {
    key.flag
    for cls in (fluxflow.StepSection, fluxflow.TrainingSection, fluxflow.OutputSection)
    for key in cls.keys().values()
    if key.unit is None
} - {flag for flags in _PLACES.values() for flag in flags.split()}
MAY_WIN |= {"resolution", "allow_pipe"}

_FLAGS = {flag for cls in fluxflow.OPTIONS.values() for flag in cls.by_flag()}


def key_of(flag: str) -> str | None:
    """What a file has for a flag, given without dashes; None if it has nothing."""
    name = flag if flag in _FLAGS else flag.removeprefix("no_")
    if name not in _FLAGS or INSTEAD.get(name, "").startswith(("nothing", "--")):
        return None
    key = "img_size" if name == "resolution" else INSTEAD.get(name, f"options.{flag}")
    return key.split(", ")[0]


def in_words_of_file(text: str) -> str:
    """A training's message with the file's keys in place of flags."""
    return re.sub(r"--(\w+)", lambda flag: key_of(flag[1]) or flag[0], text)


_VAE = (
    "model.vae.config, a JSON file such as examples/wfvae2-image-1024.json or the keys, sizes the "
    "VAE (latent_dim, base_channels, encoder_num_resblocks, activation: silu, relu or bezier)"
)
_FLOW = (
    "model.flow.name, such as FlowDiT-B/2, or model.flow.config (hidden_size, depth, mlp_ratio) "
    "sizes the flow"
)
_VAE_KEYS = ("vae_dim", "model_type", "baseline_activation", "baseline_vae_width_mult")
_FLOW_KEYS = ("feature_maps_dim", "baseline_flow_blocks", "baseline_flow_ffn_expansion")
_MODEL = dict.fromkeys((*_VAE_KEYS, "baseline_vae_depth_mult"), _VAE)
_MODEL |= dict.fromkeys(_FLOW_KEYS, _FLOW)
_MODEL |= {
    "feature_maps_dim_disc": "options: {disc_num_layers: N} sizes the discriminator",
    "text_embedding_dim": "the text encoder decides it: model.text_encoder",
    "pretrained_bert_model": "write model.text_encoder: bert:PATH_OR_NAME",
    "vae_config": "write model.vae.config",
    "flow_config": "write model.flow.config",
}
_DATA = {
    "tokenizer_name": "the text encoder brings its tokenizer: model.text_encoder",
    "use_tt2m": "write use_webdataset: true and webdataset_url",
    **dict.fromkeys(
        ("webdataset_token", "tt2m_token"),
        "a secret does not belong in a file: set the environment variable HF_TOKEN, which shard "
        "URLs of the hub are read with",
    ),
    **dict.fromkeys(
        ("webdataset_size", "webdataset_samples_per_shard"),
        "shards are counted when they are indexed",
    ),
    **dict.fromkeys(
        ("dataloader_max_retries", "dataloader_retry_delay"),
        "reading a URL is retried by itself; an unreadable sample is skipped and counted",
    ),
}
_SETTINGS = {
    "training_steps": "it repeats each batch; write n_epochs, or gradient_accumulation_steps",
    "gan_schedule": "write options: {gan_schedule: joint} (or alternate)",
    "adaptive_weights": "it balances all terms by their running means, which turns the adversarial "
    "term round once it is negative; options: {adaptive_weight: true} scales that term to the "
    "reconstruction's gradient",
    "preserve_lr": "a resumed step goes on with its learning rate; each step begins with its own",
    "optim_sched_config": "write optimization: {optimizers: ..., schedulers: ...} in place of JSON",
    "num_train_timesteps": "time is continuous here: options: {time_distribution: ...}",
    "start_step": "run the same command again: it goes on where it stopped",
    "epochs": "write n_epochs",
    "num_workers": "write workers",
    "learning_rate": "write lr",
    "schedulers": "write optimization: {schedulers: ...}",
    "use_cfg": "write cfg_dropout_prob, so that a flow learns it, and options: {guidance_scale: W}",
    "train_encoder": "write train_vae: encoder",
    "train_decoder": "write train_vae: decoder",
    "train_kl": "write kl_beta: 0 to leave the term out",
    "train_colorstats": "write options: {color_weight: W}",
    "train_histogram": "write options: {histogram_weight: W}",
    "train_contrast": "write options: {contrast_weight: W}",
    "train_coarseness": "there is no such term; see options: {wavelet_loss: true}",
    "spade_training_mode": "the step's network trains as a whole; see train_spade",
}
# Keys of FluxFlow's documents that mean nothing in a section here, and what to write instead.
REPLACED = {
    fluxflow.PipelineFile: {
        "config": "that flag is for files of flags; a pipeline file is given by --pipeline",
        "model_checkpoint": "write model.vae.pretrained or model.flow.pretrained; to go on with a "
        "pipeline, run the same command again",
        "optimization": "write it under training, training.pipeline.defaults or a step",
        "pipeline": "write it under training",
        "steps": "write them under training.pipeline",
    },
    fluxflow.ModelSection: _MODEL,
    fluxflow.NetworkSection: _MODEL,
    fluxflow.DataSection: _DATA,
    fluxflow.DatasetSection: _DATA,
    fluxflow.Settings: _SETTINGS,
    fluxflow.PipelineSection: {"mode": "steps are trained in their order"},
    fluxflow.Transition: {
        "value": "an epoch transition happens after n_epochs",
        "epochs": "write max_epochs",
    },
    fluxflow.OutputSection: {
        **dict.fromkeys(("checkpoint_dir", "sample_dir", "log_dir"), "write output_path, for all"),
        "sample_interval": "write samples_per_checkpoint, as samples are drawn at checkpoints",
        "log_level": "everything is logged once; log_interval says how often",
        "log_file": "redirect the command's output to a file",
        "preserve_lr": _SETTINGS["preserve_lr"],
    },
}
# Values of such keys that say what happens anyway; so does null.
HAPPENS_ANYWAY = [("log_level", "INFO"), ("mode", "sequential"), ("preserve_lr", True)]
HAPPENS_ANYWAY += [("training_steps", 1), ("adaptive_weights", False), ("use_tt2m", False)]
HAPPENS_ANYWAY += [("optimization", {"optim_sched_config": None})]
