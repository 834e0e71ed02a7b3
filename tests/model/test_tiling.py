"""Tiled encoding and decoding: exact where tiles see enough, smooth where they do not."""

import pytest
import torch

from tests.model.test_wfvae2_image import tiny_model
from wfimagevae.model.vae.tiling import Tiling


@pytest.mark.parametrize("size", [(40, 24), (17, 33), (9, 16), (16, 100)])
def test_weights_sum_to_one(size):
    tiling, x = Tiling(size=16, overlap=6), torch.randn(1, 2, *size)
    torch.testing.assert_close(tiling.run(lambda tile: tile, x, (1, 1)), x)


def test_tiles_are_no_larger_than_asked_and_overlap():
    shapes = []

    def note(tile):
        shapes.append(tuple(tile.shape[2:]))
        return tile[..., ::4, ::4]

    Tiling(size=8, overlap=2).run(note, torch.zeros(1, 1, 72, 32), (4, 1))
    assert shapes == [(32, 32)] * 3  # 18 latent rows: 8 + 6 + 6 cover 20


@pytest.fixture(
    scope="module", params=[{}, {"activation": "relu"}, {"activation": "bezier", "spade": True}]
)
def local_model(request):
    """Without attention, a latent and its pixels depend on some latents to each side only."""
    return tiny_model(mid_layers_type=[], **request.param).eval()


@torch.no_grad()
def test_tiled_equals_untiled_where_the_overlap_covers_what_a_pixel_sees(local_model):
    x = torch.rand(1, 3, 640, 72) * 2 - 1
    encoded = local_model.encode(x).latent_dist
    decoded = local_model.decode(encoded.mean).sample
    local_model.enable_tiling(tile_size=512, overlap=256)
    tiled = local_model.encode(x)
    torch.testing.assert_close(tiled.latent_dist.mean, encoded.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tiled.latent_dist.logvar, encoded.logvar, rtol=1e-4, atol=1e-5)
    again = local_model.decode(encoded.mean)
    torch.testing.assert_close(again.sample, decoded, rtol=1e-4, atol=1e-4)
    assert tiled.extra_output is None
    assert again.extra_output is None
    assert again.sample.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_images_within_one_tile_run_whole():
    model, x = tiny_model().eval(), torch.randn(1, 3, 64, 48)
    whole = model(x, sample_posterior=False)
    model.enable_tiling(tile_size=64, overlap=32)
    out = model(x, sample_posterior=False)
    assert torch.equal(out.sample, whole.sample)
    assert len(out.extra_output[0]) == 2
    model.enable_tiling(tile_size=32, overlap=16)
    assert model(x).extra_output == (None, None)
    model.disable_tiling()
    assert torch.equal(model(x, sample_posterior=False).sample, whole.sample)


@pytest.mark.parametrize(("tile_size", "overlap"), [(100, 32), (64, 12), (64, 40), (64, 0)])
def test_tiles_that_do_not_fit_are_refused(tile_size, overlap):
    with pytest.raises(ValueError, match=f"{overlap}"):
        tiny_model().enable_tiling(tile_size, overlap)
