"""Weights as people have them: wrapped, several in a folder, asked for in diffusers' words."""

import importlib
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts import merge_encoder_and_decoder, save_hf_model
from tests.images import TINY_MODEL, write_images
from tests.model.flow.models import SIT, small_model
from tests.pipeline.files import PipelinePlace
from tests.refusals import refused
from tests.scripts.conftest import diffusers_vae  # noqa: F401, fixture
from wfimagevae.generate.autoencoders import load_vae
from wfimagevae.generate.options import AutoencoderOptions
from wfimagevae.model import ImageBaseAE, ModelRegistry, VelocityModel, WFVAE2ImageModel

STEM = "diffusion_pytorch_model"
PLAIN, HALF = f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"
OF_TWO = [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]
ODD = [None, True, -1, 0, 1.5, "x", [], {}, [None], ["x"], [1, 2], [[8], 16], 10**30, 1e999]
WRAPPERS = "_orig_mod.module."
SIT_SIZE = {"overrides": {"hidden_size": 32, "depth": 2, "num_heads": 4}}


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return WFVAE2ImageModel.from_config(TINY_MODEL).eval()


def same(model, weights) -> bool:
    return all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("start", ["module.", "_orig_mod.", "module._orig_mod.", WRAPPERS])
@pytest.mark.parametrize("after", [0, 2])
def test_what_wrappers_add_to_names_is_left_out_everywhere(vae, tmp_path, start, after):
    """Case 03; pytorch/pytorch #94575, huggingface/pytorch-image-models #2003."""

    def wrapped(weights):
        place, there = rf"^(\w+\.){{0,{after}}}", rf"\g<0>{start}"
        return {re.sub(place, there, key): value.contiguous() for key, value in weights.items()}

    weights, named = vae.state_dict(), wrapped(vae.state_dict())
    (tmp_path / "config.json").write_text(json.dumps(TINY_MODEL))
    for ema in ({}, named):
        torch.save({"state_dict": {"gen_model": named}, "ema_state_dict": ema}, tmp_path / "a.ckpt")
        assert same(ImageBaseAE.from_pretrained(tmp_path), weights)
    (tmp_path / "a.ckpt").unlink()
    save_file(named, tmp_path / PLAIN)
    assert same(ImageBaseAE.from_pretrained(tmp_path), weights)
    words = ["--encoder_from", tmp_path, "--decoder_from", tmp_path, "--save_dir", tmp_path / "out"]
    merge_encoder_and_decoder.main([str(word) for word in words])
    assert same(ImageBaseAE.from_pretrained(tmp_path / "out"), weights)
    public = load_file(SIT / "weights.safetensors")
    for content in ({"ema": wrapped(public)}, {"model": wrapped(public)}, wrapped(public)):
        torch.save(content, tmp_path / "sit.pt")
        flow = VelocityModel.from_pretrained(tmp_path / "sit.pt", model_name="DiT-S/2", **SIT_SIZE)
        assert same(flow, public)


@pytest.mark.parametrize(
    ("files", "variant", "wanted"),
    [
        ([PLAIN, *OF_TWO, f"{PLAIN}.index.json"], None, OF_TWO),
        ([PLAIN, f"{STEM}.training.safetensors"], None, [PLAIN]),
        ([PLAIN, HALF], "fp16", [HALF]),
        ([HALF], None, [HALF]),
        ([PLAIN, f"{PLAIN}.index.fp16.json", *OF_TWO], "fp16", OF_TWO),
        ([HALF, f"{STEM}.ema.safetensors"], None, f"no weights to choose: of {STEM}.ema.*{HALF}"),
        ([PLAIN, HALF], "bf16", f"no variant 'bf16': of {HALF}, {PLAIN}, give one"),
        (OF_TWO, None, f"{OF_TWO[1]}.* need their {PLAIN}.index.json"),
        ([f"{PLAIN}.index.json", OF_TWO[0]], None, f"index.json names {OF_TWO[1]}, which is miss"),
    ],
)
def test_of_several_files_the_index_counts_then_the_plain_name_then_the_only_one(
    vae, tmp_path, files, variant, wanted
):
    """Case 08; huggingface/diffusers #11182."""
    weights = {key: value.contiguous() for key, value in vae.state_dict().items()}
    parts = {OF_TWO[0]: [*weights][:9], OF_TWO[1]: [*weights][9:]}
    for file in files:
        is_right, part = file in wanted, {key: weights[key] for key in parts.get(file, weights)}
        if file.endswith(".json"):
            places = {key: file for file, keys in parts.items() for key in keys}
            (tmp_path / file).write_text(json.dumps({"weight_map": places}))
        else:
            save_file(part if is_right else {k: v + 1 for k, v in part.items()}, tmp_path / file)
    (tmp_path / "config.json").write_text(json.dumps(TINY_MODEL))
    if isinstance(wanted, str):
        refused(wanted, ImageBaseAE.from_pretrained, tmp_path, variant=variant)
    else:
        assert same(ImageBaseAE.from_pretrained(tmp_path, variant=variant), weights)


