"""The video autoencoders give the values of the public code, and have its names and sizes."""

import pytest
import torch

from clips import crop_and_resize, frame_numbers
from tests.legacy.conftest import FACTOR_8, TINY, TINY_2, by_formula
from tests.refusals import refused
from wfimagevae.pictures.pixels import to_uint8
from wfvae_video import WFVAE, WFVAE2
from wfvae_video.blocks import Attention, CausalConv3d, FrameConv2d, ResnetBlock, Upsample
from wfvae_video.chunks import Past
from wfvae_video.wavelet import AXES_2D, AXES_3D, haar, inverse_haar
from wfvae_video.wfvae import WFVAEConfig

CLOSE = {"rtol": 0, "atol": 1e-4}
LARGE = {"latent_dim": 16, "base_channels": 192, "encoder_energy_flow_hidden_size": 128}
SETS = {
    "r8": TINY | FACTOR_8 | {"latent_dim": 3, "base_channels": 6}
    | {"encoder_energy_flow_hidden_size": 4},
    "groupnorm": TINY
    | {"base_channels": 32, "norm_type": "groupnorm", "t_interpolation": "nearest"}
    | dict.fromkeys(["encoder_energy_flow_hidden_size", "decoder_energy_flow_hidden_size"], 32),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
@torch.inference_mode()
def test_autoencoders_give_the_values_of_the_public_code(name, golden):
    model = by_formula(WFVAE(**SETS[name]))
    posterior = model.encode(golden[f"{name}.x"]).latent_dist
    moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
    torch.testing.assert_close(moments, golden[f"{name}.moments"], **CLOSE)
    decoded = model.decode(golden[f"{name}.z"]).sample[..., ::4, ::4]
    torch.testing.assert_close(decoded, golden[f"{name}.z_recon"], **CLOSE)


@torch.inference_mode()
def test_layers_give_the_values_of_the_public_code(golden):
    config, x = WFVAEConfig(**TINY), golden["modules.x"]
    for name, layer in {
        "attn_fix": Attention(4, config),
        "resnet2d": ResnetBlock(FrameConv2d, 4, 4, config),
        "up_thw_trilinear": Upsample(CausalConv3d, 4, config),
    }.items():
        start = f"weights.{name}."
        weights = {k.removeprefix(start): v for k, v in golden.items() if k.startswith(start)}
        layer.load_state_dict(weights)
        y = layer(x.contiguous(memory_format=torch.channels_last_3d), Past())
        torch.testing.assert_close(y, golden[f"modules.{name}.y"], **CLOSE)


def test_haar_bands_and_their_inverse_are_those_of_the_public_code(golden):
    x = golden["modules.haar3d.x"]
    for kind, axes in (("2d", AXES_2D), ("3d", AXES_3D)):
        bands = haar(x, axes)
        torch.testing.assert_close(bands, golden[f"modules.haar{kind}.y"], rtol=0, atol=1e-6)
        restored = inverse_haar(bands, axes)
        expected = golden[f"modules.inverse_haar{kind}.y"]
        torch.testing.assert_close(restored, expected, rtol=0, atol=2e-6)
    # The constant that checkpoints were trained with is a little more than 1 / sqrt(8).
    torch.testing.assert_close(restored, x * (8 * 0.3536**2))
    assert (restored - x).abs().max() > 1e-4


@torch.inference_mode()
def test_a_model_of_levels_gives_what_it_gave_when_it_equalled_the_public_code():
    model = by_formula(WFVAE2(**TINY_2))
    x = (torch.arange(3 * 5 * 256).reshape(1, 3, 5, 16, 16) * 0.37).sin()
    out = model(x, sample_posterior=False)
    mean = out.latent_dist.mean
    assert mean.shape == (1, 4, 2, 2, 2) and out.sample.shape == x.shape
    found = [mean[0, 0, 1, 0, 0], mean[0, 3, 0, 1, 1], out.sample[0, 0, 4, 7, 3]]
    found += [out.sample[0, 2, 0, 15, 15], out.latent_dist.kl()[0], out.sample.std()]
    assert torch.stack(found).tolist() == pytest.approx(PINNED, abs=1e-4)
    encoded, decoded = out.extra_output  # finest first, coarsest first
    assert [c.shape[1] for c in encoded] == [12, 24] and [c.shape[1] for c in decoded] == [24, 12]


PINNED = [0.662063, 0.139263, 1.788085, 0.051225, 5.315633, 1.454223]


@pytest.mark.parametrize(
    ("cls", "values", "count"),
    [
        (WFVAE, LARGE | {"norm_type": "layernorm"}, 317_081_372 - 128),
        (WFVAE, {}, 145_576_780 - 128),
        (WFVAE, {"connect_res_layer_num": 2}, 147_347_788 - 128),
        (
            WFVAE,
            {"latent_dim": 32, "base_channels": 160, "norm_type": "layernorm"}
            | {"encoder_energy_flow_hidden_size": 128}
            | FACTOR_8,
            227_035_816 - 192,
        ),
        (WFVAE2, {}, 131_224_900 - 128),
    ],
)
def test_public_sizes_have_their_parameters(cls, values, count):
    """But for kernels of transforms in time, 64 each in the encoder, which are no state here."""
    with torch.device("meta"):
        model = cls(**values)
    assert sum(p.numel() for p in model.parameters()) == count


@torch.inference_mode()
def test_coefficients_stand_level_by_level():
    model = by_formula(WFVAE(**TINY))
    x = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    out = model(x, sample_posterior=False)
    assert [c.shape[1] for c in out.extra_output] == [12, 12, 24, 24]
    (l1, l2), (dec_l1, dec_l2) = model.encode(x)[1], model.decode(out.latent_dist.mode())[1]
    for found, expected in zip(out.extra_output, (l1, dec_l1, l2, dec_l2), strict=True):
        torch.testing.assert_close(found, expected)


def test_posteriors_are_drawn_by_seed_and_measured():
    model = by_formula(WFVAE(**TINY))
    with torch.inference_mode():
        posterior = model.encode(torch.rand(2, 3, 1, 16, 16)).latent_dist
    draws = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), expected.flatten(1).sum(1))
    torch.testing.assert_close(posterior.var, posterior.std**2)


