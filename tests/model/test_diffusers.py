"""Our autoencoder in the hands of diffusers: its words, its pipelines, its own test suite."""

import importlib
import os
import sys
import types

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from tests.model.test_wfvae2_image import TINY, tiny_model
from tests.refusals import refused
from wfimagevae.model import ImageBaseAE, WFVAE2ImageModel

# A checkout of diffusers, whose package of tests is called as ours is; they also need accelerate.
SUITE = os.environ.get("DIFFUSERS_CHECKOUT")
DEVICE = os.environ.get("DIFFUSERS_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")

CPU, HALF = torch.device("cpu"), torch.float16


@pytest.fixture(scope="module")
def vae():
    return tiny_model().eval()


def test_words_of_from_pretrained_mean_what_they_mean_in_diffusers(vae, tmp_path):
    """huggingface/diffusers: dtype, device_map and output_loading_info; others are no words."""
    vae.save_pretrained(tmp_path)
    read = ImageBaseAE.from_pretrained
    for words in ({"dtype": torch.float16}, {"torch_dtype": torch.float16}):
        model = read(tmp_path, low_cpu_mem_usage=True, use_safetensors=True, **words)
        assert {p.dtype for p in model.parameters()} == {torch.float16}
    for place, device in (("meta", "meta"), ({"": torch.device("meta")}, "meta"), ("cpu", "cpu")):
        assert read(tmp_path, device_map=place).device.type == device
    is_served = torch.accelerator.is_available()
    assert (read(tmp_path, device_map="auto").device.type == "cpu") is not is_served
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    model, info = read(tmp_path, output_loading_info=True)
    assert torch.equal(model.last_layer, vae.last_layer)
    assert info == {kind: [] for kind in kinds}
    _, info = read(tmp_path, output_loading_info=True, overrides={"spade": True})
    assert info["missing_keys"] and all(".spade" in key for key in info["missing_keys"])
    for words, message in (
        ({"dtype": "float16"}, r"dtype must be a torch\.dtype .*'float16'"),
        ({"no_such_word": None}, "does not take no_such_word; beside its own arguments it knows"),
        ({"quantization_config": {"bits": 4}}, "does not take quantization_config"),
        ({"device_map": {"encoder": 0, "decoder": "cpu"}}, "device_map must be one device"),
        ({"device_map": 0.5}, r"device_map must be one device.*got 0\.5"),
        ({"device_map": "somewhere"}, "device_map must be one device.*'somewhere'"),
        ({"use_safetensors": False}, "use_safetensors=False: folders are read from"),
    ):
        refused(message, read, tmp_path, **words)


def test_what_diffusers_reads_in_a_config_must_follow_from_our_keys():
    config = TINY | {"scale": [2.0] * 4, "shift": [0.5, 0, 0, 0]}
    model = WFVAE2ImageModel.from_config(config)
    again = WFVAE2ImageModel.from_config({**model.config, "auto_map": {"AutoModel": "a.B"}})
    assert again.own_config() == model.own_config()
    refused(
        "'latents_mean' is .1.*but .0.5, 0",
        WFVAE2ImageModel.from_config,
        config | {"latents_mean": [1]},
    )


def test_a_pipeline_of_diffusers_draws_with_our_autoencoder(vae):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8}
    sizes |= {"num_layers": 1, "sample_size": 4, "patch_size": 2, "num_embeds_ada_norm": 1000}
    transformer = DiTTransformer2DModel(**sizes, norm_elementwise_affine=False)
    pipeline = DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler())
    words = {"num_inference_steps": 2, "output_type": "np"}
    first, again, other = (
        pipeline([0, 3], generator=torch.Generator().manual_seed(seed), **words).images
        for seed in (1, 1, 2)
    )
    assert first.shape == (2, 32, 32, 3) and first.std() > 0
    assert (first == again).all() and (first != other).any()


def images(count=4):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 32, 32, generator=generator).to(DEVICE) * 2 - 1


