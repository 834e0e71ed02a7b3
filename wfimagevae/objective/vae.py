"""The image VAE's game: one objective for the generator, one for the discriminator."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wfimagevae.engine.distributed import all_reduce_mean, gather_rows
from wfimagevae.engine.seeding import sample_noise, stable_hash

Batch = dict
Logs = dict[str, Tensor]
INVISIBLE = 1e-4  # of noise: an 8-bit image's steps are 8e-3


def posterior_noise(vae: nn.Module, batch: Batch, seed: int) -> Tensor:
    """Each sample's own noise for the posterior, (B, latent_dim, H/8, W/8)."""
    images, factor = batch["image"], vae.spatial_factor
    shape = (vae.config.latent_dim, images.shape[2] // factor, images.shape[3] // factor)
    return sample_noise(seed, batch["position"], shape, images.device)


def instance_noise(loss: nn.Module, batch: Batch, step: int, seed: int, kind: str) -> Tensor | None:
    """What to add to ``real`` or ``fake`` images before the discriminator sees them, if anything.

    It follows each sample: ranks, micro-batches, resumed runs and both players agree on it.
    """
    std = loss.config.instance_noise_std * loss.config.instance_noise_decay**step
    if std <= INVISIBLE:
        return None
    images = batch["image"]
    own_seed = stable_hash("instance noise", kind, seed)
    return std * sample_noise(own_seed, batch["position"], images.shape[1:], images.device)


class GeneratorObjective(nn.Module):
    """Trains the VAE, which it owns, against pixels, features, wavelets and a discriminator.

    ``loss`` is an `LPIPSWithDiscriminator2D`; borrowed, so that it is in neither this objective's
    gradient averaging nor its state. ``hand_over`` is where detached reconstructions go for the
    discriminator's turn, if it takes them from there.
    """

    def __init__(self, vae: nn.Module, loss: nn.Module, seed: int, hand_over: deque | None = None):
        super().__init__()
        self.vae = vae
        self._borrowed = (loss,)
        self.seed, self.hand_over = seed, hand_over

    def begin_update(self) -> None:
        """Forgets reconstructions that nobody took."""
        if self.hand_over is not None:
            self.hand_over.clear()

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """The generator's loss per pixel value, on ``batch["image"]``, (B, 3, H, W)."""
        images = batch["image"]
        output = self.vae(images, noise=posterior_noise(self.vae, batch, self.seed))
        if self.hand_over is not None:
            self.hand_over.append(output.sample.detach())
        (loss,) = self._borrowed
        noise = instance_noise(loss, batch, step, self.seed, "fake")
        ranks = (all_reduce_mean, gather_rows)
        return loss.generator_loss(images, output, self.vae.last_layer, step, *ranks, noise)


class DiscriminatorObjective(nn.Module):
    """Trains the discriminator to tell images from reconstructions.

    It owns ``loss``, an `LPIPSWithDiscriminator2D`. ``reconstruct`` gives a batch's detached
    reconstruction: the one that the generator's turn handed over, or one made anew.
    ``steps_a_turn`` counts iterations of the loop from one update of the discriminator to the next.
    """

    def __init__(
        self,
        loss: nn.Module,
        reconstruct: Callable[[Batch], Tensor],
        seed: int = 0,
        steps_a_turn: int = 1,
    ):
        super().__init__()
        self.loss = loss
        self.reconstruct = reconstruct
        self.seed, self.steps_a_turn = seed, steps_a_turn

    def begin_update(self) -> None:
        """One power iteration of the spectral norm, however many micro-batches follow."""
        self.loss.discriminator.power_iteration()

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """The discriminator's loss on ``batch["image"]`` and its reconstruction."""
        kinds = ("real", "fake")
        noise = [instance_noise(self.loss, batch, step, self.seed, kind) for kind in kinds]
        noise = None if noise[0] is None else tuple(noise)
        update, reconstruction = step // self.steps_a_turn, self.reconstruct(batch)
        return self.loss.discriminator_loss(batch["image"], reconstruction, update, noise)


def fresh_reconstruction(vae: nn.Module, seed: int) -> Callable[[Batch], Tensor]:
    """A function that reconstructs a batch without a graph, with the batch's own noise."""

    @torch.no_grad()
    def reconstruct(batch: Batch) -> Tensor:
        return vae(batch["image"], noise=posterior_noise(vae, batch, seed)).sample

    return reconstruct
