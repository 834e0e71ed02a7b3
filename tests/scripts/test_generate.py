"""Generating by command: pictures of classes, as files or an array; latents end to end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch_fidelity.utils import glob_samples_paths

from scripts import cache_latents, generate, save_hf_model
from tests.images import write_images
from tests.refusals import refused
from tests.scripts.conftest import SIDES
from tests.scripts.flow_exports import command, generated
from tests.task.training import FlowPlace
from wfimagevae.generate.generator_files import load_generator
from wfimagevae.generate.options import GeneratorOptions, SamplingOptions
from wfimagevae.generate.subjects import Subject
from wfimagevae.model import WFVAE2ImageModel
from wfimagevae.model.registry import ModelRegistry

LATENTS = {"dataset": "latents", "resolution": None}


def test_a_sample_follows_its_seed_and_its_class(pixels, tmp_path):
    few = generated(pixels, tmp_path / "few", "--num_images", 2, "--steps", 2)
    more = generated(pixels, tmp_path / "more", "--num_images", 4, "--steps", 2)
    other = generated(pixels, tmp_path / "other", "--num_images", 2, "--steps", 2, "--seed", 1)
    for name, picture in few.items():
        assert abs(picture - more[name]).max() <= 1
        assert abs(picture - other[name]).max() > 20
    words = ("--num_images", 2, "--steps", 2, "--class_labels", "square")
    squares = generated(pixels, tmp_path / "sq", *words)
    assert list(squares) == ["000000-square", "000001-square"]
    assert (squares["000000-square"] != few["000000-circle"]).any()


def test_public_tools_take_the_pictures_alone_for_samples(pixels, tmp_path):
    """torch-fidelity's own reader, also where it looks below the folder."""
    for _ in range(2):  # a second run replaces the first
        generated(pixels, tmp_path / "out", "--num_images", 3, "--steps", 1)
    for depth in (False, True):
        files = glob_samples_paths(str(tmp_path / "out"), depth, "png,jpg,jpeg", verbose=False)
        assert [Path(file).name for file in files] == [
            f"{i:06d}-{kind}.png" for i, kind in enumerate(("circle", "square", "circle"))
        ]
    assert len(list((tmp_path / "out").iterdir())) == 3
    records = sorted(path.name for path in (tmp_path / "out-records").iterdir())
    assert records == [*(f"{Path(file).stem}.json" for file in files), "grid.png", "samples.json"]
    command(generate, "--from_json", files[1], "--output_dir", tmp_path / "b", "--device", "cpu")
    assert (tmp_path / "b" / Path(files[1]).name).read_bytes() == Path(files[1]).read_bytes()


def test_npz_holds_the_same_pictures_for_public_fid_code(pixels, tmp_path):
    options = ("--num_images", 3, "--steps", 2, "--seed", 9, "--sampler", "euler")
    files = generated(pixels, tmp_path / "png", *options)
    record = json.loads((tmp_path / "png-records" / "samples.json").read_text())
    facts = {"sampler": "euler", "steps": 2, "seed": 9}
    assert facts.items() <= record["sampling"].items() and record["labels"] == [0, 1, 0]
    assert Image.open(tmp_path / "png-records" / "grid.png").width > 2 * 16
    path = tmp_path / "out" / "all.npz"
    command(generate, "--from_pretrained", pixels, "--npz", path, *options, "--device", "cpu")
    content = np.load(path)
    assert content["arr_0"].dtype == np.uint8 and content["arr_1"].tolist() == [0, 1, 0]
    assert abs(content["arr_0"].astype(int) - np.stack(list(files.values()))).max() <= 1


def test_bad_options_are_explained(pixels, tmp_path):
    for more, words in (
        ("--class_labels 7", "no class '7'; this model has 2"),
        ("--sampler mean_flow", "--objective mean_flow"),
        ("--guidance_interval 0.8 0.2", "low first"),
        ("--guidance_channels 9 --guidance_scale 2", "9 channels"),
        ("--npz x.npz", "either --output_dir or --npz"),
        ("--vae diffusers:anything", "makes pixels, which need none"),
        ("--prompt x", "'x' asked of a model that takes no text"),
        ("--negative_prompt x --guidance_scale 2", "'x' asked of a model without text"),
        ("--height 32", "32 x 16 pixels asked of a model that makes 16 x 16; "),
        ("--text_encoder bytes", "trained with no text encoder"),
    ):
        refused(words, generated, pixels, tmp_path / "out", *more.split())
    latent = shutil.copytree(pixels, tmp_path / "latent")
    facts = {"space": "latent", "objective": "flow_matching", "vae": {"source": None}}
    (latent / "generator.json").write_text(json.dumps(facts))
    refused("KIND:PATH", generated, latent, tmp_path / "out", "--vae", "nonsense")


