"""Fresh weights of GLIDE, its two parts, and where its weights come from."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from tests.model.glide.models import SMALL, inputs_for, small_glide
from wfimagevae.model import VelocityModel
from wfimagevae.model.glide.blocks import AttentionBlock
from wfimagevae.model.glide.glide import Glide, part_of, start_from_pixels
from wfimagevae.model.registry import ModelRegistry

TEXT = "transformer transformer_proj token_embedding positional_embedding padding_embedding"
TEXT = {*TEXT.split(), "final_ln"}


def fresh_glide(name="GLIDE-base", **options):
    sizes = SMALL | ({"clip_width": 12} if name == "GLIDE-latent" else {}) | options
    return ModelRegistry.get_model(name)(**sizes)


@pytest.fixture
def dirty_memory():
    """Whatever is not initialised is not a number."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def step(model, inputs, target):
    loss = (model(*inputs) - target).square().mean()
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.003 * parameter.grad.sign()
    return loss.item()


def check_fresh(model):
    """Zero at first, of finite weights, all of which learn once the layers at zero have."""
    assert all(p.isfinite().all() for p in model.parameters())
    inputs = inputs_for(model)
    target = torch.randn(3, 2 * model.sample_shape[0], 16, 16)
    assert not model(*inputs).any()
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses = [step(model, inputs, target) for _ in range(3)]
    assert losses[2] < losses[0] and model(*inputs).any()
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == []


@pytest.mark.parametrize("name", ["GLIDE-base", "GLIDE-upsample-inpaint", "GLIDE-latent"])
def test_fresh_weights_are_all_initialised_and_learn(name, dirty_memory):
    model = fresh_glide(name).eval()
    stds = {
        name: getattr(model, f"{name}_embedding").std().item() for name in ("positional", "padding")
    }
    assert all(0.008 < std < 0.022 for std in stds.values())
    check_fresh(model)


@pytest.mark.parametrize("part", ["text", "unet"])
def test_a_part_starts_afresh_alone(part, dirty_memory):
    model = small_glide("GLIDE-latent").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = copy.deepcopy(model.state_dict())
    getattr(model, f"reset_{part}")()
    kept = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    assert kept == {key for key in before if (part_of(key) == "text") != (part == "text")}
    if part == "unet":
        check_fresh(model)
    else:  # spread as in a new network
        new = fresh_glide("GLIDE-latent").state_dict()
        for key, value in model.state_dict().items():
            if part_of(key) == "text" and value.numel() > 100:
                assert value.std() == pytest.approx(new[key].std().item(), rel=0.3)


def test_what_belongs_to_text_and_unet_and_what_to_both():
    with torch.device("meta"):
        names = [name for name, _ in ModelRegistry.get_model("GLIDE-latent")().named_parameters()]
    parts = {part: [n for n in names if part_of(n) == part] for part in ("text", "unet", "both")}
    assert {name.split(".")[0] for name in parts["text"]} == TEXT
    unet = {"time_embed", "input_blocks", "middle_block", "output_blocks", "out"}
    assert {name.split(".")[0] for name in parts["unet"]} == unet
    assert all("encoder_kv" in name or name.startswith("clip_to_") for name in parts["both"])
    assert sum("encoder_kv.weight" in name for name in parts["both"]) == 15
    # What is frozen gets no gradient, and what carries the text into the U-Net learns either way.
    for frozen in ("text", "unet"):
        model = small_glide("GLIDE-latent")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(part_of(name) != frozen)
        model(*inputs_for(model)).square().mean().backward()
        learned = {part_of(name) for name, p in model.named_parameters() if p.grad is not None}
        assert learned == {"text", "unet", "both"} - {frozen}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_public_files_are_read_strictly_by_name(suffix, tmp_path):
    model, file = small_glide().eval(), tmp_path / f"base{suffix}"
    inputs = inputs_for(model)

    def write(state):
        save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)

    def read(name="GLIDE-base"):
        return Glide.from_pretrained(file, model_name=name, overrides=SMALL)

    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    write({f"_orig_mod.{key}": value for key, value in state.items()})  # as torch.compile saves
    assert torch.equal(read()(*inputs), model(*inputs)) and not read().training
    write({key: value for key, value in state.items() if key != "final_ln.bias"})
    with pytest.raises(ValueError, match=rf"base{suffix}: .*missing: final_ln.bias"):
        read()
    write(state)
    with pytest.raises(ValueError, match=r"are of GLIDE-base, not of GLIDE-upsample$"):
        read("GLIDE-upsample")
    with pytest.raises(ValueError, match=rf"base{suffix}: the weights are of no SiT or DiT"):
        VelocityModel.from_pretrained(file, model_name="DiT-S/2")


@pytest.mark.parametrize("name", ["GLIDE-upsample", "GLIDE-base-inpaint", "GLIDE-latent"])
def test_a_file_of_another_model_is_named(name, tmp_path):
    torch.save(small_glide(name).state_dict(), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x.pt: the weights are of {name}, not of GLIDE-base$"):
        Glide.from_pretrained(tmp_path / "x.pt", model_name="GLIDE-base")
    torch.save({"x_embedder.proj.weight": torch.zeros(3)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt: the weights are of no GLIDE: there is no 'inp"):
        Glide.from_pretrained(tmp_path / "x.pt", model_name="GLIDE-base")


@torch.no_grad()
def test_a_latent_model_starts_as_the_pixel_model_of_its_first_channels():
    pixels, latent = small_glide().eval(), small_glide("GLIDE-latent").eval()
    for module in pixels.modules():
        if isinstance(module, AttentionBlock):  # where CLIP's tokens would come in
            module.proj_out.weight.zero_()
            module.proj_out.bias.zero_()
    latent.clip_to_time[2].weight.zero_()
    latent.clip_to_time[2].bias.zero_()
    fresh = start_from_pixels(latent, pixels)
    assert {name.split(".")[0] for name in fresh} == {"clip_to_time", "clip_to_xf"}
    x, t, condition = inputs_for(latent)
    text = {key: condition[key] for key in ("ids", "mask")}
    ours, theirs = latent(x, t, condition), pixels(x[:, :3], t, text)
    assert not ours[:, [3, 7]].any()
    torch.testing.assert_close(ours[:, [0, 1, 2, 4, 5, 6]], theirs)
    # The public sizes share what has the same name and shape.
    with torch.device("meta"):
        pixels, latent = (ModelRegistry.get_model(f"GLIDE-{n}")() for n in ("base", "latent"))
    fresh, names = (
        start_from_pixels(latent, pixels),
        [name for name, _ in latent.named_parameters()],
    )
    assert not [name for name in fresh if part_of(name) == "text"] and "out.0.weight" not in fresh
    assert 0 < len(fresh) < 0.4 * len(names)
    latent, base = small_glide("GLIDE-latent"), small_glide()
    wide = "4 channels, 32 wide, cannot start from one of 3, 64 wide"
    for own, other, message in (
        (latent, small_glide("GLIDE-upsample"), "not GLIDE-latent from GLIDE-upsample"),
        (base, base, "starts from the pixels of a GLIDE-base, not GLIDE-base from GLIDE-base"),
        (latent, small_glide(base_channels=64), wide),
    ):
        with pytest.raises(ValueError, match=message):
            start_from_pixels(own, other)
