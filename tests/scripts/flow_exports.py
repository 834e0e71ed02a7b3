"""Small flows with random weights, as exported folders."""

import json

import numpy as np
import torch
from PIL import Image

from scripts import generate
from wfimagevae.model.registry import ModelRegistry


def command(script, *words):
    """Runs a script's main on words of any type and returns its status."""
    return script.main([str(word) for word in words])


def pictures(folder):
    """Pixels of every image, by name without extension."""
    names = sorted(path.stem for path in folder.glob("*.png"))
    return {name: np.asarray(Image.open(folder / f"{name}.png")).astype(int) for name in names}


def generated(model, output, *more):
    """The pictures that generate.py writes into a folder."""
    words = ("--from_pretrained", model, "--output_dir", output, "--device", "cpu")
    assert not command(generate, *words, *more)
    return pictures(output)


def export(folder, facts, name, **options):
    """Writes an exported flow of a registered network, its last layer not zero."""
    torch.manual_seed(0)
    model = ModelRegistry.get_model(name)(**options)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    facts = {"objective": "flow_matching", "class_names": []} | facts
    (folder / "generator.json").write_text(json.dumps(facts))
    return folder


def export_points(folder, **options):
    """A flow of points."""
    return export(folder, {"space": "point"}, "MLP", hidden_size=16, depth=1, **options)


def export_text(folder, class_names=(), depth=1):
    """A flow of 16 x 16 px images that takes bytes of text, maybe classes, too."""
    text = {"kind": "bytes", "source": None, "length": 24, "fingerprint": None}
    facts = {"space": "pixel", "text": text, "class_names": list(class_names)}
    sizes = {"hidden_size": 32, "num_heads": 2, "depth": depth, "input_size": 16, "in_channels": 3}
    sizes |= {"text_encoder": "bytes", "text_length": 24, "byte_width": 32, "byte_depth": 1}
    return export(folder, facts, "FlowDiT-S/4", num_classes=len(class_names), **sizes)
