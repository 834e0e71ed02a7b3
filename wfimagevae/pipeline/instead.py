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
    "nothing: --validate_pipeline prints the plan": "dry_run for",
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

FLAGS = {flag for cls in fluxflow.OPTIONS.values() for flag in cls.by_flag()}


def flag_of(name: str) -> str:
    """The flag of an option, which may be a switch that is turned off: ``no_x``."""
    return name if name in FLAGS or name[3:] not in FLAGS else name.removeprefix("no_")


def key_of(flag: str) -> str | None:
    """What a file has for a flag, given without dashes; None if it has nothing."""
    name = flag_of(flag)
    if name not in FLAGS or INSTEAD.get(name, "").startswith(("nothing", "--")):
        return None
    key = "img_size" if name == "resolution" else INSTEAD.get(name, f"options.{flag}")
    return key.split(", ")[0]


def in_words_of_file(text: str) -> str:
    """A training's message with the file's keys in place of flags."""
    return re.sub(r"--(\w+)", lambda flag: key_of(flag[1]) or flag[0], text)


# What to write instead of keys of FluxFlow's documents that mean nothing in a section here.
_REPLACED = {
    "": {
        "that flag is for files of flags; a pipeline file is given by --pipeline": "config",
        "write model.vae.pretrained or model.flow.pretrained; to go on with a pipeline, run the "
        "same command again": "model_checkpoint",
        "write it under training, training.pipeline.defaults or a step": "optimization",
        "write it under training": "pipeline",
        "write them under training.pipeline": "steps",
    },
    "model": {
        "model.vae.config, a JSON file such as examples/wfvae2-image-1024.json or the keys, sizes "
        "the VAE (latent_dim, base_channels, encoder_num_resblocks, activation: silu, relu or "
        "bezier)": "vae_dim model_type baseline_activation baseline_vae_width_mult "
        "baseline_vae_depth_mult",
        "model.flow.name, such as FlowDiT-B/2, or model.flow.config (hidden_size, depth, "
        "mlp_ratio) sizes the flow": "feature_maps_dim baseline_flow_blocks "
        "baseline_flow_ffn_expansion",
        "options: {disc_num_layers: N} sizes the discriminator": "feature_maps_dim_disc",
        "the text encoder decides it: model.text_encoder": "text_embedding_dim",
        "write model.text_encoder: bert:PATH_OR_NAME": "pretrained_bert_model",
        "write model.vae.config": "vae_config",
        "write model.flow.config": "flow_config",
    },
    "data": {
        "leave out": "tokenizer_name webdataset_size webdataset_samples_per_shard "
        "dataloader_max_retries dataloader_retry_delay",
        "write use_webdataset: true and webdataset_url": "use_tt2m",
        "a secret does not belong in a file: set the environment variable HF_TOKEN, which shard "
        "URLs of the hub are read with": "webdataset_token tt2m_token",
    },
    "training": {
        "leave out": "preserve_lr start_step mode value total_iters spade_training_mode "
        "num_train_timesteps",
        "it repeats each batch; write n_epochs, or gradient_accumulation_steps": "training_steps",
        "write options: {gan_schedule: joint} (or alternate)": "gan_schedule",
        "it balances all terms by their running means, which turns the adversarial term round once "
        "it is negative; options: {adaptive_weight: true} scales that term to the reconstruction's "
        "gradient": "adaptive_weights",
        "write optimization: {optimizers: ..., schedulers: ...} in place of "
        "JSON": "optim_sched_config",
        "write lr": "learning_rate",
        "write optimization: {schedulers: ...}": "schedulers",
        "write cfg_dropout_prob, so that a flow learns it, and options: "
        "{guidance_scale: W}": "use_cfg",
        "write train_vae: encoder": "train_encoder",
        "write train_vae: decoder": "train_decoder",
        "write kl_beta: 0 to leave the term out": "train_kl",
        "write options: {color_weight: W}": "train_colorstats",
        "write options: {histogram_weight: W}": "train_histogram",
        "write options: {contrast_weight: W}": "train_contrast",
        "there is no such term; see options: {wavelet_loss: true}": "train_coarseness",
    },
    "output": {
        "leave out": "log_level log_file preserve_lr",
        "write output_path, for all": "checkpoint_dir sample_dir log_dir",
        "write samples_per_checkpoint, as samples are drawn at checkpoints": "sample_interval",
    },
}
# Values of such keys that say what happens anyway; so does null.
HAPPENS_ANYWAY = [("log_level", "INFO"), ("mode", "sequential"), ("preserve_lr", True)]
HAPPENS_ANYWAY += [("training_steps", 1), ("adaptive_weights", False), ("use_tt2m", False)]
HAPPENS_ANYWAY += [("optimization", {"optim_sched_config": None})]


def instead_of(place: tuple) -> str | None:
    """What to do about a key of FluxFlow that means nothing here; None of others."""
    section = "data" if "datasets" in place else place[0] if place[1:] else ""
    rows = _REPLACED.get(section, {}).items()
    return next((text for text, keys in rows if place[-1] in keys.split()), None)
