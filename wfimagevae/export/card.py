"""Model cards: what a stranger needs to know of an export, before and after opening it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import nn

from wfimagevae.export.options import CardOptions
from wfimagevae.files import read_json, write_text
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.pictures.grid import save_png

PICTURE = "picture.png"
# Training options that the card names, where the training has them; paths stay private.
_OPTIONS = (
    *("dataset", "resolution", "train_crop", "max_steps", "epochs", "batch_size", "lr", "seed"),
    *("grad_accum_steps", "optimizer", "lr_schedule", "mix_precision", "ema", "ema_decay"),
    *("loss_type", "perceptual_weight", "kl_weight", "wavelet_loss", "wavelet_weight"),
    *("gan_schedule", "disc_start", "disc_weight", "adaptive_weight"),
    *("objective", "time_distribution", "time_mean", "time_std", "time_shift"),
    *("text_length", "text_attention", "fixed_prompt_prefix"),
    *("cfg_dropout_prob", "meanflow_ratio", "meanflow_omega", "meanflow_kappa"),
)
_DATA = ("images", "latents")  # a user's own, which have no name
_FIGURES = ("psnr", "ssim", "lpips", "rfid", "fid", "kid", "precision", "recall", "energy_distance")


def read_metrics(options: CardOptions) -> list[dict]:
    """The measurements in the file to quote; none without one, ValueError for another file."""
    path = options.metrics_json
    content = read_json(path) if path else {"results": []}
    results = content.get("results", [content])
    if not all(isinstance(r, dict) and isinstance(r.get("protocol"), dict) for r in results):
        raise ValueError(
            f"--metrics_json {path} was not written by eval_image.py or eval_generation.py: no "
            "protocol"
        )
    return results


def check_card(options: CardOptions) -> None:
    """Raises ValueError or OSError for what a card could not say or show."""
    if not re.fullmatch(r"[\w.-]+", options.license):
        raise ValueError(f"--license {options.license!r} is no name of a license, such as mit")
    read_metrics(options)
    if options.picture:
        Image.open(options.picture).close()


def metric_table(results: Sequence[Mapping]) -> str:
    """Section of a model card: figures, a row a measurement, and how they were measured."""
    names = [name for name in _FIGURES if any(r.get(name) is not None for r in results)]
    if not names:
        return ""
    how = ["sampler", "steps", "guidance"] if "sampler" in results[0].get("sampling", {}) else []
    head = [*how, *names]
    lines = ["## Evaluation\n", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for result in results:
        cells = [result["sampling"][name] for name in how]
        cells = [str(c["scale"]) if isinstance(c, dict) else str(c) for c in cells]
        cells += ["" if result.get(n) is None else f"{result[n]:.4f}" for n in names]
        lines.append(f"| {' | '.join(cells)} |")
    # Plain values of the protocols; the lists are in the file, and paths stay private.
    for code, protocol in {r.get("protocol_hash"): r["protocol"] for r in results}.items():
        plain = {k: v for k, v in protocol.items() if isinstance(v, str | int) and k != "source"}
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in plain.items())
        lines.append(f"\nProtocol {code}: {told}.")
    return "\n".join([*lines, ""])


def option_table(training: Mapping | None) -> str:
    """Section of a model card: those of a training's options, if known, that counted."""
    if not training:
        return ""
    idle = "epochs" if training.get("max_steps") else "max_steps"  # the one wins over the other
    rows = [f"| {n} | {training[n]} |" for n in _OPTIONS if n in training and n != idle]
    return "\n".join(["## Training\n", "| option | value |", "|---|---|", *rows, ""])


