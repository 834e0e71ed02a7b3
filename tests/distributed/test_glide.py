"""GLIDE on two gloo processes under FSDP2: trained, and its texts encoded by themselves."""

import torch

from tests.distributed.worker import on_ranks
from tests.model.glide.models import inputs_for, small_glide
from wfimagevae.engine.distributed import world
from wfimagevae.engine.sharding import shard, whole


def compare(file):
    with world("cpu") as here:
        torch.manual_seed(0)
        model = small_glide().eval()
        x, t, condition = inputs = inputs_for(model)
        expected = model(*inputs)
        expected.square().mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad()
        shard(model, model.blocks_to_shard(), here.device)
        found = {}
        for name in ("before", "after"):
            with torch.no_grad():
                found[name] = model(x, t, model.encode_text(condition)) - expected
            output = model(*inputs)
            output.square().mean().backward()
            found[f"trained {name}"] = (output - expected).detach()
        for name, parameter in model.named_parameters():  # of two backwards
            found[name] = whole(parameter.grad) / 2 - gradients[name]
        if here.is_main:
            torch.save({name: value.abs().max() for name, value in found.items()}, file)


def test_a_sharded_model_encodes_texts_samples_and_trains_as_a_whole_one(tmp_path):
    on_ranks(2, compare, tmp_path / "found.pt")
    found = torch.load(tmp_path / "found.pt")
    assert len(found) > 100 and all(value < 1e-4 for value in found.values()), found