@torch.no_grad()
def test_outputs_are_objects_or_tuples_of_the_same(vae):
    x = images().to("cpu")
    for call, sample in ((vae, x), (vae.decode, torch.ones(2, 4, 3, 5))):
        whole = call(sample)
        assert torch.equal(whole[0], whole.sample) and whole["sample"] is whole.sample
        (alone,) = call(sample, return_dict=False)
        assert torch.equal(alone, whole.sample)
    (posterior,) = vae.encode(x, return_dict=False)
    assert torch.equal(posterior.mean, vae.encode(x).latent_dist.mean)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    first, again, other = (vae(x, sample_posterior=True, generator=seed).sample for seed in seeds)
    assert torch.equal(first, again) and not torch.equal(first, other)


@torch.no_grad()
def test_slices_change_nothing_but_that_no_bands_are_given():
    model, x = tiny_model().eval(), images().to("cpu")
    whole, sizes = model(x), []
    model.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    model.enable_slicing()
    sliced = model(x)
    assert sizes == [1, 1, 1, 1] and sliced.extra_output == (None, None)
    torch.testing.assert_close(sliced.sample, whole.sample, rtol=1e-4, atol=1e-5)
    model.disable_slicing()
    assert torch.equal(model(x).sample, whole.sample) and sizes[4:] == [4]
    refused("ImageBaseAE cannot take batches apart", ImageBaseAE().enable_slicing)


@pytest.mark.parametrize(
    ("scale", "shift", "factors"),
    [
        ([2.0] * 4, [0.5] * 4, (2.0, 0.5, None, None)),
        ([2.0, 1, 1, 4], [0.5, 0, 0, 0], (1.0, None, [0.5, 0, 0, 0], [0.5, 1, 1, 0.25])),
    ],
)
def test_clients_of_diffusers_normalise_latents_as_we_do(scale, shift, factors):
    model = tiny_model()
    model.set_latent_statistics(shift, scale)
    names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    assert tuple(model.config[name] for name in names) == factors
    sizes = {"latent_channels": 4, "block_out_channels": (12, 8, 16, 24), "in_channels": 3}
    assert sizes.items() <= model.config.items() and model.config is model.config
    assert not {*names, *sizes} & model.own_config().keys()


@torch.no_grad()
@pytest.mark.parametrize(
    ("call", "words", "tolerance"),
    [
        (
            "layerwise_casting",
            {"storage_dtype": torch.float16, "compute_dtype": torch.float32},
            0.01,
        ),
        (
            "group_offload",
            {"onload_device": torch.device("cpu"), "offload_type": "leaf_level"},
            1e-5,
        ),
        ("group_offload", {"onload_device": torch.device("cpu"), "num_blocks_per_group": 1}, 1e-5),
    ],
)
def test_what_saves_memory_in_diffusers_changes_little(call, words, tolerance):
    model, x = tiny_model().eval(), images(1).to("cpu")
    whole = model(x).sample
    if call == "group_offload":
        pytest.importorskip("accelerate")
    getattr(model, f"enable_{call}")(**words)
    torch.testing.assert_close(model(x).sample, whole, rtol=0, atol=tolerance)


if SUITE:
    package = types.ModuleType("diffusers_tests")
    package.__path__ = [os.path.join(SUITE, "tests")]
    sys.modules["diffusers_tests"] = package
    suite = importlib.import_module("diffusers_tests.models.testing_utils")
    of_vae = importlib.import_module("diffusers_tests.models.autoencoders.testing_utils")
    of_autoencoders = getattr(of_vae, "NewAutoencoderTesterMixin", of_vae.AutoencoderTesterMixin)

    class Tiny(suite.BaseModelTesterConfig):
        model_class, main_input_name, output_shape = WFVAE2ImageModel, "sample", (3, 32, 32)

        def get_init_dict(self):
            return dict(TINY)

        def get_dummy_inputs(self):
            return {"sample": images()}

    class TestModel(Tiny, suite.ModelTesterMixin, suite.TrainingTesterMixin, of_autoencoders):
        @pytest.mark.skip("of a folder with one variant alone, that is taken")
        def test_from_save_pretrained_variant(self):
            pass

        def test_gradient_checkpointing_is_applied(self):
            super().test_gradient_checkpointing_is_applied({"EncoderImage", "DecoderImage"})

    class TestMemory(Tiny, suite.MemoryTesterMixin):
        pass
