"""Weights and schedules of the image VAE's losses."""

import math
from dataclasses import dataclass

INVISIBLE = 1e-4  # of noise: an 8-bit image's steps are 8e-3


@dataclass(frozen=True)
class LossConfig:
    """Weights and shapes of `LPIPSWithDiscriminator2D`, for sums over pixels / batch size.

    A term whose weight is zero is not computed. Distances that are no sums but one number an
    image (LPIPS, colour, histogram, contrast, MMD) count once per pixel value (3 H W), so that
    at equal weights all compare with the mean absolute error.

    Attributes:
        rec_weight: Of the absolute (``l1``) or squared (``l2``) error.
        perceptual_weight: Of LPIPS (VGG).
        mse_weight: Of the squared error beside that; part of the likelihood as they are.
        color_weight: Of the difference of each image's channel means and deviations.
        histogram_weight: Of the Wasserstein-1 distance of each image's channel histograms.
        contrast_weight: Of the difference of local standard deviations.
        kl_weight: Of the KL divergence to the standard normal.
        kl_warmup_steps: Steps over which that weight grows from zero, as half a cosine.
        kl_free_bits: Nats of each latent value's KL divergence that are free: below, the value
            has no gradient. Per value, not per channel or batch, so that neither image size
            nor ranks or micro-batches change what is free.
        mmd_weight: Of the squared maximum mean discrepancy between latent pixels and N(0, I).
        wavelet_weight: Of the difference of encoder and decoder coefficients.
        disc_weight: Of the adversarial term, or of its adaptive weight.
        adaptive_weight: Scale it to the reconstruction's gradient at the last layer.
        disc_start: Step from which the adversarial term counts.
        disc_ramp_steps: Steps over which it grows linearly from zero after that.
        disc_loss: ``hinge`` or ``vanilla``.
        disc_num_layers: Stride-2 convolutions of the PatchGAN.
        r1_weight: Of half the squared gradient of a real image's mean patch logit, summed over
            its pixels; in the discriminator's loss.
        r1_interval: Updates of the discriminator from one with that term to the next, which
            counts this many times as much in return.
        instance_noise_std: Deviation of the normal noise on all that the discriminator sees,
            in units of pixel values.
        instance_noise_decay: Factor of that deviation from step to step.
        loss_type: ``l1`` or ``l2``.
        logvar_init: Log-variance of the reconstruction likelihood, not trained.
        lpips_weights: File of VGG weights; None takes the cached or downloaded ones.
    """

    rec_weight: float = 1.0
    perceptual_weight: float = 1.0
    mse_weight: float = 0.0
    color_weight: float = 0.0
    histogram_weight: float = 0.0
    contrast_weight: float = 0.0
    kl_weight: float = 1e-6
    kl_warmup_steps: int = 0
    kl_free_bits: float = 0.0
    mmd_weight: float = 0.0
    wavelet_weight: float = 0.1
    disc_weight: float = 0.5
    adaptive_weight: bool = True
    disc_start: int = 5
    disc_ramp_steps: int = 0
    disc_loss: str = "hinge"
    disc_num_layers: int = 4
    r1_weight: float = 0.0
    r1_interval: int = 16
    instance_noise_std: float = 0.0
    instance_noise_decay: float = 1.0
    loss_type: str = "l1"
    logvar_init: float = 0.0
    lpips_weights: str | None = None

    def __post_init__(self):
        if self.loss_type not in ("l1", "l2"):
            raise ValueError(f"unknown loss_type {self.loss_type!r}; use l1 or l2")
        if self.disc_loss not in ("hinge", "vanilla"):
            raise ValueError(f"unknown disc_loss {self.disc_loss!r}; use hinge or vanilla")
        if self.r1_interval < 1:
            raise ValueError(f"r1_interval must be at least 1, got {self.r1_interval}")
        if not 0 <= self.instance_noise_decay <= 1:
            raise ValueError(
                f"instance_noise_decay must be in 0..1, got {self.instance_noise_decay}"
            )
        compared = self.rec_weight or self.perceptual_weight or self.mse_weight
        if self.adaptive_weight and not compared:
            raise ValueError(
                "the adaptive weight compares with the reconstruction term, whose weights are 0; "
                "add --no_adaptive_weight"
            )

    def kl_factor(self, step: int) -> float:
        """Share of the KL weight that counts at ``step``."""
        if step >= self.kl_warmup_steps:
            return 1.0
        return 0.5 * (1 - math.cos(math.pi * step / self.kl_warmup_steps))

    def disc_factor(self, step: int) -> float:
        """Share of the adversarial weight that counts at ``step``: 0 before the start, then 1."""
        if self.disc_weight == 0 or step < self.disc_start:
            return 0.0
        return min(1.0, (step - self.disc_start + 1) / max(self.disc_ramp_steps, 1))

    def noise_std(self, step: int) -> float:
        """Deviation of the discriminator's instance noise at ``step``; 0 once it is invisible."""
        std = self.instance_noise_std * self.instance_noise_decay**step
        return std if std > INVISIBLE else 0.0
