"""Flow matching and MeanFlow of a transformer that reads texts."""

from operator import itemgetter

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.model.flow.models import small_model, text_for
from tests.objective.fields import plain
from wfimagevae.diffusion.guidance import GuidedVelocity, map_tensors
from wfimagevae.diffusion.path import time_grid
from wfimagevae.diffusion.sampler import SAMPLERS
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.text import open_text_encoder
from wfimagevae.objective.flow_matching import FlowMatching
from wfimagevae.objective.mean_flow import MeanFlow

ATTENTIONS = ("cross", "joint")


def text_model(attention, **options):
    model = small_model(f"FlowDiT-S/2 {attention}", average_velocity=True, **options)
    return model.double().eval()


def text_batch(model, count=6):
    """Random data whose condition is in the batch already."""
    labels = torch.arange(count) % 4 if model.num_classes else None
    data = torch.randn(count, *model.sample_shape, dtype=torch.float64)
    condition = text_for(model, labels, torch.float64, count)
    return {"data": data, "condition": condition, "position": list(range(count))}


def rows_of(batch, rows):
    positions = batch["position"][rows]
    tensors = {k: v for k, v in batch.items() if k != "position"}
    return map_tensors(lambda leaf: leaf[rows], tensors) | {"position": positions}


def objective_of(kind, model, **options):
    return kind(model, itemgetter("data"), plain(**options), 0, itemgetter("condition"))


def worded_batch(model, count):
    """A batch in which no text is empty."""
    batch = text_batch(model, count)
    batch["condition"]["ids"][1::3] = 7
    return batch


def drop(objective, batch):
    """Which samples lose all, and whose class and whose text the network is told."""
    count = len(batch["position"])
    drawn = objective.draw(batch, torch.zeros(count, dtype=torch.float64))
    told = {}
    for key, value in drawn.condition.items():
        kept = (value == batch["condition"][key]).view(count, -1).all(1)
        null = objective.network.null_condition(count, "cpu")[key]
        assert torch.equal(value[~kept], null[~kept])  # a part is whole, or null
        told[key] = kept
    return drawn.dropped, told


def test_classes_and_texts_are_dropped_together_and_each_alone():
    model = text_model("cross", num_classes=4)
    objective = objective_of(FlowMatching, model, cfg_dropout_prob=0.2)
    batch = worded_batch(model, 2000)
    dropped, told = drop(objective, batch)
    by_text, by_label = told.pop("ids"), told.pop("label")
    assert not told and torch.equal(dropped, ~by_text & ~by_label)
    shares = [dropped, by_text & ~by_label, by_label & ~by_text, by_text & by_label]
    found = [share.double().mean().item() for share in shares]
    assert found == pytest.approx([0.2, 0.1, 0.1, 0.6], abs=0.03)
    # It follows the data position: another batch, or rank, decides alike.
    again, told = drop(objective, rows_of(batch, slice(700, 710)))
    assert torch.equal(again, dropped[700:710]) and torch.equal(told["ids"], by_text[700:710])
    # A text alone, as often as asked.
    model = text_model("cross")
    objective = objective_of(FlowMatching, model, cfg_dropout_prob=0.2)
    dropped, told = drop(objective, worded_batch(model, 1000))
    assert torch.equal(dropped, ~told["ids"])
    assert dropped.double().mean().item() == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("improved", [False, True])
def test_the_derivative_along_the_path_equals_finite_differences(attention, improved):
    model = text_model(attention)
    objective = objective_of(MeanFlow, model, meanflow_improved=improved)
    batch = text_batch(model, 3)
    x, condition = batch["data"], batch["condition"]
    t = torch.tensor([0.1, 0.4, 0.6], dtype=torch.float64)
    s, v = t + 0.3, torch.randn_like(x)
    derivative = objective._along(x, t, s, condition, v)
    h = 1e-5
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if improved:
            v = model(x, t, condition, t)
        ahead, behind = (model(x + d * v, t + d, condition, s) for d in (h, -h))
    torch.testing.assert_close(derivative, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_loss_follows_the_samples_and_their_texts_not_the_batches(attention):
    """Samples with an end time are picked out of a batch, and their texts with them."""
    model = text_model(attention, num_classes=4)
    options = {"meanflow_omega": 1.5, "meanflow_kappa": 0.2, "cfg_dropout_prob": 0.3}
    options |= {"meanflow_ratio": 0.5, "meanflow_power": 0.0}
    objective = objective_of(MeanFlow, model, **options)
    batch = text_batch(model, 6)
    whole = objective(batch, 0)[0]
    parts = [rows_of(batch, slice(i, i + 2)) for i in (0, 2, 4)]
    torch.testing.assert_close(whole, sum(objective(part, 0)[0] for part in parts) / 3)
    batch["condition"] = map_tensors(lambda leaf: leaf.roll(1, 0), batch["condition"])
    assert not torch.isclose(whole, objective(batch, 0)[0], rtol=1e-4)


def test_a_prompt_chooses_the_colour_of_a_picture_made_in_one_step():
    torch.manual_seed(0)
    colours = {"a red picture": (1.0, -1.0, -1.0), "a blue picture": (-1.0, -1.0, 1.0)}
    texts, encoder = list(colours), open_text_encoder("bytes", "cpu", 16)
    sizes = {"input_size": 8, "in_channels": 3, "hidden_size": 64, "depth": 2, "num_heads": 2}
    sizes |= {"byte_width": 32, "byte_depth": 1, "text_attention": "joint"}
    model_class = ModelRegistry.get_model("FlowDiT-S/4")
    network = model_class(average_velocity=True, **encoder.config_keys, **sizes)

    def pictures(batch):
        values = torch.tensor([colours[text] for text in batch["caption"]])
        return values[..., None, None].expand(-1, 3, 8, 8)

    options = plain(cfg_dropout_prob=0.1, meanflow_ratio=0.5)
    objective = MeanFlow(network, pictures, options, 0, lambda batch: encoder(batch["caption"]))
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3, weight_decay=0.0)
    for step in range(100):
        positions = list(range(step * 32, (step + 1) * 32))
        captions = [texts[p // 2 % 2] for p in positions]
        optimizer.zero_grad()
        objective({"caption": captions, "position": positions}, step)[0].backward()
        optimizer.step()
    prompts = texts * 8
    velocity, noise = GuidedVelocity(network, encoder(prompts)), torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        samples = SAMPLERS["mean_flow"](velocity, noise, time_grid(1, 1.0))
    error = (samples - pictures({"caption": prompts})).abs().mean()
    assert error < 0.35  # samples of the other colour: 1.33; purple ones: 0.67
