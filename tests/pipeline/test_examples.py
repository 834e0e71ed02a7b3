"""Every pipeline of the examples runs as written, but for sizes, lengths and places."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.models import vgg16

from tests.images import write_images
from tests.pipeline.files import TINY_FLOW, TINY_VAE, last_checkpoint
from tests.task.training import ROOT
from train_ddp import main
from wfimagevae.pipeline.document import read_document

EXAMPLES = sorted((ROOT / "examples").glob("pipeline_*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data that the examples name, each of a few small images."""
    folder = tmp_path_factory.mktemp("examples")
    for i, name in enumerate(("photographs", "holidays", "held_out", "drawings")):
        images = write_images(folder / "data" / name, 4, first_seed=10 * i)
        for path in images.glob("*.png"):
            path.with_suffix(".txt").write_text(f"a picture of {path.stem}\n")
    held_out = folder / "data" / "held_out"
    for name in ("portrait", "street"):
        (held_out / "000.png").with_name(f"{name}.jpg").write_bytes(
            (held_out / "000.png").read_bytes()
        )
    lines = [f"{i:03d}.png\ta cat asleep" for i in range(4)]
    (folder / "data" / "drawings.txt").write_text("\n".join(lines) + "\n")
    (folder / "data" / "shards").mkdir()
    for shard in range(2):
        write_shard(folder / "data" / "shards" / f"{shard:05d}.tar", folder, shard)
    network = vgg16(weights=None).features
    state = {f"features.{name}": value for name, value in network.state_dict().items()}
    torch.save(state, folder / "vgg16.pth")
    return folder


def write_shard(path: Path, folder: Path, shard: int) -> None:
    with tarfile.open(path, "w") as tar:
        for i in range(3):
            image = (folder / "data" / "photographs" / f"{i:03d}.png").read_bytes()
            record = json.dumps({"prompt": f"a bridge, number {i}"}).encode()
            for suffix, content in (("png", image), ("json", record)):
                member = tarfile.TarInfo(f"{shard}{i:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def made_small(content: dict, folder: Path) -> dict:
    """An example's content with other sizes and lengths."""
    content["model"]["vae"]["config"] = TINY_VAE
    if "flow" in content["model"]:
        content["model"]["flow"]["config"] = TINY_FLOW
        content["model"]["text_length"] = 16
    training, output = content["training"], content["output"]
    training |= {"workers": 0, "precision": "fp32", "device": "cpu"}
    training["options"] = {
        "eval_num_samples": 2,
        "eval_num_images": 1,
        "sampling_steps": 2,
        "index_cache_dir": str(folder / "cache"),
    }
    pipeline = training["pipeline"]
    for section in (training, content.get("data", {}), *pipeline.get("datasets", {}).values()):
        for key, small in (("batch_size", 2), ("img_size", 32)):
            if key in section:
                section[key] = small
    for step in pipeline["steps"]:
        step |= {"n_epochs": 1}
        step |= {"batch_size": 2} if "batch_size" in step else {}
        step |= {"max_steps": 2} if "max_steps" in step else {}
        options = step.setdefault("options", {})
        options |= {"disc_start": 1} if "disc_start" in options else {}
        if step.get("gan_training"):
            options["disc_num_layers"] = 1
        if step.get("use_lpips"):
            options["lpips_weights"] = str(folder / "vgg16.pth")
        if "transition_on" in step:
            step["transition_on"] |= {"max_epochs": 1, "window": 2}
    output |= {"log_interval": 1, "checkpoint_save_interval": 2}
    output["sample_sizes"] = [32, [48, 32]] if "sample_sizes" in output else [32]
    return content


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_valid_and_trains(path, data, monkeypatch, capsys):
    monkeypatch.chdir(data)
    content = made_small(read_document(path).data, data)
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
