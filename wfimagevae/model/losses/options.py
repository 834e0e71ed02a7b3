"""Weights and schedules of the image VAE's losses. No torch here."""

from typing import Literal, Self

from pydantic import model_validator

from wfimagevae.options import Count, Natural, NonNegative, Number, Options, Share, option


class LossOptions(Options):
    """losses: weights are for sums over pixels divided by the batch size (LPIPS, colour, histogram,
    contrast and MMD: one number an image, counted once per pixel value); a term of weight 0 is not
    computed"""

    loss_type: Literal["l1", "l2"] = option("l1", "absolute or squared error")
    rec_weight: NonNegative = option(1.0, "weight of that error", "W")
    perceptual_weight: NonNegative = option(1.0, "weight of LPIPS (VGG)", "W", basic=True)
    mse_weight: NonNegative = option(0.0, "weight of the squared error, beside --loss_type's", "W")
    color_weight: NonNegative = option(
        0.0, "weight of the difference of channel means and standard deviations", "W"
    )
    histogram_weight: NonNegative = option(
        0.0, "weight of the Wasserstein-1 distance of channel histograms", "W"
    )
    contrast_weight: NonNegative = option(
        0.0, "weight of the difference of local standard deviations (8x8 pixels)", "W"
    )
    lpips_weights: str | None = option(
        None, "torchvision's VGG16 weights, where they cannot be downloaded", "FILE"
    )
    kl_weight: NonNegative = option(1e-6, "weight of the KL divergence", "W")
    kl_warmup_steps: Natural = option(
        0, "steps over which that weight grows from 0, as half a cosine", "N"
    )
    # Per value, not per channel or batch: neither image size nor ranks change what is free.
    kl_free_bits: NonNegative = option(
        0.0, "divergence of each latent value that is free: below it, no KL gradient", "NATS"
    )
    mmd_weight: NonNegative = option(
        0.0,
        "weight of the squared maximum mean discrepancy (Gaussian kernels) between all processes' "
        "latent pixels and the standard normal",
        "W",
    )
    wavelet_loss: bool = option(
        False,
        "tie the decoder's wavelet coefficients to the encoder's; without it --wavelet_weight has "
        "no effect",
        basic=True,
    )
    wavelet_weight: NonNegative = option(0.1, "weight of that term", "W")
    logvar_init: Number = option(0.0, "log-variance of the reconstruction likelihood", "X")


class AdversarialOptions(Options):
    """discriminator: PatchGAN with spectral norm"""

    disc_start: Natural = option(
        5, "step from which the adversarial term counts", "STEP", basic=True
    )
    disc_ramp_steps: Natural = option(
        0, "steps over which the adversarial weight grows after --disc_start", "N"
    )
    disc_weight: NonNegative = option(
        0.5, "weight of the adversarial term; 0 trains without a discriminator", "W", basic=True
    )
    adaptive_weight: bool = option(
        True, "scale that weight to the reconstruction's gradient at the last layer"
    )
    disc_loss: Literal["hinge", "vanilla"] = option("hinge", "the discriminator's loss")
    disc_num_layers: Count = option(4, "its convolutions with stride 2", "N")
    r1_weight: NonNegative = option(
        0.0,
        "weight of half the squared gradient of a real image's mean logit in its pixels, in the "
        "discriminator's loss",
        "W",
    )
    r1_interval: Count = option(
        16, "its updates from one with that term, N times as strong, to the next", "N"
    )
    instance_noise_std: NonNegative = option(
        0.0, "normal noise on all it sees, in pixel values of [-1, 1]", "STD"
    )
    instance_noise_decay: Share = option(
        1.0, "factor of that noise from step to step; below 1e-4 it ends", "R"
    )

    def disc_factor(self, step: int) -> float:
        """Share of the adversarial weight that counts at ``step``: 0 before the start, then 1."""
        if self.disc_weight == 0 or step < self.disc_start:
            return 0.0
        return min(1.0, (step - self.disc_start + 1) / max(self.disc_ramp_steps, 1))


class LossConfig(LossOptions, AdversarialOptions):
    """All that `LPIPSWithDiscriminator2D` reads."""

    @model_validator(mode="after")
    def _check_adaptive_weight(self) -> Self:
        compared = self.rec_weight or self.perceptual_weight or self.mse_weight
        if self.adaptive_weight and not compared:
            raise ValueError(
                "the adaptive weight compares with the reconstruction term, whose weights are 0; "
                "add --no_adaptive_weight"
            )
        return self
