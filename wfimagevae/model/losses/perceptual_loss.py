"""The image VAE's two losses: of pixels, features, statistics, latents and the game."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.model.losses.discriminator import NLayerDiscriminator, frozen, gradient_penalty
from wfimagevae.model.losses.image_statistics import (
    color_distance,
    contrast_distance,
    histogram_distance,
)
from wfimagevae.model.losses.lpips_network import LPIPS
from wfimagevae.model.losses.mmd import latent_mmd
from wfimagevae.model.losses.options import LossConfig
from wfimagevae.model.modeling_base import compile_each

__all__ = ["LPIPSWithDiscriminator2D", "LossConfig"]

Logs = dict[str, Tensor]

# Inside VGG and the discriminator, which may compute in float16, the gradient of a sum over
# pixels overflows and that of a mean over patches vanishes; at these scales neither does.
_SUM_SCALE = 1 / 768
_MEAN_SCALE = 256

_STATISTICS = {
    "color": color_distance,
    "histogram": histogram_distance,
    "contrast": contrast_distance,
}
# Logged as sums over pixels and, besides, as means.
_SUMS = tuple(f"train/{name}_loss" for name in ("kl", "wl", "mse", "mmd", *_STATISTICS))


class LPIPSWithDiscriminator2D(nn.Module):
    """Both players' losses and the discriminator they share.

    The generator's loss is built from gradients with respect to the *image*: the perceptual and the
    adversarial network are left behind before the VAE's backward pass begins, and the adaptive
    weight's two last-layer gradients start from there too. Latents are not detached: decoder and
    encoder both get the gradient of every term on the image.

    Source: Esser et al. 2021, arXiv:2012.09841, equations 6 and 7; wavelet term: Li et al. 2024,
    arXiv:2411.17459.
    """

    def __init__(self, config: LossConfig):
        super().__init__()
        self.config = config
        self.logvar = nn.Parameter(torch.tensor(config.logvar_init), requires_grad=False)
        self.discriminator = NLayerDiscriminator(config.disc_num_layers)
        self.discriminator.requires_grad_(config.disc_weight > 0)
        self.perceptual_loss = None
        if config.perceptual_weight > 0:
            self.perceptual_loss = LPIPS("vgg", config.lpips_weights)
        self.register_state_dict_post_hook(_drop_lpips)
        self.register_load_state_dict_pre_hook(_ignore_lpips)

    def generator_loss(
        self,
        images: Tensor,
        output,
        last_layer: Tensor,
        step: int,
        average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
        gather: Callable[[Tensor], Tensor] = lambda rows: rows,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Logs]:
        """The VAE's loss per pixel value, with detached logs in sums over pixels.

        Args:
            images: Targets in [-1, 1], (B, 3, H, W).
            output: The VAE's ``.sample``, ``.latent_dist``, ``.extra_output`` (encoder coefficients
                finest first, decoder coefficients coarsest first) and, with ``mmd_weight``,
                ``.latent``.
            last_layer: Weight of the decoder's last convolution, for the adaptive weight.
            step: Iteration of the training loop.
            average: Averages gradients over processes, so that all agree on the weight.
            gather: Joins rows over processes, for what latents have in common.
            noise: Added to the reconstruction before the discriminator sees it, (B, 3, H, W).
        """
        # Likelihood: its gradient in the image, and from there on no graph of LPIPS.
        reconstruction = output.sample
        target, image = _full(images), _full(reconstruction.detach()).requires_grad_()
        nll, logs = self._reconstruction(target, image)
        total = nll.detach()
        gradient = _image_gradient(nll, image, _SUM_SCALE)
        # Adversarial term, weighted by the ratio of both gradients at the last layer.
        factor = self.config.disc_factor(step)
        if factor > 0:
            with frozen(self.discriminator):
                logits = _full(self.discriminator(image if noise is None else image + noise))
            g_loss = -logits.mean()
            g_gradient, g_loss = _image_gradient(g_loss, image, _MEAN_SCALE), g_loss.detach()
            weight = g_loss.new_full((), self.config.disc_weight)
            if self.config.adaptive_weight:
                causes = gradient, g_gradient
                inner = [_last_layer_gradient(reconstruction, last_layer, g) for g in causes]
                nll_inner, g_inner = average(torch.stack(inner))  # one call, for both
                weight = weight * (nll_inner.norm() / (g_inner.norm() + 1e-6)).clamp(0.0, 1e6)
            total = total + weight * factor * g_loss
            gradient = gradient + weight * factor * g_gradient
            logs |= {"train/d_weight": weight, "train/g_loss": g_loss}
        # Terms of one number an image count once per pixel value.
        for name, distance in _STATISTICS.items():
            weight = getattr(self.config, f"{name}_weight")
            if weight > 0:
                loss = distance(target, image).mean() * target[0].numel()
                logs[f"train/{name}_loss"] = loss.detach()
                total = total + weight * loss.detach()
                gradient = gradient + _image_gradient(weight * loss, image, 1.0)
        # One backward pass for all of these and for the terms of latents and coefficients.
        surrogate = (_full(reconstruction) * gradient).sum()
        for term in self._regularisers(output, step, gather, logs):
            surrogate, total = surrogate + term, total + term.detach()
        logs |= {"train/total_loss": total, "train/disc_factor": total.new_full((), factor)}
        per_value = 1 / images[0].numel()
        for name in [name for name in _SUMS if name in logs]:
            logs[f"{name}_per_pixel"] = logs[name] * per_value
        # The surrogate's gradient, the loss's value.
        return per_value * (surrogate + (total - surrogate).detach()), logs

    def discriminator_loss(
        self,
        images: Tensor,
        reconstruction: Tensor,
        update: int = 0,
        noise: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Logs]:
        """The discriminator's loss on real images and reconstructions, (B, 3, H, W) in [-1, 1].

        ``update`` says how many updates the discriminator has had, and so whether the gradient
        penalty is due; ``noise`` is added to both before the discriminator sees them.
        """
        # Both are seen through the same kind of noise, if any.
        images, reconstruction = _full(images), _full(reconstruction.detach())
        if noise is not None:
            images, reconstruction = images + noise[0], reconstruction + noise[1]
        real, fake = _full(self.discriminator(images)), _full(self.discriminator(reconstruction))
        if self.config.disc_loss == "hinge":
            loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        else:
            loss = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
        logs = {"disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        # R1 is lazy: it comes in few updates, and counts as many times as much there.
        if self.config.r1_weight > 0 and update % self.config.r1_interval == 0:
            penalty = gradient_penalty(self.discriminator, images)
            loss = loss + 0.5 * self.config.r1_weight * self.config.r1_interval * penalty
            logs["r1_penalty"] = penalty
        return loss, {f"train/{name}": value.detach() for name, value in logs.items()}

    def compile_networks(self, mode: str = "default") -> None:
        """Compiles the discriminator, and LPIPS with pixels' errors; state-dict names stay."""
        compile_each((self.discriminator.main,), mode)
        self._reconstruction = torch.compile(self._reconstruction, mode=mode, dynamic=False)

    def _reconstruction(self, target: Tensor, image: Tensor) -> tuple[Tensor, Logs]:
        """Negative log-likelihood, summed over pixels and averaged over the batch."""
        config, batch_size = self.config, len(target)
        error = target - (image if config.rec_weight > 0 else image.detach())
        error = error.abs() if config.loss_type == "l1" else error.square()
        rec = config.rec_weight * error
        logs = {"train/rec_loss_per_pixel": error.detach().mean()}
        if self.perceptual_loss is not None:
            distance = self.perceptual_loss(target, image)
            rec = rec + config.perceptual_weight * distance
            logs["train/perceptual_loss"] = distance.detach().mean()
        if config.mse_weight > 0:
            squared = (target - image).square()
            rec = rec + config.mse_weight * squared
            logs["train/mse_loss"] = squared.detach().sum() / batch_size
        nll = (rec / self.logvar.exp() + self.logvar).sum() / batch_size
        logs |= {"train/nll_loss": nll.detach(), "train/rec_loss": nll.detach()}
        return nll, logs | {"train/logvar": self.logvar.detach()}

    def _regularisers(self, output, step: int, gather: Callable, logs: Logs) -> Iterator[Tensor]:
        """The terms that act on latents and coefficients, weighted."""
        config, batch_size = self.config, len(output.sample)
        if config.kl_weight > 0:
            values = output.latent_dist.kl_of_values()  # (B, C, h, w)
            kl = values.flatten(1).sum(1).sum() / len(values)
            weight = config.kl_weight
            if step < config.kl_warmup_steps:
                weight *= 0.5 * (1 - math.cos(math.pi * step / config.kl_warmup_steps))
            logs["train/kl_loss"] = kl.detach()  # all of it, whatever is free
            if config.kl_warmup_steps > 0:
                logs["train/kl_weight"] = kl.new_full((), weight)
            if config.kl_free_bits > 0:
                free = values.detach() < config.kl_free_bits
                logs["train/kl_free_share"] = free.to(kl.dtype).mean()
                kl = values.clamp_min(config.kl_free_bits).sum() / len(values)
            yield weight * kl
        if config.mmd_weight > 0:
            loss = latent_mmd(output.latent, step, gather) * output.sample[0].numel()
            logs["train/mmd_loss"] = loss.detach()
            yield config.mmd_weight * loss
        if config.wavelet_loss and config.wavelet_weight > 0:
            encoder_coeffs, decoder_coeffs = output.extra_output
            if encoder_coeffs is None or decoder_coeffs is None:
                raise ValueError(
                    "wavelet_weight compares wavelet coefficients, but this model gives none "
                    "(extra_output); leave out --wavelet_loss"
                )
            levels = zip(encoder_coeffs, reversed(decoder_coeffs), strict=True)
            difference = sum((_full(a) - _full(b)).abs().sum() for a, b in levels) / batch_size
            logs["train/wl_loss"] = difference.detach()
            yield config.wavelet_weight * difference


