import torch

from tests.images import TINY_MODEL
from tests.refusals import refused
from wfimagevae.generate.autoencoders import (
    Autoencoder,
    as_autoencoder,
)
from wfimagevae.generate.generator_files import latent_facts, open_latent_space
from wfimagevae.model import WFVAE2ImageModel
from wfimagevae.model.weight_files import weights_fingerprint

CPU = torch.device("cpu")


def diffusers_vae(**config):
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, **config)


def test_moments_are_in_the_models_own_units():
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    vae = WFVAE2ImageModel.from_config(TINY_MODEL)
    vae.set_latent_statistics([1.0] * 4, [9.0] * 4)
    for network in (vae, diffusers_vae().eval()):
        with torch.no_grad():
            mean, logvar = as_autoencoder(network, CPU).moments(images)
            posterior = network.encode(images).latent_dist
        torch.testing.assert_close(mean, posterior.mean)
        torch.testing.assert_close((0.5 * logvar).exp(), posterior.std)


def test_model_without_a_posterior_has_no_log_variance():
    from diffusers import AutoencoderTiny

    sides = ("encoder", "decoder")
    widths = {f"{side}_block_out_channels": (8, 8) for side in sides}
    network = AutoencoderTiny(**widths, **{f"num_{side}_blocks": (1, 1) for side in sides})
    tiny = as_autoencoder(network.eval(), CPU)
    mean, logvar = tiny.moments(torch.zeros(1, 3, 8, 8))
    assert logvar is None and mean.shape[1] == 4
    images = torch.rand(1, 3, 30, 17) * 2 - 1  # no multiples of the factor
    assert tiny.reconstruct(images).shape == images.shape


def test_normalisation_is_ours_once_measured_or_that_of_diffusers_in_either_form():
    vae = WFVAE2ImageModel.from_config(TINY_MODEL)
    statistics = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    assert as_autoencoder(vae, CPU).normalization is None
    vae.set_latent_statistics(*statistics)
    assert as_autoencoder(vae, CPU).normalization == statistics
    statistics = {"latents_mean": (1.0, 2.0), "latents_std": (4.0, 0.5)}
    for config, expected in (
        ({"scaling_factor": 0.13}, ([0.0], [0.13])),
        ({"scaling_factor": 0.36, "shift_factor": 0.12}, ([0.12], [0.36])),
        ({"scaling_factor": 0.5, **statistics}, ([1.0, 2.0], [0.125, 1.0])),  # as SDXL decodes
    ):
        assert as_autoencoder(diffusers_vae(**config), CPU).normalization == expected


def test_fingerprint_tells_weights_apart():
    network = torch.nn.Linear(2, 2)
    before = weights_fingerprint(network)
    assert before == weights_fingerprint(network) and len(before) == 64
    assert before != weights_fingerprint(network.half())
    network.float().bias.data[0] += 1
    assert before != weights_fingerprint(network)


class Doubling(Autoencoder):
    """Latents are twice the image, with variance 4; decoding halves them."""

    def moments(self, images):
        return 2 * images, torch.full_like(images, 4.0).log()

    def decode(self, latents):
        return latents / 2


def space(shift, scale):
    return Doubling(torch.nn.Linear(1, 1), 1, (shift, scale))


def test_shift_and_scale_are_applied_on_both_sides_and_to_posterior_noise():
    latent_space = space([1.0, 2.0, 3.0], [10.0, 10.0, 0.5])
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    latents = latent_space.to_latents(images)
    torch.testing.assert_close(latents[:, 2], (2 * images[:, 2] - 3) * 0.5)
    torch.testing.assert_close(latent_space.to_images(latents), images)
    images, noise = torch.zeros(1, 3, 2, 2), torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(space([0.0], [3.0]).to_latents(images, noise), 2 * 3 * noise)


def test_decoding_is_clamped_and_refuses_what_is_not_finite():
    plain = space([0.0], [1.0])
    assert plain.to_images(torch.full((1, 3, 2, 2), 9.0)).max() == 1
    refused("not finite in fp32", plain.to_images, torch.full((1, 3, 2, 2), torch.nan))


def test_a_latent_space_is_only_for_the_weights_that_made_it(tmp_path):
    vae, other = (WFVAE2ImageModel.from_config(TINY_MODEL) for _ in range(2))
    vae.save_pretrained(tmp_path / "vae")
    source, fingerprint = f"WFVAE2Image:{tmp_path / 'vae'}", weights_fingerprint(vae)
    made_by = {"source": source, "fingerprint": fingerprint}
    facts = latent_facts(made_by, [0.0] * 4, [1.0] * 4)
    assert open_latent_space(facts, CPU).normalization == ([0.0] * 4, [1.0] * 4)
    other.save_pretrained(tmp_path / "vae")
    words = f"made by {source} with weights {fingerprint[:12]}"
    refused(words, open_latent_space, facts, CPU)
