"""GLIDE against its formulas written plainly, its public names, and its promises."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from tests.model.glide.models import (
    GLIDE_MODELS,
    drawn,
    fill_by_names,
    inputs_for,
    small_glide,
)
from tests.model.glide.transcription import transcribed
from wfimagevae.model import VelocityModel
from wfimagevae.model.glide.glide import Glide
from wfimagevae.model.registry import ModelRegistry

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "glide.json").read_text())


@pytest.mark.parametrize("name", [name for name in GLIDE_MODELS if name != "Glide"])
def test_registered_models_compute_the_public_formulas_learn_save_and_reload(name, tmp_path):
    model = small_glide(name).eval()
    inputs = inputs_for(model)
    with torch.no_grad():
        torch.testing.assert_close(
            model(*inputs), transcribed(model, *inputs), atol=1e-4, rtol=1e-4
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    channels = model.sample_shape[0]
    target, losses = torch.randn(3, 2 * channels, 16, 16), []
    for _ in range(4):
        loss = (model(*inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, g in grads.items() if not (g.any() and g.isfinite().all())] == []
    model.save_pretrained(tmp_path)
    reloaded = VelocityModel.from_pretrained(tmp_path)
    assert type(reloaded) is Glide and reloaded.to_json_string() == model.to_json_string()
    assert torch.equal(reloaded(*inputs), model(*inputs))


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_public_models_have_the_public_names_and_shapes(name):
    with torch.device("meta"):
        model = ModelRegistry.get_model(name)()
    state, golden = model.state_dict(), GOLDEN["models"][name]
    lines = "".join(f"{key} {list(state[key].shape)}\n" for key in sorted(state))
    assert len(state) == golden["entries"]
    assert sum(p.numel() for p in model.parameters()) == golden["parameters"]
    assert hashlib.sha256(lines.encode()).hexdigest() == golden["sha256"]
    assert not [*model.buffers()]


def test_inpainting_models_read_the_image_and_its_mask_too():
    with torch.device("meta"):
        shapes = [
            ModelRegistry.get_model(f"GLIDE-{name}-inpaint")().input_blocks[0][0].weight.shape[1]
            for name in ("base", "upsample")
        ]
    assert shapes == [7, 10]


@pytest.mark.slow
@torch.no_grad()
def test_the_base_models_values_are_the_public_codes():
    model = fill_by_names(ModelRegistry.get_model("GLIDE-base")()).eval()
    condition = model.null_condition(2, "cpu")
    ids, golden = torch.tensor(GOLDEN["ids"]), GOLDEN["base"]
    condition["ids"][0, : len(ids)], condition["mask"][0, : len(ids)] = ids, True
    x = torch.from_numpy(drawn("input:x_base", (2, 3, 64, 64))).float()
    y = model(x, torch.tensor(golden["t"]), condition)
    for ours, key in (
        (y.flatten()[:8], "first8"),
        (y.mean((1, 2, 3)), "mean"),
        (y.std((1, 2, 3)), "std"),
        (y[0].mean((1, 2)), "chan_mean0"),
        (y[:, :, 5::20, 7::20], "grid"),
        (model.encode_text(condition)["pooled"][0, :4], "xf_proj_first4"),
    ):
        torch.testing.assert_close(ours, torch.tensor(golden[key]), atol=1e-4, rtol=0)
