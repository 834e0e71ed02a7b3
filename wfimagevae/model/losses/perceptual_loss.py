"""The image VAE's two losses: L1 + LPIPS + KL + wavelet + adversarial, and the discriminator's."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.model.losses.discriminator import NLayerDiscriminator, frozen
from wfimagevae.model.losses.lpips_network import load_lpips

Logs = dict[str, Tensor]

# Inside VGG and the discriminator, which may compute in float16, the gradient of a sum over
# pixels overflows and that of a mean over patches vanishes; at these scales neither does.
_SUM_SCALE = 1 / 768
_MEAN_SCALE = 256


@dataclass(frozen=True)
class LossConfig:
    """Weights and shapes of `LPIPSWithDiscriminator2D`, for sums over pixels / batch size.

    A term whose weight is zero is not computed.

    Attributes:
        rec_weight: Of the absolute (``l1``) or squared (``l2``) error.
        perceptual_weight: Of LPIPS (VGG), counted once per pixel value.
        kl_weight: Of the KL divergence to the standard normal.
        wavelet_weight: Of the difference of encoder and decoder coefficients.
        disc_weight: Of the adversarial term, or of its adaptive weight.
        adaptive_weight: Scale it to the reconstruction's gradient at the last layer.
        disc_start: Step from which the adversarial term counts.
        disc_ramp_steps: Steps over which it grows linearly from zero after that.
        disc_loss: ``hinge`` or ``vanilla``.
        disc_num_layers: Stride-2 convolutions of the PatchGAN.
        loss_type: ``l1`` or ``l2``.
        logvar_init: Log-variance of the reconstruction likelihood, not trained.
        lpips_weights: File of VGG weights; None takes the cached or downloaded ones.
    """

    rec_weight: float = 1.0
    perceptual_weight: float = 1.0
    kl_weight: float = 1e-6
    wavelet_weight: float = 0.1
    disc_weight: float = 0.5
    adaptive_weight: bool = True
    disc_start: int = 5
    disc_ramp_steps: int = 0
    disc_loss: str = "hinge"
    disc_num_layers: int = 4
    loss_type: str = "l1"
    logvar_init: float = 0.0
    lpips_weights: str | None = None

    def __post_init__(self):
        if self.loss_type not in ("l1", "l2"):
            raise ValueError(f"unknown loss_type {self.loss_type!r}; use l1 or l2")
        if self.disc_loss not in ("hinge", "vanilla"):
            raise ValueError(f"unknown disc_loss {self.disc_loss!r}; use hinge or vanilla")
        if self.adaptive_weight and not (self.rec_weight or self.perceptual_weight):
            raise ValueError(
                "the adaptive weight compares with the reconstruction term, whose weights are 0; "
                "add --no_adaptive_weight"
            )


class LPIPSWithDiscriminator2D(nn.Module):
    """Both players' losses and the discriminator they share.

    The generator's loss is built from gradients with respect to the *image*: the perceptual
    and the adversarial network are left behind before the VAE's backward pass begins, and the
    adaptive weight's two last-layer gradients start from there too.

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
            self.perceptual_loss = load_lpips("vgg", config.lpips_weights)
        self.register_state_dict_post_hook(_drop_lpips)
        self.register_load_state_dict_pre_hook(_ignore_lpips)

    def generator_loss(
        self,
        images: Tensor,
        output,
        last_layer: Tensor,
        step: int,
        average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    ) -> tuple[Tensor, Logs]:
        """The VAE's loss per pixel value, with logs in sums over pixels.

        Args:
            images: Targets in [-1, 1], (B, 3, H, W).
            output: The VAE's ``.sample`` (B, 3, H, W), ``.latent_dist`` and ``.extra_output``
                (encoder coefficients finest first, decoder coefficients coarsest first).
            last_layer: Weight of the decoder's last convolution, for the adaptive weight.
            step: Iteration of the training loop.
            average: Averages a gradient over processes, so that all agree on the weight.

        Returns:
            A scalar whose gradient is that of the summed loss divided by the values per
            image, and detached logs.
        """
        reconstruction = output.sample
        image = _full(reconstruction.detach()).requires_grad_()
        nll, logs = self._reconstruction(_full(images), image)
        total = nll.detach()
        gradient = _image_gradient(nll, image, _SUM_SCALE)
        factor = self.disc_factor(step)
        if factor > 0:
            with frozen(self.discriminator):
                g_loss = -_full(self.discriminator(image)).mean()
            g_gradient = _image_gradient(g_loss, image, _MEAN_SCALE)
            weight = g_loss.new_tensor(self.config.disc_weight)
            if self.config.adaptive_weight:
                nll_norm = _last_layer_norm(reconstruction, last_layer, gradient, average)
                g_norm = _last_layer_norm(reconstruction, last_layer, g_gradient, average)
                weight = weight * (nll_norm / (g_norm + 1e-6)).clamp(0.0, 1e6)
            total = total + weight * factor * g_loss.detach()
            gradient = gradient + weight * factor * g_gradient
            logs |= {"train/d_weight": weight, "train/g_loss": g_loss.detach()}
        surrogate = (_full(reconstruction) * gradient).sum()
        for term in self._regularisers(output, logs):
            surrogate, total = surrogate + term, total + term.detach()
        logs |= {"train/total_loss": total, "train/disc_factor": total.new_tensor(factor)}
        per_value = 1 / images[0].numel()
        for name in {"train/kl_loss", "train/wl_loss"} & logs.keys():
            logs[f"{name}_per_pixel"] = logs[name] * per_value
        # The surrogate's gradient, the loss's value.
        return per_value * (surrogate + (total - surrogate).detach()), logs

    def discriminator_loss(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Logs]:
        """The discriminator's loss on real images and detached reconstructions, (B, 3, H, W)."""
        real = _full(self.discriminator(images))
        fake = _full(self.discriminator(_full(reconstruction.detach())))
        if self.config.disc_loss == "hinge":
            loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        else:
            loss = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
        logs = {"disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return loss, {f"train/{name}": value.detach() for name, value in logs.items()}

    def disc_factor(self, step: int) -> float:
        """Share of the adversarial weight that counts at ``step``: 0 before the start, then 1."""
        config = self.config
        if config.disc_weight == 0 or step < config.disc_start:
            return 0.0
        return min(1.0, (step - config.disc_start + 1) / max(config.disc_ramp_steps, 1))

    def compile_networks(self, mode: str = "default") -> None:
        """Compiles the discriminator and LPIPS' backbone in place; state-dict names stay."""
        self.discriminator.main.compile(mode=mode)
        if self.perceptual_loss is not None:
            self.perceptual_loss.net.compile(mode=mode)

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
        nll = (rec / self.logvar.exp() + self.logvar).sum() / batch_size
        logs |= {"train/nll_loss": nll.detach(), "train/rec_loss": nll.detach()}
        return nll, logs | {"train/logvar": self.logvar.detach()}

    def _regularisers(self, output, logs: Logs):
        """The terms that act on latents and coefficients, weighted."""
        config, batch_size = self.config, len(output.sample)
        if config.kl_weight > 0:
            kl = output.latent_dist.kl().sum() / batch_size
            logs["train/kl_loss"] = kl.detach()
            yield config.kl_weight * kl
        if config.wavelet_weight > 0:
            encoder_coeffs, decoder_coeffs = output.extra_output
            levels = zip(encoder_coeffs, reversed(decoder_coeffs), strict=True)
            difference = sum((_full(a) - _full(b)).abs().sum() for a, b in levels) / batch_size
            logs["train/wl_loss"] = difference.detach()
            yield config.wavelet_weight * difference


def _full(x: Tensor) -> Tensor:
    """At least float32: losses are sums of many terms."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _image_gradient(loss: Tensor, image: Tensor, scale: float) -> Tensor:
    """d loss / d image, zero for a loss without terms; computed at ``scale``."""
    if not loss.requires_grad:
        return torch.zeros_like(image)
    return torch.autograd.grad(loss * scale, image)[0] / scale


def _last_layer_norm(output: Tensor, last_layer: Tensor, gradient: Tensor, average) -> Tensor:
    """Norm of the gradient at ``last_layer`` that ``gradient`` at the output causes."""
    size = gradient.norm() + torch.finfo(torch.float32).tiny  # a unit vector survives float16
    unit = (gradient / size).to(output.dtype)
    inner = torch.autograd.grad(output, last_layer, unit, retain_graph=True)[0]
    return average(_full(inner) * size).norm()


def _drop_lpips(module, state_dict, prefix, local_metadata) -> None:
    for key in [k for k in state_dict if k.startswith(prefix + "perceptual_loss.")]:
        del state_dict[key]


def _ignore_lpips(module, state_dict, prefix, *args) -> None:
    lpips = prefix + "perceptual_loss."
    for key in [k for k in state_dict if k.startswith(lpips)]:
        del state_dict[key]
    if module.perceptual_loss is not None:  # as they are: never in a checkpoint
        own = module.perceptual_loss.state_dict(prefix=lpips)
        state_dict.update(own)
