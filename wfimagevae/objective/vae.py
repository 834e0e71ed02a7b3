"""The image VAE's game: one objective for the generator, one for the discriminator."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wfimagevae.engine.distributed import all_reduce_mean
from wfimagevae.engine.seeding import sample_noise

Batch = dict
Logs = dict[str, Tensor]


def posterior_noise(vae: nn.Module, batch: Batch, seed: int) -> Tensor:
    """Each sample's own noise for the posterior, (B, latent_dim, H/8, W/8)."""
    images = batch["image"]
    height, width = (size // vae.spatial_factor for size in images.shape[2:])
    shape = (vae.config.latent_dim, height, width)
    return sample_noise(seed, batch["position"], shape, images.device)


class GeneratorObjective(nn.Module):
    """Trains the VAE against pixels, features, wavelets and a borrowed discriminator.

    Args:
        vae: The network that it owns.
        loss: `LPIPSWithDiscriminator2D`; borrowed, so that it is in neither this objective's
            gradient averaging nor its state.
        seed: Of the run, for the posterior's noise.
        hand_over: Where detached reconstructions go for the discriminator's turn, if it takes
            them from there.
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
        return loss.generator_loss(images, output, self.vae.last_layer, step, all_reduce_mean)


class DiscriminatorObjective(nn.Module):
    """Trains the discriminator to tell images from reconstructions.

    Args:
        loss: `LPIPSWithDiscriminator2D`, which it owns.
        reconstruct: Gives a batch's detached reconstruction: the one that the generator's turn
            handed over, or one made anew.
    """

    def __init__(self, loss: nn.Module, reconstruct: Callable[[Batch], Tensor]):
        super().__init__()
        self.loss = loss
        self.reconstruct = reconstruct

    def begin_update(self) -> None:
        """One power iteration of the spectral norm, however many micro-batches follow."""
        self.loss.discriminator.power_iteration()

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """The discriminator's loss on ``batch["image"]`` and its reconstruction."""
        return self.loss.discriminator_loss(batch["image"], self.reconstruct(batch))


def fresh_reconstruction(vae: nn.Module, seed: int) -> Callable[[Batch], Tensor]:
    """A function that reconstructs a batch without a graph, with the batch's own noise."""

    @torch.no_grad()
    def reconstruct(batch: Batch) -> Tensor:
        return vae(batch["image"], noise=posterior_noise(vae, batch, seed)).sample

    return reconstruct
