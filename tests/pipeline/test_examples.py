"""Every pipeline of the examples runs as written, but for sizes, lengths and places."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.models import vgg16

from tests.images import write_images
from tests.pipeline.files import TINY_FLOW, TINY_VAE, last_checkpoint, write_shard
from tests.task.training import ROOT
from train_ddp import main
from wfimagevae.pipeline.steps import read_document

EXAMPLES = sorted((ROOT / "examples").glob("pipeline_*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of the data that the examples name, each of a few small images."""
    folder = tmp_path_factory.mktemp("examples")
    for i, name in enumerate(("photographs", "holidays", "held_out", "drawings")):
        for path in write_images(folder / "data" / name, 4, first_seed=10 * i).glob("*.png"):
            path.with_suffix(".txt").write_text(f"a picture of {path.stem}\n")
            path.with_suffix(".json").write_text(json.dumps({"prompt": f"a bridge, {path.stem}"}))
    for name in ("portrait", "street"):
        shutil.copy(folder / "data/held_out/000.png", folder / f"data/held_out/{name}.jpg")
    lines = [f"{i:03d}.png\ta cat asleep\n" for i in range(4)]
    (folder / "data" / "drawings.txt").write_text("".join(lines))
    (folder / "data" / "shards").mkdir()
    photographs = sorted((folder / "data" / "photographs").glob("*.png"))
    for shard in range(2):
        write_shard(folder / f"data/shards/{shard:05d}.tar", photographs[shard::2])
    network = vgg16(weights=None).features
    state = {f"features.{name}": value for name, value in network.state_dict().items()}
    torch.save(state, folder / "vgg16.pth")
    return folder


def made_small(content: dict) -> dict:
    """An example's content with other sizes and lengths."""
    content["model"]["vae"]["config"] = TINY_VAE
    if "flow" in content["model"]:
        content["model"]["flow"]["config"] = TINY_FLOW
        content["model"]["text_length"] = 16
    training, output = content["training"], content["output"]
    few = {"eval_num_samples": 2, "eval_num_images": 1, "sampling_steps": 2}
    options = few | {"index_cache_dir": "cache"}
    training |= {"workers": 0, "precision": "fp32", "device": "cpu", "options": options}
    steps = training["pipeline"]["steps"]
    data_sets = training["pipeline"].get("datasets", {}).values()
    small = {"batch_size": 2, "img_size": 32, "max_steps": 2}
    for section in (training, content.get("data", {}), *data_sets, *steps):
        section |= {key: value for key, value in small.items() if key in section}
    for step in steps:
        step["n_epochs"] = 1
        options = step.setdefault("options", {})
        options |= {"disc_start": 1} if "disc_start" in options else {}
        options |= {"disc_num_layers": 1} if step.get("gan_training") else {}
        options |= {"lpips_weights": "vgg16.pth"} if step.get("use_lpips") else {}
        if "transition_on" in step:
            step["transition_on"] |= {"max_epochs": 1, "window": 2}
    output |= {"log_interval": 1, "checkpoint_save_interval": 2}
    output["sample_sizes"] = [32, [48, 32]] if "sample_sizes" in output else [32]
    return content


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_valid_and_trains(path, data, monkeypatch, capsys):
    monkeypatch.chdir(data)
    content = made_small(read_document(path).data)
    small = data / path.name
    small.write_text(yaml.safe_dump(content))
    assert main(["--pipeline", str(small), "--validate_pipeline"]) == 0
    plan = capsys.readouterr().out
    assert main(["--pipeline", str(small)]) == 0
    output = Path(content["output"]["output_path"])
    for number, step in enumerate(content["training"]["pipeline"]["steps"], 1):
        assert f"{number}. {step['name']}" in plan
        state = last_checkpoint(output, step["name"])
        assert state["finished"]
        assert all(value.isfinite().all() for value in state["state_dict"]["gen_model"].values())
        assert (output / "graph" / f"{step['name']}_training_overview.png").exists()
        assert list((output / "samples").rglob(f"{step['name']}_{number:03d}_*.webp")) or (
            "test_image_address" not in content["output"]
        )