def test_public_dit_and_sit_files_draw_each_by_its_samplers_and_need_their_vae(tmp_path):
    model = ModelRegistry.get_model("DiT-S/8")(num_classes=10, learn_sigma=True)
    for name in ("DiT-S-8.pt", "SiT-S-8.pt"):
        torch.save(model.state_dict(), tmp_path / name)
    from_file = ("--model_name", "DiT-S/8")
    refused("--vae diffusers:", generated, tmp_path / "SiT-S-8.pt", tmp_path / "out", *from_file)
    vae = tmp_path / "vae"
    blocks = {f"{side}_block_types": (f"{name}Block2D",) * 4 for side, name in SIDES.items()}
    AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, **blocks).save_pretrained(vae)
    with_vae = (*from_file, "--vae", f"diffusers:{vae}", "--num_images", 2, "--steps", 1)
    for name, sampler, other in (("SiT", "heun", "ddim"), ("DiT", "ddim", "heun")):
        public, out = tmp_path / f"{name}-S-8.pt", tmp_path / name
        refused(f"sampler '{other}'", generated, public, out, *with_vae, "--sampler", other)
        assert generated(public, out, *with_vae)["000000-0"].shape == (256, 256, 3)
        record = json.loads((tmp_path / f"{name}-records" / "000000-0.json").read_text())
        assert record["sampler"] == sampler
    # What a DiT reads are its 1000 discrete times.
    seen, options = (
        [],
        GeneratorOptions(from_pretrained=str(public), model_name="DiT-S/8", vae=f"diffusers:{vae}"),
    )
    generator = load_generator(options, torch.device("cpu"))
    generator.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    generator.draw([Subject(0, 3)], SamplingOptions(timestep_respacing="ddim25"))
    assert torch.cat(seen).tolist() == list(range(960, -1, -40))


@pytest.fixture(scope="module")
def latent_run(tiny_vae, tmp_path_factory):
    """A flow trained for two steps on the cached latents of labelled images."""
    folder = tmp_path_factory.mktemp("latents")
    shutil.copytree(tiny_vae, folder / "vae")
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            write_images(folder / split / name, count)
        assert cache(folder, split, folder / f"{split}_cache", "--flip") == 0
    place = FlowPlace(folder)
    options = LATENTS | {"data_path": folder / "train_cache"}
    options |= {"eval_data_path": folder / "val_cache", "eval_steps": 2, "eval_num_samples": 4}
    return folder, place.train("latents", 2, **options)


def cache(folder, split, output, *more, resolution=32):
    words = ("--vae", f"WFVAE2Image:{folder / 'vae'}", "--image_path", folder / split)
    words += ("--labels", "folder", "--resolution", resolution, "--num_workers", 0)
    return command(cache_latents, *words, "--output_dir", output, *more)


def test_a_latent_flow_generates_with_the_vae_and_the_normalisation_of_its_record(
    latent_run, tmp_path
):
    folder, run_folder = latent_run
    assert (run_folder / "val_samples" / "step-00000002-heun.png").exists()
    found = generated(run_folder, tmp_path / "out", "--num_images", 2, "--steps", 2)
    assert list(found) == ["000000-cat", "000001-dog"]
    assert found["000000-cat"].shape == (32, 32, 3)
    # What training saw as (z - shift) * scale decodes as the VAE decodes z.
    generator = load_generator(str(run_folder), torch.device("cpu"))
    vae = WFVAE2ImageModel.from_pretrained(folder / "vae")
    record = json.loads((folder / "train_cache" / "latents.json").read_text())
    z = torch.randn(2, 4, 4, 4)
    shift, scale = (torch.tensor(record[k]).view(1, -1, 1, 1) for k in ("shift", "scale"))
    with torch.no_grad():
        expected = vae.decode(z).sample.clamp(-1, 1)
    torch.testing.assert_close(generator.images((z - shift) * scale), expected, atol=1e-4, rtol=0)


def test_an_export_brings_its_vae_along(latent_run, tmp_path):
    folder, run_folder = latent_run
    command(save_hf_model, "--from_pretrained", run_folder, "--save_dir", tmp_path / "export")
    names = ["README.md", "model_index.json", "picture.png", "pipeline.py", "transformer", "vae"]
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == names
    texts = [p for p in (tmp_path / "export").rglob("*") if p.suffix in (".json", ".md")]
    assert str(folder) not in "".join(path.read_text() for path in texts)
    moved = shutil.move(tmp_path / "export", tmp_path / "moved")
    options = ("--num_images", 2, "--steps", 2)
    ours = generated(run_folder, tmp_path / "run", *options)
    exported = generated(moved, tmp_path / "export_out", *options)
    assert all((ours[name] == exported[name]).all() for name in ours)


def test_latents_of_another_vae_or_resolution_are_refused(latent_run, tmp_path):
    folder, _ = latent_run
    assert cache(folder, "val", tmp_path / "other", resolution=48) == 0
    place, options = FlowPlace(tmp_path), LATENTS | {"data_path": folder / "train_cache"}
    options |= {"eval_steps": 1}
    refused("resolution 48", place.train, "x", 1, eval_data_path=tmp_path / "other", **options)
    options |= {"eval_data_path": folder / "val_cache"}
    refused("cannot be read", place.train, "y", 1, vae="WFVAE2Image:nowhere", **options)


def test_images_are_encoded_while_training_too(latent_run, tmp_path):
    folder, _ = latent_run
    vae = shutil.copytree(folder / "vae", tmp_path / "vae")
    place = FlowPlace(tmp_path)
    options = {"dataset": "images", "labels": "folder", "data_path": folder / "train"}
    options |= {"eval_data_path": folder / "val", "eval_steps": 2}
    options |= {"resolution": 32, "vae": f"WFVAE2Image:{vae}", "eval_num_samples": 4}
    refused("latent_stats", place.train, "z", 2, **options)
    config = json.loads((vae / "config.json").read_text())
    config |= {"shift": [0.1, 0.0, 0.0, 0.0], "scale": [1.5, 2.0, 2.0, 2.0]}
    (vae / "config.json").write_text(json.dumps(config))
    generator = load_generator(str(place.train("z", 2, **options)), torch.device("cpu"))
    assert generator.facts["scale"] == [1.5, 2.0, 2.0, 2.0]
