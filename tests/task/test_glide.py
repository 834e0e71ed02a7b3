"""GLIDE's fine-tuning end to end on the CPU: what it writes, resumes, freezes and refuses."""

import json
from functools import partial
from shutil import copyfile
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from scripts.generate import main as generate
from scripts.save_hf_model import main as export
from tests.images import TINY_MODEL, write_captioned
from tests.model.text.tiny_encoders import write_clip
from tests.model.text.vocabulary import write_vocabulary
from tests.task.training import Trainings, differences, largest_difference, load, refused, rows
from wfimagevae.generate.generator_files import load_generator
from wfimagevae.generate.subjects import Subject
from wfimagevae.model import WFVAE2ImageModel
from wfimagevae.model.glide.glide import Glide, part_of
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.task.glide import random_masks, small_images
from wfimagevae.task.glide_options import GlideOptions

CPU = torch.device("cpu")
TINY = {"input_size": 16, "base_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1}
TINY |= {"head_width": 16, "attention_resolutions": [8], "text_width": 32, "text_depth": 1}
TINY |= {"text_heads": 2, "text_length": 12}


class GlidePlace(Trainings):
    """Tiny networks, a vocabulary, and the flags to train on small shapes."""

    script = "train_ddp.py"

    def __init__(self, folder):
        vocabulary, _ = write_vocabulary(folder / "bpe")
        for name, keys in (("base", {}), ("up", {"upsamples": True}), ("fill", {"inpaints": True})):
            content = TINY | {"vocab_size": len(vocabulary)} | keys
            (folder / f"{name}.json").write_text(json.dumps(content))
        samples = {"eval_num_samples": 4, "eval_num_images": 4, "sampling_steps": 2}
        super().__init__(
            folder, task="glide", dataset="shapes", num_shapes=64, batch_size=4, **samples,
            text_encoder=f"gpt2:{folder / 'bpe'}", model_config=folder / "base.json",
        )  # fmt: skip


@pytest.fixture
def place(tmp_path):
    return GlidePlace(tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"grad_accum_steps": 2}, {"mix_precision": "bf16", "gradient_checkpointing": True}],
    ids=["accumulated", "bf16"],
)
def test_resuming_equals_never_stopping_bit_for_bit(place, options):
    whole, parts = place.whole_and_parts(5, 3, **options)
    assert differences(load(whole, 5), load(parts, 5)) == []
    assert load(whole, 5)["usual_errors"][:, 0].sum() == 20 * options.get("grad_accum_steps", 1)


def test_the_average_in_bf16_moves_as_in_float32(place):
    """Master weights and their average are float32: small updates are not rounded away."""
    moved = []
    for precision in ("fp32", "bf16"):
        options = {"mix_precision": precision, "save_ckpt_step": 1, "lr": 1e-4}
        run = place.train(precision, 12, ema_decay=0.9, **options)
        first, last = load(run, 1)["state_dict"]["gen_model"], load(run, 12)["ema_state_dict"]
        assert {value.dtype for value in last.values()} == {torch.float32}
        moved.append(sum((last[name] - first[name]).square().sum() for name in first).sqrt())
    assert (moved[1] / moved[0]).item() == pytest.approx(1, abs=0.01)


