"""FluxFlow's loss weights, of means over elements, as weights of our sums. No torch here."""

from dataclasses import dataclass

from wfimagevae.pipeline.steps import MergedStep, is_gan_only

DEFAULT_LAMBDA_ADV = 0.5


@dataclass(frozen=True)
class Units:
    """How many values an image has, for one step.

    Attributes:
        pixels: Pixel values, 3 H W.
        latents: Latent values.
    """

    pixels: int
    latents: int


@dataclass(frozen=True)
class Conversion:
    """One value as the file gives it and as the flag takes it.

    Attributes:
        key: In the file.
        given: Its value.
        flag: That takes it.
        value: What it takes.
        reason: The factor between them.
    """

    key: str
    given: float
    flag: str
    value: float
    reason: str

    def __str__(self) -> str:
        return f"{self.key} {self.given:g} -> --{self.flag} {self.value:g} ({self.reason})"


def convert_weights(step: MergedStep, units: Units) -> list[Conversion]:
    """Loss weights and thresholds of a VAE step in our units.

    Ours are for sums over an image, of 3 H W pixel values or C h w latent values. With the
    reconstruction's weight at 1 per pixel value, all others follow from

        3 H W (|error| + lambda_lpips LPIPS + lambda_adv g) + 3 H W kl_beta mean(KL),

    the mean-based loss times 3 H W. LPIPS already counts once per pixel value; our KL is the sum
    of all latents' divergences, C h w times their mean; the adversarial term is one number.
    """
    if step.task != "vae":
        return []
    settings, found = step.settings, []

    def add(key: str, given: float | None, flag: str, factor: float, reason: str) -> None:
        if given is not None:
            found.append(Conversion(key, given, flag, given * factor, reason))

    ratio = units.pixels / units.latents
    sizes = f"3 H W / C h w = {units.pixels} / {units.latents}"
    add("kl_beta", settings.kl_beta, "kl_weight", ratio, f"times {sizes}")
    if settings.kl_beta != 0:
        add("kl_free_bits", settings.kl_free_bits, "kl_free_bits", 1, "nats a latent value in both")
    if not is_gan_only(settings):
        same = "counts once per pixel value in both"
        if settings.use_lpips:
            add("lambda_lpips", settings.lambda_lpips, "perceptual_weight", 1, same)
        add("mse_weight", settings.mse_weight, "mse_weight", 1, same)
    pixels = f"times 3 H W = {units.pixels}"
    if settings.gan_training:
        adversarial = settings.lambda_adv
        if adversarial is None and is_gan_only(settings):
            adversarial = DEFAULT_LAMBDA_ADV
        add("lambda_adv", adversarial, "disc_weight", units.pixels, f"{pixels}; constant weight")
        interval = settings.r1_interval or 16
        lazy = f"divided by r1_interval {interval}: the rarer the term, the more it counts here"
        add("r1_gamma", settings.r1_gamma, "r1_weight", 1 / interval, lazy)
    clip = settings.initial_clipping_norm
    add("initial_clipping_norm", clip, "clip_grad_norm", units.pixels, pixels)
    return found


@dataclass(frozen=True)
class Metric:
    """A value of FluxFlow's that a transition may wait for, and is reported.

    Attributes:
        name: Under which ours is logged.
        needs: What a step must train with to log it, in words.
        per_latent: Ours is the sum over latents, FluxFlow's their mean.
    """

    name: str
    needs: str
    per_latent: bool = False


METRICS = {
    "vae_loss": Metric("train/rec_loss_per_pixel", "train_vae"),
    "kl_loss": Metric("train/kl_loss", "train_vae and kl_beta above 0", per_latent=True),
    "g_loss": Metric("train/g_loss", "gan_training"),
    "d_loss": Metric("train/disc_loss", "gan_training and a discriminator that learns"),
    "lpips_loss": Metric("train/perceptual_loss", "use_lpips"),
    "color_stats": Metric("train/color_loss", "options: {color_weight: W}"),
    "hist_loss": Metric("train/histogram_loss", "options: {histogram_weight: W}"),
    "contrast_loss": Metric("train/contrast_loss", "options: {contrast_weight: W}"),
    "flow_loss": Metric("train/loss", "train_diff"),
}

# What else each kind of training logs: a transition may wait for these, too.
OWN_METRICS = {
    "vae": {f"train/{name}_loss" for name in ("total", "nll", "rec", "mse", "mmd", "wl")}
    | {
        f"train/{name}_loss_per_pixel"
        for name in ("kl", "wl", "mse", "mmd", "color", "histogram", "contrast")
    }
    | {f"train/{name}" for name in ("logvar", "kl_weight", "kl_free_share")}
    | {f"train/{name}" for name in ("d_weight", "disc_factor", "r1_penalty")}
    | {f"train/{name}" for name in ("logits_real", "logits_fake")},
    "flow": {"train/error", "train/direction_loss"}
    | {f"train/error_t{t:.2f}-{t + 0.25:.2f}" for t in (0, 0.25, 0.5, 0.75)},
}


def logged_metrics(step: MergedStep) -> set[str]:
    """Which of `METRICS` a step will log."""
    settings, options = step.settings, step.settings.options
    if step.task == "flow":
        return {"flow_loss"}
    logged = {"vae_loss"}
    if settings.kl_beta != 0 and options.get("kl_weight") != 0:
        logged.add("kl_loss")
    if settings.gan_training:
        logged |= {"g_loss"} | ({"d_loss"} if "discriminator" in step.trained else set())
    if settings.use_lpips and not is_gan_only(settings):
        logged.add("lpips_loss")
    weights = {"color_stats": "color", "hist_loss": "histogram", "contrast_loss": "contrast"}
    return logged | {name for name, w in weights.items() if options.get(f"{w}_weight")}
