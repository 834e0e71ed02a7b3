"""FluxFlow's loss weights, of means over elements, as weights of our sums. No torch here."""

from dataclasses import dataclass

from wfimagevae.pipeline.components import DISCRIMINATOR
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


# What a step must train with to log something, in words.
_KL = "train_vae and kl_beta above 0"
_GAN = "gan_training with a weight above 0"
_CRITIC = "gan_training and a discriminator that learns"
_COLOUR = "options: {color_weight: W}"
_HISTOGRAM = "options: {histogram_weight: W}"
_CONTRAST = "options: {contrast_weight: W}"
_MMD = "options: {mmd_weight: W}"
_WAVELETS = "options: {wavelet_loss: true}"
_DIRECTION = "options: {direction_weight: W}"
_MEAN_FLOW = "options: {objective: mean_flow}"
_NOTHING = "nothing"

METRICS = {
    "vae_loss": Metric("train/rec_loss_per_pixel", "train_vae"),
    "kl_loss": Metric("train/kl_loss", _KL, per_latent=True),
    "g_loss": Metric("train/g_loss", _GAN),
    "d_loss": Metric("train/disc_loss", _CRITIC),
    "lpips_loss": Metric("train/perceptual_loss", "use_lpips"),
    "color_stats": Metric("train/color_loss", _COLOUR),
    "hist_loss": Metric("train/histogram_loss", _HISTOGRAM),
    "contrast_loss": Metric("train/contrast_loss", _CONTRAST),
    "flow_loss": Metric("train/loss", "train_diff"),
}

# What else each kind of training logs: a transition may wait for these, too. With what it needs.
OWN_METRICS = {
    "vae": {
        **dict.fromkeys(("train/total_loss", "train/nll_loss", "train/rec_loss"), _NOTHING),
        **dict.fromkeys(("train/logvar", "train/disc_factor"), _NOTHING),
        "train/kl_loss_per_pixel": _KL,
        "train/kl_weight": f"{_KL}, and kl_warmup_steps",
        "train/kl_free_share": f"{_KL}, and kl_free_bits",
        **dict.fromkeys(("train/mse_loss", "train/mse_loss_per_pixel"), "mse_weight"),
        **dict.fromkeys(("train/mmd_loss", "train/mmd_loss_per_pixel"), _MMD),
        **dict.fromkeys(("train/wl_loss", "train/wl_loss_per_pixel"), _WAVELETS),
        "train/color_loss_per_pixel": _COLOUR,
        "train/histogram_loss_per_pixel": _HISTOGRAM,
        "train/contrast_loss_per_pixel": _CONTRAST,
        "train/d_weight": _GAN,
        **dict.fromkeys(("train/logits_real", "train/logits_fake"), _CRITIC),
        "train/r1_penalty": f"{_CRITIC}, and r1_gamma",
    },
    "flow": {
        "train/error": _MEAN_FLOW,
        "train/direction_loss": _DIRECTION,
        **{f"train/error_t{t:.2f}-{t + 0.25:.2f}": _NOTHING for t in (0, 0.25, 0.5, 0.75)},
    },
}


def met_needs(step: MergedStep) -> set[str]:
    """Which of the needs of metrics a step meets."""
    settings, options = step.settings, step.settings.options
    if step.task == "flow":
        averages = options.get("objective") == "mean_flow"
        met = {_MEAN_FLOW: averages}
        met[_DIRECTION] = not averages and options.get("direction_weight")
        return {_NOTHING, "train_diff"} | {need for need, is_met in met.items() if is_met}
    kl = settings.kl_beta != 0
    gan = settings.gan_training and settings.lambda_adv != 0 and options.get("disc_weight") != 0
    critic = gan and DISCRIMINATOR in step.trained
    compares = not is_gan_only(settings)
    met = {
        _KL: kl,
        f"{_KL}, and kl_warmup_steps": kl and settings.kl_warmup_steps,
        f"{_KL}, and kl_free_bits": kl and settings.kl_free_bits,
        _GAN: gan,
        _CRITIC: critic,
        f"{_CRITIC}, and r1_gamma": critic and settings.r1_gamma,
        "use_lpips": compares and settings.use_lpips and settings.lambda_lpips != 0,
        "mse_weight": compares and settings.mse_weight,
        _COLOUR: options.get("color_weight"),
        _HISTOGRAM: options.get("histogram_weight"),
        _CONTRAST: options.get("contrast_weight"),
        _MMD: options.get("mmd_weight"),
        _WAVELETS: options.get("wavelet_loss") and options.get("wavelet_weight", 1),
    }
    return {_NOTHING, "train_vae"} | {need for need, is_met in met.items() if is_met}
