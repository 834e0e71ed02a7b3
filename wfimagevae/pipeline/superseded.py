"""Keys of FluxFlow's documents that mean nothing here, and what to write instead."""

_SIZES = "a network's size is its configuration"
_VAE = (
    f"{_SIZES}: model.vae.config, a JSON file such as examples/wfvae2-image-1024.json or the keys"
)
_FLOW = f"{_SIZES}: model.flow.name, such as FlowDiT-B/2, or model.flow.config"
_SHARDS = "shards are counted when they are indexed"
_TOKEN = (
    "a secret does not belong in a file: set the environment variable HF_TOKEN, which shard URLs "
    "of the hub are read with"
)
_RETRIES = "reading a URL is retried by itself; an unreadable sample is skipped and counted"
_BALANCE = (
    "it balances all terms by their running means, which turns the adversarial term round once it "
    "is negative; options: {adaptive_weight: true} scales that term to the reconstruction's "
    "gradient"
)
_ALL = "the step's network trains as a whole; "

MODEL = {
    "vae_dim": f"{_VAE} (latent_dim, base_channels)",
    "feature_maps_dim": f"{_FLOW} (hidden_size, depth)",
    "feature_maps_dim_disc": "options: {disc_num_layers: N} sizes the discriminator",
    "text_embedding_dim": "the text encoder decides it: model.text_encoder",
    "pretrained_bert_model": "write model.text_encoder: bert:PATH_OR_NAME",
    "model_type": f"{_VAE} (activation: silu, relu or bezier)",
    "baseline_activation": f"{_VAE} (activation: silu, relu or bezier)",
    "baseline_vae_width_mult": f"{_VAE} (base_channels)",
    "baseline_vae_depth_mult": f"{_VAE} (encoder_num_resblocks, decoder_num_resblocks)",
    "baseline_flow_blocks": f"{_FLOW} (depth)",
    "baseline_flow_ffn_expansion": f"{_FLOW} (mlp_ratio)",
    "vae_config": "write model.vae.config",
    "flow_config": "write model.flow.config",
}
DATA = {
    "tokenizer_name": "the text encoder brings its tokenizer: model.text_encoder",
    "webdataset_token": _TOKEN,
    "webdataset_size": _SHARDS,
    "webdataset_samples_per_shard": _SHARDS,
    "dataloader_max_retries": _RETRIES,
    "dataloader_retry_delay": _RETRIES,
    "use_tt2m": "write use_webdataset: true and webdataset_url",
    "tt2m_token": _TOKEN,
}
SETTINGS = {
    "training_steps": "it repeats each batch; write n_epochs, or gradient_accumulation_steps",
    "gan_schedule": "write options: {gan_schedule: joint} (or alternate)",
    "adaptive_weights": _BALANCE,
    "preserve_lr": "a resumed step goes on with its learning rate; each step begins with its own",
    "optim_sched_config": "write optimization: {optimizers: ..., schedulers: ...} in place of JSON",
    "num_train_timesteps": "time is continuous here: options: {time_distribution: ...}",
    "start_step": "run the same command again: it goes on where it stopped",
    "epochs": "write n_epochs",
    "num_workers": "write workers",
    "learning_rate": "write lr",
    "train_encoder": "write train_vae: encoder",
    "train_decoder": "write train_vae: decoder",
    "train_kl": "write kl_beta: 0 to leave the term out",
    "train_colorstats": "write options: {color_weight: W}",
    "train_histogram": "write options: {histogram_weight: W}",
    "train_contrast": "write options: {contrast_weight: W}",
    "train_coarseness": "there is no such term; see options: {wavelet_loss: true}",
    "spade_training_mode": f"{_ALL}{_VAE} (spade: true)",
}
TRANSITION = {
    "value": "an epoch transition happens after n_epochs",
    "epochs": "write max_epochs",
}
OUTPUT = {
    "log_level": "everything is logged once; log_interval says how often",
    "log_file": "redirect the command's output to a file",
    "preserve_lr": SETTINGS["preserve_lr"],
}
TOP = {
    "config": "that flag is for files of flags; a pipeline file is given by --pipeline",
    "model_checkpoint": "write model.vae.pretrained or model.flow.pretrained; to go on with a "
    "pipeline, run the same command again",
    "optimization": "write it under training, training.pipeline.defaults or a step",
    "pipeline": "write it under training",
    "steps": "write them under training.pipeline",
}


def replacement(place: tuple) -> str | None:
    """What to write instead of the key at a place, where that is known."""
    section, key = place[:-1], place[-1]
    if not section:
        return TOP.get(key)
    if section[0] == "training":
        last = section[-1]
        if last == "transition_on":
            return TRANSITION.get(key)
        return DATA.get(key) if "datasets" in section else SETTINGS.get(key)
    return {"model": MODEL, "data": DATA, "output": OUTPUT}.get(section[0], {}).get(key)