@pytest.mark.parametrize("name", ["WFVAE2Image", "FlowDiT-S/2 joint", "UNet", "SmallCNN", "MLP"])
def test_a_wrong_value_of_any_key_is_one_line_that_names_it(tmp_path, name):
    kind = ImageBaseAE if "VAE" in name else VelocityModel
    model = kind.from_config(TINY_MODEL) if "VAE" in name else small_model(name)
    config, path = json.loads(model.to_json_string()), tmp_path / "config.json"
    for key in config.keys() - {"_diffusers_version"}:
        num_refused = 0
        for value in ODD:
            path.write_text(json.dumps(config | {key: value}))
            try:
                with torch.device("meta"):
                    kind.from_config(path)
            except ValueError as error:
                assert key in str(error) and str(path) in str(error) and "\n" not in str(error)
                num_refused += 1
        assert num_refused > 5, key


def test_an_unknown_model_gets_a_list_of_its_kind():
    of_vae = AutoencoderOptions(model_name="VAE", from_pretrained="x")
    refused("DiT-B/2, .*, UNet, or", ModelRegistry.get_model, "DiT", VelocityModel)
    refused("Registered: WFVAE2Image, diffusers:PATH .*, or a class", load_vae, of_vae)


@pytest.fixture(scope="module")
def output(vae, tmp_path_factory):
    """As a pipeline leaves it: two steps of a VAE, of which the last counts, and one of a flow."""
    folder, flow = tmp_path_factory.mktemp("pipeline"), small_model("DiT-S/8", in_channels=3)
    facts = {"space": "pixel", "objective": "flow_matching", "class_names": []}
    steps = {"01_warm/checkpoint-9": vae, "02_gan/checkpoint-2": vae, "03_flow/checkpoint-5": flow}
    for place, network in steps.items():
        weights = network.state_dict()
        weights = {key: 0 * value for key, value in weights.items()} if "01" in place else weights
        content = {"config": json.loads(network.to_json_string()), "current_step": 5}
        content |= {"generator": facts} if network is flow else {}
        path = folder / "steps" / f"{place}.ckpt"
        path.parent.mkdir(parents=True)
        torch.save(content | {"state_dict": {"gen_model": weights}, "ema_state_dict": {}}, path)
    assert same(ImageBaseAE.from_pretrained(folder), vae.state_dict())
    return folder


IT, FOLDER = "--from_pretrained IT", "--resolution 16 --num_workers 0 --device cpu"
REAL = f"--real_image_dir PHOTOS {FOLDER}"
ENCODE = {
    f"recon_single_image {IT} --image_path PHOTOS/000.png --rec_path OUT/a.png": "a.png",
    f"recon_image {IT} {REAL} --generated_image_dir OUT/b": "b/001.png",
    f"cache_latents {IT} {FOLDER} --image_path PHOTOS --output_dir OUT/c": "c/*.safetensors",
    f"benchmark_vae --model NAMED {REAL} --metric psnr --output OUT/d.md": "d.md",
}
OURS = {
    f"latent_stats {IT} {REAL} --output_json OUT/e": "e",
    "merge_encoder_and_decoder --encoder_from IT --decoder_from IT --save_dir OUT/f": "f/*.py",
    f"save_hf_model {IT} --save_dir OUT/g": "g/model_index.json",
    f"generate {IT} --output_dir OUT/h --num_images 1 --steps 1": "h/*.png",
    f"visualize_flow {IT} --output_dir OUT/i --pictures interpolation --steps 1": "i/*.gif",
    f"eval_generation {IT} {REAL} --num_images 5 --metric energy_distance --output_json OUT/j": "j",
}


@pytest.mark.parametrize("kind", ["diffusers", "pipeline"])
@pytest.mark.parametrize("line", ENCODE | OURS)
def test_both_are_models_wherever_one_is_taken(output, diffusers_vae, tmp_path, kind, line):  # noqa: F811
    """A model of diffusers encodes and decodes; a pipeline's output is what its steps made."""
    it = str(output) if kind == "pipeline" else f"diffusers:{diffusers_vae}"
    places = {"PHOTOS": write_images(tmp_path / "photos", 5), "OUT": tmp_path, "IT": it}
    places["NAMED"] = it if kind == "diffusers" else f"WFVAE2Image:{it}"
    script, *words = re.sub("|".join(places), lambda m: str(places[m[0]]), line).split()
    run = importlib.import_module(f"scripts.{script}").main
    if kind == "diffusers" and line in OURS:
        refused("models of diffusers serve to encode and decode", run, words)
    else:
        assert not run(words) and list(tmp_path.glob((ENCODE | OURS)[line]))


def test_a_pipelines_flow_learns_the_latents_of_a_model_of_diffusers(diffusers_vae, tmp_path):  # noqa: F811
    place = PipelinePlace(tmp_path)
    content = place.content("out")
    content["model"]["vae"] = {"pretrained": f"diffusers:{diffusers_vae}"}
    content["training"]["pipeline"]["steps"] = [{"name": "flow", "steps": 1, "train_diff": True}]
    output = place.run(content)
    assert list(output.glob("steps/01_flow/checkpoint-1.ckpt"))
    # Kernels of its decoder may round otherwise once it is read back.
    words = ["--from_pretrained", str(output), "--save_dir", str(tmp_path / "export")]
    assert not save_hf_model.main(words)