def test_gradients_reach_every_weight():
    model = WFVAE(**TINY | FACTOR_8)
    model(torch.rand(1, 3, 9, 16, 16)).sample.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"norm_type": "batch"}, "norm_type 'batch' is unknown; use layernorm or groupnorm"),
        ({"t_interpolation": "cubic"}, "t_interpolation 'cubic' is unknown"),
        ({"attention_type": "AttnBlock3D"}, "attention_type 'AttnBlock3D' is unknown"),
        ({"l1_upsample_block": "Spatial2xTime2x3DUpsample"}, "neither of factor 4 nor of 8"),
    ],
)
def test_configs_that_no_model_has_are_refused(values, words):
    refused(words, WFVAE, **values)


def test_configs_of_levels_that_do_not_fit_are_refused():
    refused("levels", WFVAE2, base_channels=[4, 5])
    refused("layer_type 't' is unknown; use hw or thw", WFVAE2, layer_type=["t", "hw"])
    refused("input_type 'image' is unknown", WFVAE2, input_type="image")


def test_clips_and_latents_of_other_shapes_are_refused():
    model = WFVAE(**TINY)
    refused("expected clips", model.encode, torch.zeros(1, 3, 16, 16))
    refused("from 8 px", model.encode, torch.zeros(1, 3, 1, 7, 16))
    refused("latents must be", model.decode, torch.zeros(1, 3, 1, 2, 2))


def test_frames_are_chosen_cropped_and_rounded_as_in_the_public_scripts(golden):
    assert frame_numbers(17, 1) == list(range(17))
    assert frame_numbers(17, 2) == [*range(0, 32, 2), 33]
    assert frame_numbers(9, 3) == [0, 3, 6, 9, 13, 16, 19, 22, 26]
    frames = golden["io.frames"].transpose(0, 1)
    found = crop_and_resize(frames, (8, 8)).transpose(0, 1)[None]
    torch.testing.assert_close(found, golden["io.preprocessed"], **CLOSE)
    # They cut to 8 bits, which darkens by half a level on average.
    rounded = to_uint8(golden["io.recon"]).permute(1, 2, 3, 0).int()
    assert (rounded - golden["io.recon_u8"]).unique().tolist() == [0, 1]