def write_card(
    folder: Path, options: CardOptions, training: Mapping | None, network: nn.Module | FlowGenerator
) -> None:
    """Writes README.md, with the front matter that the Hugging Face hub reads, and its picture."""
    if options.picture:
        with Image.open(options.picture) as image:
            save_png(folder / PICTURE, image.convert("RGB"))
    is_flow = isinstance(network, FlowGenerator)
    describe = _flow if is_flow else _vae
    task, tags, about, code = describe(network, options.push_to_hub or "path/to/this/folder")
    front = f"license: {options.license}\nlibrary_name: diffusers\npipeline_tag: {task}"
    data, dataset = options.training_data, (training or {}).get("dataset")
    if not data and dataset and dataset not in _DATA:
        data = f"The data set {dataset} of wfimagevae."
    needs = " transformers" if is_flow and "tokens of the frozen" in about else ""
    sections = [
        f"---\n{front}\ntags: [{', '.join(tags)}]\n---\n",
        f"# {options.name or folder.resolve().name}\n",
        f"![what the model makes]({PICTURE})\n" if (folder / PICTURE).exists() else "",
        about,
        f"## Usage\n\n```bash\npip install torch diffusers safetensors{needs}\n```\n\n"
        f"```python\n{code}```\n",
        f"## Training data\n\n{data}\n" if data else "",
        metric_table(read_metrics(options)),
        option_table(training),
    ]
    write_text(folder / "README.md", "\n".join(filter(None, sections)))


def _vae(vae: nn.Module, place: str) -> tuple[str, Iterable[str], str, str]:
    """Task and tags of the hub; what the model is; how it is used."""
    factor = vae.spatial_factor
    about = f"""A wavelet image autoencoder: {factor}x downsampling, {vae.config.latent_dim} \
latent channels, {vae.num_parameters():,} parameters.
"""
    code = f"""import torch
from diffusers import AutoModel

vae = AutoModel.from_pretrained("{place}", trust_remote_code=True)
images = torch.zeros(1, 3, 256, 256)  # in [-1, 1], height and width multiples of {factor}
with torch.no_grad():
    latents = vae.encode(images).latent_dist.mode()
    reconstruction = vae.decode(latents).sample
    # What a generator sees: mean 0 and variance 1 per channel, if shift and scale were measured.
    normalized = vae.normalize_latents(latents)
"""
    return "image-to-image", ("autoencoder", "vae", "wavelet", "wfimagevae"), about, code


def _flow(generator: FlowGenerator, place: str) -> tuple[str, Iterable[str], str, str]:
    """Task and tags of the hub; what the model is; how it is used."""
    model, facts = generator.model, generator.facts
    shape = " x ".join(map(str, model.sample_shape))
    average = ", average velocities (one step)" if model.has_average_velocity else ""
    task = "text-to-image" if model.takes_text else "unconditional-image-generation"
    what, time = "A flow", "Time 0 is noise, 1 is data"
    if generator.diffusion:
        what, time = "A diffusion model", "Of its discrete times 0 is nearest to data"
    tags = [] if generator.diffusion else ["flow-matching"]
    tags = dict.fromkeys([*tags, facts["objective"].replace("_", "-"), "wfimagevae"])
    prompts, encoder = "", facts.get("text")
    if encoder and encoder["kind"] == "bytes":
        prompts = f"\nPrompts: up to {encoder['length']} bytes, which the model itself reads.\n"
    elif encoder:
        kind, source = encoder["kind"], encoder["source"]
        source = Path(source).name if Path(source).is_absolute() else source  # paths stay private
        prompts = (
            f"\nPrompts: up to {encoder['length']} tokens of the frozen text encoder {kind}:"
            f"{source}, which is not in this folder: it is read from where it was in training, or "
            f'from where `from_pretrained(..., text_encoder="{kind}:PATH")` says. Its weights have '
            f"the fingerprint {encoder['fingerprint'][:12]}.\n"
        )
    about = f"""{what} that generates {facts["space"]}s of {shape}{average}: \
{type(model).__name__}, {model.num_parameters():,} parameters, \
{model.num_classes or "no"} classes. {time}.
{prompts}"""
    if model.needs:
        parts = ", ".join(f'"{name}": ...' for name in ("ids", "mask", *model.needs))
        kind, name, use = "AutoModel", "model", f"# noise = model(x, t, {{{parts}}})"
    else:
        words = ['"a prompt"'] * model.takes_text or ["class_labels=[0]"] * bool(model.num_classes)
        if words and facts.get("cfg_dropout_prob") != 0 and not model.has_average_velocity:
            words.append("guidance_scale=2")
        words = ", ".join([*words, "num_images_per_prompt=4", "seed=0"])
        kind, name, use = "DiffusionPipeline", "pipeline", f"images = pipeline({words}).images"
    code = f"""from diffusers import {kind}

{name} = {kind}.from_pretrained("{place}", trust_remote_code=True)
{use}
"""
    return task, tags, about, code
