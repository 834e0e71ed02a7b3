import torch

from tests.images import TINY_MODEL
from wfimagevae.generate.autoencoders import as_autoencoder, diffusers_autoencoder
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
    for network, wrap in ((vae, as_autoencoder), (diffusers_vae().eval(), diffusers_autoencoder)):
        with torch.no_grad():
            mean, logvar = wrap(network, CPU).moments(images)
            posterior = network.encode(images).latent_dist
        torch.testing.assert_close(mean, posterior.mean)
        torch.testing.assert_close((0.5 * logvar).exp(), posterior.std)


def test_model_without_a_posterior_has_no_log_variance():
    from diffusers import AutoencoderTiny

    sides = ("encoder", "decoder")
    widths = {f"{side}_block_out_channels": (8, 8) for side in sides}
    network = AutoencoderTiny(**widths, **{f"num_{side}_blocks": (1, 1) for side in sides})
    tiny = diffusers_autoencoder(network.eval(), CPU)
    mean, logvar = tiny.moments(torch.zeros(1, 3, 8, 8))
    assert logvar is None and mean.shape[1] == 4
    images = torch.rand(1, 3, 30, 17) * 2 - 1  # no multiples of the factor
    assert tiny.reconstruct(images).shape == images.shape


def test_normalisation_is_ours_once_measured_or_that_of_diffusers_in_either_form():
    vae, statistics = (
        WFVAE2ImageModel.from_config(TINY_MODEL),
        ([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]),
    )
    assert as_autoencoder(vae, CPU).normalization is None
    vae.set_latent_statistics(*statistics)
    assert as_autoencoder(vae, CPU).normalization == statistics
    statistics = {"latents_mean": (1.0, 2.0), "latents_std": (4.0, 0.5)}
    for config, expected in (
        ({"scaling_factor": 0.13}, ([0.0], [0.13])),
        ({"scaling_factor": 0.36, "shift_factor": 0.12}, ([0.12], [0.36])),
        ({"scaling_factor": 0.5, **statistics}, ([1.0, 2.0], [0.125, 1.0])),  # as SDXL decodes
    ):
        assert diffusers_autoencoder(diffusers_vae(**config), CPU).normalization == expected


def test_fingerprint_tells_weights_apart():
    network = torch.nn.Linear(2, 2)
    before = weights_fingerprint(network)
    assert before == weights_fingerprint(network) and len(before) == 64
    assert before != weights_fingerprint(network.half())
    network.float().bias.data[0] += 1
    assert before != weights_fingerprint(network)
