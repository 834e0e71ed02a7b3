"""Trained flows as Hugging Face folders, with what generating from them needs."""

from collections.abc import Mapping
from pathlib import Path

import torch

from wfimagevae.export.autoencoder import option_table, write_weights
from wfimagevae.files import write_json
from wfimagevae.generate.autoencoders import load_autoencoder
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.generator_files import FACTS_NAME, load_generator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject

VAE_FOLDER = "vae"
# Training options worth telling; paths stay private.
_TOLD_OPTIONS = (
    *("dataset", "resolution", "train_crop", "max_steps", "epochs", "batch_size", "lr", "seed"),
    *("grad_accum_steps", "optimizer", "lr_schedule", "mix_precision", "ema", "ema_decay"),
    *("objective", "time_distribution", "time_mean", "time_std", "time_shift"),
    *("text_length", "text_attention", "fixed_prompt_prefix"),
    *("cfg_dropout_prob", "meanflow_ratio", "meanflow_omega", "meanflow_kappa"),
)


def save_flow(generator: FlowGenerator, folder: Path, card: str) -> None:
    """Writes config.json, safetensors, generator.json and README.md, and reads them back.

    A latent flow's autoencoder goes along, under ``vae``, unless it is a name on the hub. A frozen
    text encoder does not: generator.json records where it was and the fingerprint of its weights.

    Args:
        generator: The model, on the CPU.
        folder: Where to; files of an earlier export are replaced.
        card: Text of README.md.

    Raises:
        ValueError: what was written does not give the same samples.
    """
    write_weights(generator.model.eval(), folder)
    facts = dict(generator.facts)
    if facts["space"] == "latent":
        facts["vae"] = _save_vae(facts["vae"], folder)
    write_json(folder / FACTS_NAME, facts)
    (folder / "README.md").write_text(card, encoding="utf-8")
    _check_reload(generator, folder)


def _save_vae(vae: dict, folder: Path) -> dict:
    """The autoencoder's record, for readers of the folder, and its weights beside it."""
    kind, _, path = vae["source"].partition(":")
    if not Path(path).expanduser().exists():  # a hub name: anyone can get it
        return vae
    write_weights(load_autoencoder(vae["source"]).network, folder / VAE_FOLDER)
    return vae | {"source": f"{kind}:{VAE_FOLDER}"}


def _check_reload(generator: FlowGenerator, folder: Path) -> None:
    reloaded = load_generator(str(folder), torch.device("cpu"))
    options = SamplingOptions(steps=1)
    label = 0 if generator.model.num_classes else None
    shown = [Subject(i, label, prompt) for i, prompt in enumerate(("a prompt", ""))]
    samples = [g.draw(shown, options) for g in (generator, reloaded)]
    if generator.facts["space"] != "point":
        samples = [g.images(x) for g, x in zip((generator, reloaded), samples, strict=True)]
    if not torch.equal(*samples):
        raise ValueError(f"{folder}: the reloaded model's samples differ")


def flow_card(generator: FlowGenerator, name: str, options: Mapping | None = None) -> str:
    """Text of a Hugging Face model card.

    Args:
        generator: The model.
        name: Title.
        options: Resolved training options, if known.
    """
    model, facts = generator.model, generator.facts
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = " x ".join(map(str, model.sample_shape))
    average = ", average velocities (one step)" if model.has_average_velocity else ""
    task = "text-to-image" if model.takes_text else "unconditional-image-generation"
    example = ' --prompt "..."' if model.takes_text else ""
    tags = dict.fromkeys(("flow-matching", facts["objective"].replace("_", "-")))
    text = f"""---
library_name: wfimagevae
pipeline_tag: {task}
tags: [{", ".join(tags)}]
---

# {name}

A flow that generates {facts["space"]}s of {shape}{average}: {type(model).__name__}, \
{parameters:,} parameters, {model.num_classes or "no"} classes. Time 0 is noise, 1 is data.
{_text_note(facts.get("text"))}
```bash
python scripts/generate.py --from_pretrained path/to/this/folder --output_dir samples{example}
```
"""
    return text + ("\n" + option_table(options, _TOLD_OPTIONS) if options else "")


def _text_note(text: dict | None) -> str:
    if text is None:
        return ""
    if text["kind"] == "bytes":
        return f"\nPrompts: up to {text['length']} bytes, which the model itself reads.\n"
    source = Path(text["source"])
    name = source.name if source.is_absolute() else text["source"]
    return (
        f"\nPrompts: up to {text['length']} tokens of the frozen text encoder {text['kind']}:"
        f"{name}, which is not in this folder: it is read from where it was in training, or from "
        f"where --text_encoder {text['kind']}:PATH says. Its weights have the fingerprint "
        f"{text['fingerprint'][:12]}.\n"
    )
