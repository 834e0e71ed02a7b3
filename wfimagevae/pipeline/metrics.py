"""What trainings log, by FluxFlow's names and ours; what a transition may wait for. No torch."""

from typing import NamedTuple

from wfimagevae.options import Options, nearest
from wfimagevae.pipeline.document import Problems
from wfimagevae.pipeline.fluxflow import StepSection
from wfimagevae.pipeline.steps import Step


class Metric(NamedTuple):
    """A value that FluxFlow reports: its logged name here, and its word on the console."""

    logged: str
    label: str


METRICS = {
    "vae_loss": Metric("train/rec_loss_per_pixel", "VAE"),
    "kl_loss": Metric("train/kl_loss", "KL"),  # there the mean over latent values, logged the sum
    "g_loss": Metric("train/g_loss", "G"),
    "d_loss": Metric("train/disc_loss", "D"),
    "lpips_loss": Metric("train/perceptual_loss", "LPIPS"),
    "color_stats": Metric("train/color_loss", "ColorStats"),
    "hist_loss": Metric("train/histogram_loss", "Hist"),
    "contrast_loss": Metric("train/contrast_loss", "Contrast"),
    "flow_loss": Metric("train/loss", "Flow"),
}
# What each kind of training logs under train/, by the flags that must not be 0 for it.
_LOGGED = {
    "vae": {
        "total_loss nll_loss rec_loss rec_loss_per_pixel logvar disc_factor": "",
        "kl_loss kl_loss_per_pixel": "kl_weight",
        "kl_weight": "kl_weight kl_warmup_steps",
        "kl_free_share": "kl_weight kl_free_bits",
        "perceptual_loss": "perceptual_weight",
        "mse_loss mse_loss_per_pixel": "mse_weight",
        "mmd_loss mmd_loss_per_pixel": "mmd_weight",
        "wl_loss wl_loss_per_pixel": "wavelet_loss wavelet_weight",
        "color_loss color_loss_per_pixel": "color_weight",
        "histogram_loss histogram_loss_per_pixel": "histogram_weight",
        "contrast_loss contrast_loss_per_pixel": "contrast_weight",
        "g_loss d_weight": "disc_weight",
        "disc_loss logits_real logits_fake": "disc_weight learns",
        "r1_penalty": "disc_weight learns r1_weight",
    },
    "flow": {
        "loss error_t0.00-0.25 error_t0.25-0.50 error_t0.50-0.75 error_t0.75-1.00": "",
        "error": "mean_flow",
        "direction_loss": "velocities direction_weight",
    },
}
LOGGED = {
    task: {
        f"train/{name}": needs.split() for names, needs in rows.items() for name in names.split()
    }
    for task, rows in _LOGGED.items()
}
# What the flags that a metric needs are called in a file; others stand under options.
_NEEDS = {key.flag: name for name, key in StepSection.keys().items()} | {
    "kl_weight": "kl_beta above 0",
    "perceptual_weight": "use_lpips",
    "disc_weight": "gan_training with a weight above 0",
    "learns": "a discriminator that learns",
    "mean_flow": "options: {objective: mean_flow}",
    "velocities": "options: {objective: flow_matching}",
    "wavelet_loss": "options: {wavelet_loss: true}",
}


def check_transition(step: Step, options: Options | None) -> Problems:
    """A transition can happen, and its metric is one that the training logs."""
    transition, own = step.settings.transition_on, step.own.get("transition_on", {})
    if transition.mode == "epoch":
        said = own if "mode" in transition.model_fields_set else transition.model_fields_set
        for key in sorted({*said} - {"mode"}):
            yield (key,), f"transition_on.{key} has no effect in mode epoch; see n_epochs"
        return
    needed = ("metric", "threshold", "max_epochs")
    if missing := [key for key in needed if getattr(transition, key) is None]:
        text = "missing: mode loss_threshold needs a metric, a threshold and max_epochs as a limit"
        yield ("mode",), f"transition_on.{' and '.join(missing)} {text}"
    epochs, limit = step.own.get("n_epochs"), transition.max_epochs
    if limit and "steps" in step.own:
        text = "unreachable: steps ends the training, not max_epochs; leave one out"
        yield ("max_epochs",), text
    if limit and epochs and epochs < limit:
        text = f"unreachable: n_epochs {epochs} ends the step before max_epochs {limit}"
        yield ("max_epochs",), f"{text}; leave n_epochs out"
    name = transition.metric
    if name is None:
        return
    # Ours and FluxFlow's names of one value mean the same, but for the unit.
    logged = METRICS[name].logged if name in METRICS else name
    needs = LOGGED[step.task].get(logged)
    if needs is None and name not in METRICS:
        names = LOGGED[step.task] if name.startswith("train/") else METRICS
        yield ("metric",), f"unknown metric {name!r}{nearest(name, names)}"
        return
    if needs is None:
        words = ["train_diff" if logged in LOGGED["flow"] else "train_vae"]
    else:
        missing = [need for need in needs if options and not is_met(need, options)]
        words = [_NEEDS.get(need, f"options: {{{need}: W}}") for need in missing]
    is_loss = any(metric.logged == logged for metric in METRICS.values()) and "g_loss" not in logged
    if words:
        text = f"unreachable: this step logs no {name}, which needs {' and '.join(words)}"
        yield ("metric",), text
    elif is_loss and transition.threshold is not None and transition.threshold <= 0:
        yield ("threshold",), f"unreachable: {name} is never below 0"


def is_met(need: str, options: Options) -> bool:
    """Whether a step's options meet what a metric needs: a flag above 0, or an objective."""
    if need == "learns":
        return not options.freeze_discriminator
    if need in ("mean_flow", "velocities"):
        return (options.objective == "mean_flow") == (need == "mean_flow")
    return bool(getattr(options, need))
