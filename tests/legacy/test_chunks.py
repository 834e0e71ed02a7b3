"""Chunks of time give what the whole clip gives, for any number of frames, in constant memory."""

import pytest
import torch

from tests.legacy.conftest import FACTOR_8, TINY, TINY_2, by_formula
from tests.refusals import refused
from wfvae_video import WFVAE, WFVAE2
from wfvae_video.blocks import CausalConv3d

CLOSE = {"rtol": 0, "atol": 1e-4}
MODELS = {
    "factor 4": lambda **kind: WFVAE(**TINY | kind),
    "factor 8": lambda **kind: WFVAE(**TINY | FACTOR_8 | kind),
    "levels": lambda **kind: WFVAE2(**TINY_2 | kind),
    "levels, all in time": lambda **kind: WFVAE2(**TINY_2 | kind | {"layer_type": ["thw", "thw"]}),
}


@pytest.mark.parametrize("interpolation", ["trilinear", "nearest"])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_chunks_are_the_whole_for_any_number_of_frames(name, interpolation):
    model = by_formula(MODELS[name](t_interpolation=interpolation))
    factor = model.config.temporal_factor
    for num_frames in (1, 2, factor, factor + 1, 2 * factor + 2, 3 * factor + 1, 4 * factor + 1):
        x = torch.randn(2 if num_frames < 9 else 1, 3, num_frames, 16, 8)
        model.disable_tiling()
        whole = model.encode(x).latent_dist
        decoded = model.decode(whole.mean).sample
        assert decoded.shape[2] == 1 + (num_frames - 1) // factor * factor
        for size in (factor, 2 * factor):
            model.enable_tiling(size)
            chunked, coeffs = model.encode(x)
            torch.testing.assert_close(chunked.mean, whole.mean, **CLOSE)
            torch.testing.assert_close(chunked.logvar, whole.logvar, **CLOSE)
            again = model.decode(whole.mean)
            torch.testing.assert_close(again.sample, decoded, **CLOSE)
            assert coeffs == again.extra_output == (None, None)


@torch.inference_mode()
def test_no_layer_sees_more_frames_of_a_longer_clip():
    model = by_formula(WFVAE(**TINY))
    model.enable_tiling(8)
    seen = []
    for layer in model.modules():
        if isinstance(layer, CausalConv3d):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape[2]))
    most = []
    for num_frames in (17, 65):
        seen.clear()
        model(torch.zeros(1, 3, num_frames, 8, 8))
        most.append(max(seen))
    assert most[0] == most[1] <= 5


def test_group_norms_and_other_multiples_are_refused():
    groups = WFVAE(**TINY | {"norm_type": "groupnorm", "base_channels": 32}
                   | dict.fromkeys(["encoder_energy_flow_hidden_size",
                                    "decoder_energy_flow_hidden_size"], 32))  # fmt: skip
    refused("no tiling with norm_type 'groupnorm'", groups.enable_tiling)
    for size in (0, 6):
        refused(f"multiple of 4, got {size}", WFVAE(**TINY).enable_tiling, size)
