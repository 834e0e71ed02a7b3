"""Hugging Face folders of autoencoders and flows, with a card, read back before use.

Also an autoencoder from the halves of two.
"""

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from wfimagevae.files import read_json, write_json
from wfimagevae.generate.autoencoders import load_autoencoder, split_spec
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.generator_files import FACTS_NAME, load_generator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject

_log = logging.getLogger("wfimagevae")
VAE_FOLDER = "vae"
# Training options that the card names; paths stay private.
_VAE_OPTIONS = (
    *("resolution", "train_crop", "max_steps", "epochs", "batch_size", "grad_accum_steps", "lr"),
    *("mix_precision", "ema", "ema_decay", "loss_type", "perceptual_weight", "kl_weight"),
    *("wavelet_loss", "wavelet_weight", "gan_schedule", "disc_start", "disc_weight"),
    *("adaptive_weight", "seed"),
)
_FLOW_OPTIONS = (
    *("dataset", "resolution", "train_crop", "max_steps", "epochs", "batch_size", "lr", "seed"),
    *("grad_accum_steps", "optimizer", "lr_schedule", "mix_precision", "ema", "ema_decay"),
    *("objective", "time_distribution", "time_mean", "time_std", "time_shift"),
    *("text_length", "text_attention", "fixed_prompt_prefix"),
    *("cfg_dropout_prob", "meanflow_ratio", "meanflow_omega", "meanflow_kappa"),
)
# Settings that do not change what the halves say to each other.
_FREE = {"shift", "scale", "dropout"}
_OF_DECODER = ("decoder_", "spade")


def check_target(folder: Path, *sources: str) -> None:
    """Raises ValueError if an export would overwrite its source, or never be read again."""
    if any(Path(source).resolve() == folder.resolve() for source in sources):
        raise ValueError(f"--save_dir {folder} is where the model comes from; choose another")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--save_dir {folder} is a file; name a folder")
    if any(folder.glob("*.ckpt")):
        raise ValueError(
            f"--save_dir {folder} holds .ckpt files, which would be loaded instead of the export; "
            "choose another"
        )


def write_model(network: nn.Module, folder: Path, card: str | None = None) -> None:
    """Writes config.json, safetensors and, with a card, README.md, over an earlier export."""
    path, replaced = folder / "config.json", {}
    with contextlib.suppress(FileNotFoundError, ValueError):  # a first export, a broken file
        replaced = read_json(path)
    network.save_pretrained(folder)
    config = read_json(path)
    config.pop("_name_or_path", None)  # a path of this machine
    write_json(path, config)
    if any(key in replaced and replaced[key] != config.get(key) for key in ("shift", "scale")):
        _log.warning("%s had another shift and scale: run latent_stats.py --write again", path)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_card(name: str, task: str, tags: Iterable[str], sections: Sequence[str]) -> str:
    """Text of a model card, with the front matter that the Hugging Face hub reads."""
    front = f"library_name: wfimagevae\npipeline_tag: {task}\ntags: [{', '.join(tags)}]"
    return "\n".join(["---", front, "---\n", f"# {name}\n", *filter(None, sections)])


def option_table(training: Mapping | None, names: Sequence[str]) -> str:
    """Section of a model card: those of a training's options, if known, that counted."""
    if not training:
        return ""
    idle = "epochs" if training.get("max_steps") else "max_steps"  # the one wins over the other
    rows = [f"| {n} | {training[n]} |" for n in names if n in training and n != idle]
    return "\n".join(["## Training\n", "| option | value |", "|---|---|", *rows, ""])


def export_vae(vae: nn.Module, folder: Path, card: str) -> None:
    """Writes config.json, safetensors and README.md, and reads them back: see `check_reload`."""
    write_model(vae.cpu().eval(), folder, card)
    check_reload(vae, folder)


@torch.inference_mode()
def check_reload(vae: nn.Module, folder: Path) -> None:
    """Raises ValueError unless the folder gives a model with identical weights and output."""
    reloaded = type(vae).from_pretrained(str(folder)).eval()
    state, other = vae.state_dict(), reloaded.state_dict()
    wrong = state.keys() ^ other.keys()
    wrong |= {k for k in state.keys() & other.keys() if not torch.equal(state[k], other[k])}
    if wrong:
        raise ValueError(f"{folder}: {len(wrong)} tensors differ after reloading: {min(wrong)}")
    # Equal weights are not enough: the configuration decides what is done with them.
    size = 4 * vae.spatial_factor
    image = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    image = image.contiguous(memory_format=torch.channels_last)
    outputs = [m.decode(m.encode(image).latent_dist.mode()).sample for m in (vae, reloaded)]
    if not torch.equal(*outputs):
        raise ValueError(f"{folder}: the reloaded model's output differs")