def _full(x: Tensor) -> Tensor:
    """At least float32: losses are sums of many terms."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _image_gradient(loss: Tensor, image: Tensor, scale: float) -> Tensor:
    """Gradient d loss / d image, zero for a loss without terms; computed at ``scale``."""
    if not loss.requires_grad:
        return torch.zeros_like(image)
    return torch.autograd.grad(loss * scale, image)[0] / scale


def _last_layer_gradient(output: Tensor, last_layer: Tensor, gradient: Tensor) -> Tensor:
    """The gradient at ``last_layer`` that ``gradient`` at the output causes."""
    size = gradient.norm() + torch.finfo(torch.float32).tiny  # a unit vector survives float16
    unit = (gradient / size).to(output.dtype)
    inner = torch.autograd.grad(output, last_layer, unit, retain_graph=True)[0]
    return _full(inner) * size


def _drop_lpips(module, state_dict, prefix, *args) -> None:
    for key in [k for k in state_dict if k.startswith(prefix + "perceptual_loss.")]:
        del state_dict[key]


def _ignore_lpips(module, state_dict, prefix, *args) -> None:
    _drop_lpips(module, state_dict, prefix)
    if module.perceptual_loss is not None:  # as they are: never in a checkpoint
        state_dict.update(module.perceptual_loss.state_dict(prefix=f"{prefix}perceptual_loss."))
