"""Trained flows as Hugging Face folders, with what generating from them needs."""

from collections.abc import Mapping
from pathlib import Path

import torch

from wfimagevae.export.folder import option_table, write_card, write_model
from wfimagevae.files import write_json
from wfimagevae.generate.autoencoders import load_autoencoder, split_spec
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.generator_files import FACTS_NAME, load_generator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject

VAE_FOLDER = "vae"
# Training options that the card names; paths stay private.
_CARD_OPTIONS = (
    *("dataset", "resolution", "train_crop", "max_steps", "epochs", "batch_size", "lr", "seed"),
    *("grad_accum_steps", "optimizer", "lr_schedule", "mix_precision", "ema", "ema_decay"),
    *("objective", "time_distribution", "time_mean", "time_std", "time_shift"),
    *("text_length", "text_attention", "fixed_prompt_prefix"),
    *("cfg_dropout_prob", "meanflow_ratio", "meanflow_omega", "meanflow_kappa"),
)


def export_flow(generator: FlowGenerator, folder: Path, card: str) -> None:
    """Writes config.json, safetensors, generator.json and README.md, and reads them back.

    A latent flow's autoencoder goes along, under ``vae``, unless it is a name on the hub. A frozen
    text encoder does not: generator.json records where it was and the fingerprint of its weights.
    If what was written does not give the same samples, it is a ValueError.
    """
    write_model(generator.model.eval(), folder, card)
    facts = dict(generator.facts)
    if facts["space"] == "latent":
        source = facts["vae"]["source"]
        kind, path = split_spec(source)
        if Path(path).expanduser().exists():  # else a hub name: anyone can get it
            write_model(load_autoencoder(source).network, folder / VAE_FOLDER)
            facts["vae"] = facts["vae"] | {"source": f"{kind}:{VAE_FOLDER}"}
    write_json(folder / FACTS_NAME, facts)

    # What is read back must draw the same, with a prompt and without.
    reloaded = load_generator(str(folder), torch.device("cpu"))
    label = 0 if generator.model.num_classes else None
    prompts = ("a prompt", "") if generator.model.takes_text else (None, None)
    subjects = [Subject(i, label, prompt) for i, prompt in enumerate(prompts)]
    flows = (generator, reloaded)
    samples = [flow.draw(subjects, SamplingOptions(steps=1)) for flow in flows]
    if generator.facts["space"] != "point":
        samples = [flow.images(x) for flow, x in zip(flows, samples, strict=True)]
    if not torch.equal(*samples):
        raise ValueError(f"{folder}: the reloaded model's samples differ")


def flow_card(generator: FlowGenerator, name: str, training: Mapping | None = None) -> str:
    """Text of a model card; with options of its training, if known."""
    model, facts = generator.model, generator.facts
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = " x ".join(map(str, model.sample_shape))
    average = ", average velocities (one step)" if model.has_average_velocity else ""
    task = "text-to-image" if model.takes_text else "unconditional-image-generation"
    example = ' --prompt "..."' if model.takes_text else ""
    tags = dict.fromkeys(("flow-matching", facts["objective"].replace("_", "-")))
    text = f"""A flow that generates {facts["space"]}s of {shape}{average}: \
{type(model).__name__}, {parameters:,} parameters, {model.num_classes or "no"} classes. \
Time 0 is noise, 1 is data.
{_text_note(facts.get("text"))}
```bash
python scripts/generate.py --from_pretrained path/to/this/folder --output_dir samples{example}
```
"""
    return write_card(name, task, tags, [text, option_table(training, _CARD_OPTIONS)])


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