def vae_card(
    vae: nn.Module, name: str, training: Mapping | None = None, evaluation: Mapping | None = None
) -> str:
    """Text of a model card; ``evaluation`` is what eval_image.py wrote, if measured."""
    factor, class_name = vae.spatial_factor, type(vae).__name__
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    text = f"""A wavelet image autoencoder: {factor}x downsampling, {vae.config.latent_dim} latent \
channels, {parameters:,} parameters.

```python
import torch
from wfimagevae.model.vae.modeling_wfvae2_image import {class_name}

vae = {class_name}.from_pretrained("path/to/this/folder").eval()
images = torch.zeros(1, 3, 256, 256)  # in [-1, 1], height and width multiples of {factor}
with torch.no_grad():
    latents = vae.encode(images).latent_dist.mode()
    reconstruction = vae.decode(latents).sample
    # What a generator sees: mean 0 and variance 1 per channel, if shift and scale were measured.
    normalized = vae.normalize_latents(latents)
```
"""
    figures = ""
    if evaluation:
        protocol = evaluation.get("protocol", {})
        lines = ["## Evaluation\n", "| metric | value |", "|---|---|"]
        for metric in ("psnr", "ssim", "lpips", "rfid"):
            if evaluation.get(metric) is not None:
                lines.append(f"| {metric} | {evaluation[metric]:.4f} |")
        count, size = protocol.get("count", "?"), protocol.get("size", "?")
        code = evaluation.get("protocol_hash", "?")
        lines.append(f"\n{count} images, {size}, protocol {code}.\n")
        figures = "\n".join(lines)
    sections = [text, figures, option_table(training, _VAE_OPTIONS)]
    return write_card(name, "image-to-image", ("autoencoder", "vae", "wavelet"), sections)


def merge(encoder_from: nn.Module, decoder_from: nn.Module) -> nn.Module:
    """A model with one's encoder, latent statistics included, and the other's decoder.

    Their latents must mean the same, which no configuration tells: usually the second one was
    trained further with the first one's encoder frozen. Other classes, or settings that both halves
    share and that differ, are a ValueError.
    """
    if type(encoder_from) is not type(decoder_from):
        raise ValueError(
            f"cannot merge a {type(encoder_from).__name__} with a {type(decoder_from).__name__}"
        )
    first, second = (
        {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
        for config in (encoder_from.config, decoder_from.config)
    )
    # The halves agree in all that both read.
    unlike = [
        f"{key} ({first[key]} and {second.get(key)})"
        for key in first
        if not key.startswith(("_", "encoder_", "base_", *_OF_DECODER))
        and key not in _FREE
        and first[key] != second.get(key)
    ]
    if unlike:
        raise ValueError(f"encoder and decoder do not fit: they differ in {', '.join(unlike)}")
    decoder = {key: value for key, value in second.items() if key.startswith(_OF_DECODER)}
    merged = type(encoder_from).from_config(first | decoder)
    merged.encoder.load_state_dict(encoder_from.encoder.state_dict())
    merged.decoder.load_state_dict(decoder_from.decoder.state_dict())
    return merged.eval()


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
    prompts, encoder = "", facts.get("text")
    if encoder and encoder["kind"] == "bytes":
        prompts = f"\nPrompts: up to {encoder['length']} bytes, which the model itself reads.\n"
    elif encoder:
        kind, source = encoder["kind"], encoder["source"]
        source = Path(source).name if Path(source).is_absolute() else source  # paths stay private
        prompts = (
            f"\nPrompts: up to {encoder['length']} tokens of the frozen text encoder {kind}:"
            f"{source}, which is not in this folder: it is read from where it was in training, or "
            f"from where --text_encoder {kind}:PATH says. Its weights have the fingerprint "
            f"{encoder['fingerprint'][:12]}.\n"
        )
    text = f"""A flow that generates {facts["space"]}s of {shape}{average}: \
{type(model).__name__}, {parameters:,} parameters, {model.num_classes or "no"} classes. \
Time 0 is noise, 1 is data.
{prompts}
```bash
python scripts/generate.py --from_pretrained path/to/this/folder --output_dir samples{example}
```
"""
    return write_card(name, task, tags, [text, option_table(training, _FLOW_OPTIONS)])
