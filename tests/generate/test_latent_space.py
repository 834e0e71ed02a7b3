import pytest
import torch

from tests.images import TINY_MODEL
from wfimagevae.generate.autoencoders import Autoencoder, as_autoencoder
from wfimagevae.generate.latent_space import LatentSpace
from wfimagevae.model import WFVAE2ImageModel
from wfimagevae.model.weight_files import weights_fingerprint

CPU = torch.device("cpu")


def doubling():
    """Latents are twice the image, with variance 4; decoding halves them."""
    return Autoencoder(
        torch.nn.Linear(1, 1),
        encode=lambda x: 2 * x,
        decode=lambda z: z / 2,
        multiple=1,
        moments=lambda x: (2 * x, torch.full_like(x, 4.0).log()),
    )


def test_shift_and_scale_are_applied_on_both_sides_and_to_posterior_noise():
    space = LatentSpace(doubling(), shift=[1.0, 2.0, 3.0], scale=[10.0, 10.0, 0.5])
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    latents = space.encode(images)
    torch.testing.assert_close(latents[:, 2], (2 * images[:, 2] - 3) * 0.5)
    torch.testing.assert_close(space.decode(latents), images)
    space = LatentSpace(doubling(), [0.0], [3.0])
    images, noise = torch.zeros(1, 3, 2, 2), torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(space.encode(images, noise), 2 * 3 * noise)


def test_decoding_is_clamped_and_refuses_what_is_not_finite():
    space = LatentSpace(doubling(), [0.0], [1.0])
    assert space.decode(torch.full((1, 3, 2, 2), 9.0)).max() == 1
    with pytest.raises(ValueError, match="not finite in fp32"):
        space.decode(torch.full((1, 3, 2, 2), torch.nan))


def test_record_is_only_for_the_weights_that_made_it():
    vae, other = (WFVAE2ImageModel.from_config(TINY_MODEL) for _ in range(2))
    fingerprint = weights_fingerprint(vae)
    record = {"vae": {"source": "here", "fingerprint": fingerprint}}
    record |= {"shift": [0.0] * 4, "scale": [1.0] * 4}
    LatentSpace.of_record(as_autoencoder(vae, CPU), record)
    with pytest.raises(ValueError, match=f"made by here with weights {fingerprint[:12]}"):
        LatentSpace.of_record(as_autoencoder(other, CPU), record)