def test_two_ranks_train_as_one_process(place):
    """Spikes and their running means, too, are those of all samples."""
    options = {"optimizer": "sgd", "lr": 0.1, "clip_grad_norm": 1e3}
    config = json.loads((place.folder / "base.json").read_text()) | {"dropout": 0.0}
    (place.folder / "base.json").write_text(json.dumps(config))
    one = load(place.train("one", 3, batch_size=8, **options), 3)
    two = load(place.torchrun("two", 3, batch_size=4, **options), 3)
    weights = [c["state_dict"]["gen_model"] for c in (one, two)]
    assert largest_difference(*weights) < 1e-5
    torch.testing.assert_close(one["usual_errors"], two["usual_errors"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("part", ["unet", "text"])
def test_only_the_part_asked_for_learns_and_begins_anew_if_asked(place, part):
    """Both learn what carries a text into the U-Net."""
    first = place.train("first", 3)  # until texts reach an output that began with zeros
    before = load(first, 3)["ema_state_dict"]
    start = {"pretrained_model_name_or_path": first, "model_config": None, "lr": 1e-4}
    kept = load(place.train("kept", 1, train=part, **start), 1)["state_dict"]["gen_model"]
    changed = {name for name in before if not torch.equal(before[name], kept[name])}
    assert {part_of(name) for name in changed} <= {part, "both"}
    assert {part_of(name) for name in changed} >= {part}
    anew = load(place.train("anew", 1, train=f"{part}-scratch", **start), 1)
    anew = anew["state_dict"]["gen_model"]
    for name, value in anew.items():
        if part_of(name) not in (part, "both"):
            assert torch.equal(value, before[name]), name
    moved = [
        n for n in anew if part_of(n) == part and n.endswith(("c_fc.weight", "in_layers.2.weight"))
    ]
    assert moved and all((anew[n] - before[n]).abs().mean() > 0.005 for n in moved)


def test_validation_draws_prompts_in_one_stage_and_in_two(place):
    """An upsampler without a base shows held-out images; with the other stage both draw prompts."""
    (place.folder / "prompts.txt").write_text("a red circle\na blue star\n")
    prompts = {"eval_steps": 1, "prompt_file": place.folder / "prompts.txt"}
    base = place.train("base", 1, **prompts)
    up = {"model_name": "GLIDE-upsample", "model_config": place.folder / "up.json"}
    upsampler = place.train("up", 1, eval_steps=1, **up)
    (row,) = rows(upsampler / "validation.jsonl")
    assert row.keys() == {"step", "val/error", "val_ema/error", "val_ema/energy_distance"}
    few = {"upsampler_steps": "2"}
    both = place.train("two", 1, upsampler=upsampler, **few, **prompts)
    other = place.train("other", 1, base_model=base, **few, **prompts, **up)
    for run in (base, upsampler, both, other):
        assert [p.name for p in (run / "val_samples").iterdir()] == ["step-00000001-ddim.png"]
    with refused("scores what prompts alone draw: give --base_model"):
        place.train("bad", 1, eval_clip_model="ViT-L-14", **prompts, **up)
    with refused("--base_model .* is that stage itself"):
        place.train("bad", 1, base_model=base, **prompts)
    with refused("is no upsampler"):
        place.train("bad", 1, upsampler=base, **prompts)


def test_what_is_recorded_draws_again_and_two_stages_too(place, tmp_path, monkeypatch):
    base = place.train("base", 1)
    up = {"model_name": "GLIDE-upsample", "model_config": place.folder / "up.json"}
    upsampler = place.train("up", 1, **up)
    out = tmp_path / "out"
    words = ["--from_pretrained", str(base), "--upsampler", str(upsampler), "--steps", "2"]
    words += ["--upsampler_steps", "3", "--guidance_scale", "2", "--prompt", "a red circle"]
    generate([*words, "--output_dir", str(out)])
    picture = out / "a-red-circle.png"
    generate(["--from_json", str(picture), "--output_dir", str(tmp_path / "again")])
    assert (tmp_path / "again" / picture.name).read_bytes() == picture.read_bytes()
    networks = [load_generator(str(run), CPU).model for run in (base, upsampler)]
    with monkeypatch.context() as patch:  # the blocks of both stages
        compiled = Mock()
        patch.setattr(torch.nn.Module, "compile", compiled)
        generate([*words, "--compile", "--output_dir", str(tmp_path / "compiled")])
    assert compiled.call_count == sum(len(list(net.blocks_to_shard())) for net in networks)
    assert (tmp_path / "compiled" / picture.name).read_bytes() == picture.read_bytes()
    # A public upsampler, without a record: it is that of the base, and reads texts as the base.
    public = tmp_path / "public.pt"
    torch.save(load_generator(str(upsampler), CPU).model.state_dict(), public)
    keys = json.loads((place.folder / "up.json").read_text()) | {"schedule": "linear"}
    monkeypatch.setitem(ModelRegistry._builders, "GLIDE-upsample", partial(Glide, **keys))
    # Whether it is named, downloaded, or cached.
    fetch = Mock(side_effect=lambda url, file, progress: copyfile(public, file))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    for name, source in (("named", public), ("fetched", "pretrained"), ("cached", "pretrained")):
        place_of_it = ["--upsampler", str(source), "--output_dir", str(tmp_path / name)]
        generate([*words, *place_of_it])
        assert (tmp_path / name / picture.name).read_bytes() == picture.read_bytes()
    assert fetch.call_count == 1 and fetch.call_args.args[0].endswith("/upsample.pt")
    with refused("it enlarges images; name it as --upsampler"):
        generate(["--from_pretrained", str(upsampler), "--prompt", "x", "--output_dir", str(out)])
    with refused("--task inpaint goes with both"):
        generate([*words, "--task", "inpaint", "--output_dir", str(out)])
    with refused("--inpaint_mask no.png: No such file"):
        fill = ["--task", "inpaint", "--inpaint_image", str(picture), "--inpaint_mask", "no.png"]
        generate([*words, *fill, "--output_dir", str(out)])
    with refused("--inpaint_image has its size"):
        generate([*words, *fill, "--height", "32", "--output_dir", str(out)])


def test_exports_of_both_stages_draw_the_same(place, tmp_path):
    base = place.train("base", 2)
    up = {"model_name": "GLIDE-upsample", "model_config": place.folder / "up.json"}
    upsampler = place.train("up", 2, **up)
    exports = [str(tmp_path / "hf_base"), str(tmp_path / "hf_up")]
    for run, folder in zip((base, upsampler), exports, strict=True):
        export(["--from_pretrained", str(run), "--save_dir", folder])
    for name, (first, second) in {"own": (base, upsampler), "hf": exports}.items():
        words = ["--from_pretrained", str(first), "--upsampler", str(second), "--steps", "2"]
        words += ["--upsampler_steps", "3", "--prompt", "a blue star"]
        generate([*words, "--output_dir", str(tmp_path / name)])
    pictures = [tmp_path / name / "a-blue-star.png" for name in ("own", "hf")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    card = (tmp_path / "hf_base" / "README.md").read_text()
    assert "A diffusion model that generates pixels of 3 x 16 x 16" in card


def test_latents_are_learned_with_clips_embedding_from_weights_of_pixels(place, tmp_path):
    """A run of pixels gives the first weights; the checkpoint alone draws."""
    pixels, clip = place.train("pixels", 2), write_clip(tmp_path)
    vae = WFVAE2ImageModel.from_config(TINY_MODEL, shift=[0.0] * 4, scale=[1.0] * 4)
    vae.save_pretrained(tmp_path / "vae")
    config = json.loads((place.folder / "base.json").read_text())
    config |= {"input_size": 4, "in_channels": 4, "attention_resolutions": [2], "clip_width": 8}
    (tmp_path / "latent.json").write_text(json.dumps(config))
    options = {"model_name": "GLIDE-latent", "model_config": tmp_path / "latent.json"}
    options |= {"vae": f"WFVAE2Image:{tmp_path / 'vae'}", "clip_model": clip}
    start = {"pretrained_model_name_or_path": f"pixel-transfer:{pixels}"}
    run = place.train("latent", 2, eval_steps=2, eval_clip_model=clip, **options, **start)
    (row,) = rows(run / "validation.jsonl")
    assert -1 <= row["val_ema/clip_score"] <= 1
    (tmp_path / "wide.json").write_text(json.dumps(config | {"clip_width": 12}))
    with refused("gives 8 numbers, the network reads 12"):
        place.train("wide", 1, **options | {"model_config": tmp_path / "wide.json"})
    with refused("has 301 tokens, the network knows 302"):
        (tmp_path / "more.json").write_text(json.dumps(config | {"vocab_size": 302}))
        place.train("more", 1, **options | {"model_config": tmp_path / "more.json"})
    generator = load_generator(str(run), CPU)
    condition = generator.condition([Subject(0, None, "a red circle"), Subject(1, None, "")])
    assert condition["clip"][0].any() and not condition["clip"][1].any()
    words = ["--from_pretrained", str(run), "--steps", "2", "--prompt", "a red circle"]
    generate([*words, "--output_dir", str(tmp_path / "out")])
    assert Image.open(tmp_path / "out" / "a-red-circle.png").size == (32, 32)
    with refused("reads CLIP's embeddings"):
        export(["--from_pretrained", str(run), "--save_dir", str(tmp_path / "hf")])


def test_a_checkpoint_says_all_that_generating_needs(place):
    generator = load_generator(str(place.train("run", 1)), CPU)
    facts = {"space": "pixel", "objective": "noise_prediction", "cfg_dropout_prob": 0.2}
    assert generator.facts.items() >= facts.items()
    assert generator.facts["text"]["kind"] == "gpt2"


def test_captions_are_counted_and_errors_stand_by_time(place):
    (*_, row) = rows(place.train("run", 2) / "training_losses.csv")
    names = {"caption_length", "captions_cut", "captions_empty", "spikes_skipped", "error"}
    names |= {"variational_bound", "error_t750-999"}
    assert row.keys() >= {f"train/{name}" for name in names}
    assert float(row["train/caption_length"]) > 2 and float(row["train/captions_empty"]) == 0
    (*_, row) = rows(place.train("unet", 2, train="unet") / "training_losses.csv")
    assert "train/variational_bound" not in row  # of all that learns alone


def test_what_goes_wrong_is_said_before_the_first_step(place):
    named, base = {"model_name": "GLIDE-upsample", "model_config": None}, place.train("base", 1)
    up = named | {"model_config": place.folder / "up.json"}
    public = {"pretrained_model_name_or_path": "pretrained"}
    photos = write_captioned(place.folder / "photos", 2, lambda i: (40, 80))
    images = {"dataset": "images", "data_path": photos, "num_shapes": None}
    for words, options in (
        ("invalid choice: 'moons'", {"dataset": "moons"}),
        ("gpt2:nowhere does not exist", {"text_encoder": "gpt2:nowhere"}),
        ("GLIDE reads the tokens of gpt2", {"text_encoder": "bytes"}),
        ("learns samples of .* --resolution", {"resolution": 24}),
        ("this is a FlowTransformer", {"model_name": "FlowDiT-S/4", "model_config": None}),
        ("--upscale_factor 17 leaves nothing of", {"upscale_factor": 17} | up),
        ("of 23 x 11 px: make them multiples of 2", images | {"aspect_buckets": 1}),
        ("multiples of 4, as .* and --upscale_factor 4 need", images | {"aspect_buckets": 2} | up),
        ("no public weights of GLIDE-latent", {"model_name": "GLIDE-latent"} | public),
        ("plms needs at least 3 steps, got 2", {"sampler": "plms", "eval_steps": 1}),
        ("holds a GLIDE-base, not --", {"pretrained_model_name_or_path": base} | named),
        ("unknown model 'GLIDE-bas'; did you mean 'GLIDE-base'", {"model_name": "GLIDE-bas"}),
        ("does not exist", {"pretrained_model_name_or_path": "nowhere.pt"}),
        (
            "needs --cfg_dropout_prob|never learned the null",
            {"cfg_dropout_prob": 0, "eval_steps": 1},
        ),
        ("no prompts", {"prompt_file": place.folder / "empty.txt", "eval_steps": 1}),
    ):
        (place.folder / "empty.txt").write_text("\n")
        with refused(words):
            place.train("bad", 1, **options)
    assert not list((place.folder / "results").glob("bad*/options.json"))


def test_small_images_are_averages_in_eight_bits_with_noise_if_asked():
    images = torch.full((2, 3, 16, 16), 0.5)
    batch = {"image": images, "position": [4, 5]}
    small = small_images(batch, GlideOptions(upscale_factor=4))
    assert small.shape == (2, 3, 4, 4)
    torch.testing.assert_close(small, torch.full_like(small, 191 / 127.5 - 1))  # 8 bits
    noisy = GlideOptions(low_res_noise=0.3)
    first = small_images(batch, noisy)
    assert 0.2 < (first - small).std() < 0.4
    swapped = small_images({"image": images, "position": [5, 4]}, noisy)
    assert torch.equal(first, swapped.flip(0))  # noise follows the position


def test_random_masks_are_rectangles_of_all_sizes():
    batch = {"image": torch.zeros(500, 3, 20, 30), "position": list(range(500))}
    holes = 1 - random_masks(batch, 3)
    assert holes.shape == (500, 1, 20, 30) and set(holes.unique().tolist()) == {0.0, 1.0}
    rows, columns = holes.amax(3, keepdim=True), holes.amax(2, keepdim=True)
    torch.testing.assert_close(rows * columns, holes)
    assert holes.mean().item() == pytest.approx(1 / 9, abs=0.02)  # a third of each side's mean
