"""Trained flows from disk: a checkpoint, an export or a public file, with its autoencoder."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from wfimagevae.diffusion.guidance import Guidance
from wfimagevae.files import read_json
from wfimagevae.generate.autoencoders import load_autoencoder, raw_weights
from wfimagevae.generate.generator import FlowGenerator, SamplingOptions
from wfimagevae.generate.latent_space import LatentSpace
from wfimagevae.model.flow.velocity_model import VelocityModel
from wfimagevae.model.text import TextEncoder, open_text_encoder
from wfimagevae.model.weight_files import find_weights, read_facts

FACTS_NAME = "generator.json"


def load_generator(
    path: str,
    device: torch.device,
    model_name: str | None = None,
    vae: str | None = None,
    use_raw_weights: bool = False,
    text_encoder: str | None = None,
) -> FlowGenerator:
    """A trained flow, ready to draw from.

    Args:
        path: A training checkpoint, a folder of them, an export, a hub name, or a public SiT
            file.
        device: Where it will run.
        model_name: Size of a public file.
        vae: ``KIND:PATH`` of the autoencoder, if not the recorded one.
        use_raw_weights: A checkpoint's raw weights instead of its average.
        text_encoder: ``KIND:PATH`` of the text encoder, if it is not where it was in training.

    Raises:
        ValueError: weights, an autoencoder or a text encoder that are missing or do not fit.
        FileNotFoundError: a local path that does not exist.
    """
    source = find_weights(path)  # once: a name on the hub is asked for over the network
    with raw_weights(use_raw_weights):
        model = VelocityModel.from_pretrained(source, model_name=model_name)
    facts = find_generator_facts(source)
    if facts is None:  # a public file, of an ImageNet model in a latent space
        facts = {"space": "latent", "objective": "flow_matching", "vae": {"source": None}}
    if vae and facts["space"] != "latent":
        raise ValueError(f"--vae {vae}: this flow makes {facts['space']}s, which need none")
    if vae:
        facts = facts | {"vae": facts["vae"] | {"source": vae}}
    elif facts["space"] == "latent":
        facts = facts | {"vae": _beside(facts["vae"], source)}
    if text_encoder:
        facts = facts | {"text": _moved_text_encoder(facts.get("text"), text_encoder)}
    generator = build_generator(model.to(device), device, facts)
    is_local = Path(path).expanduser().exists()
    generator.source = {
        "path": str(source.expanduser().absolute()) if is_local else path,
        "step": None if source.is_dir() else read_facts(source, "current_step"),
        "raw_weights": use_raw_weights,
        "model_name": model_name,
        "vae": facts.get("vae", {}).get("source"),
        "text_encoder": _spec(facts.get("text")),
    }
    return generator


def build_generator(model: nn.Module, device: torch.device, facts: dict) -> FlowGenerator:
    """The generator of a network on its device, with what its facts say belongs to it.

    Raises:
        ValueError: an autoencoder or text encoder that is missing or not the recorded one.
    """
    space = open_latent_space(facts, device) if facts["space"] == "latent" else None
    if not model.takes_text:
        text = None
    elif facts.get("text"):
        text = _open_text_encoder(facts["text"], device)
    else:
        raise ValueError("this model takes text, but its file does not say from which encoder")
    if space is None:
        return FlowGenerator(model, device, facts, text=text)
    return FlowGenerator(model, device, facts, space.decode, text, space.autoencoder.multiple)


def _open_text_encoder(recorded: dict, device: torch.device) -> TextEncoder:
    try:
        return open_text_encoder(recorded, device)
    except ValueError as error:
        reason = str(error).removeprefix("--text_encoder ")  # which nobody may have given
        raise ValueError(
            f"the text encoder of this flow cannot be read: {reason}; say where it is with "
            f"--text_encoder {recorded['kind']}:PATH"
        ) from error


def _spec(text: dict | None) -> str | None:
    """A text encoder's record as ``--text_encoder`` takes it."""
    return text and ":".join(filter(None, (text["kind"], text["source"])))


def _moved_text_encoder(recorded: dict | None, spec: str) -> dict:
    """The record of a text encoder that now stands elsewhere."""
    kind, _, source = spec.partition(":")
    if not recorded or recorded["kind"] != kind:
        has = f"the text encoder {recorded['kind']}" if recorded else "no text encoder"
        raise ValueError(f"--text_encoder {spec}: this model was trained with {has}")
    return recorded | {"source": source or None}


def find_generator_facts(path: str | Path) -> dict | None:
    """What training recorded for generating; None of a public file or another kind of model.

    Args:
        path: As for `load_generator`.

    Raises:
        ValueError: a file that cannot be read.
        FileNotFoundError: a local path that does not exist.
    """
    source = find_weights(path)
    if not source.is_dir():
        return read_facts(source, "generator")
    return read_json(source / FACTS_NAME) if (source / FACTS_NAME).is_file() else None


def _beside(vae: dict, folder: Path) -> dict:
    """The autoencoder's record, with a path that an export holds inside made one from here."""
    kind, _, path = (vae["source"] or "").partition(":")
    inside = folder / path if path else folder
    if path and folder.is_dir() and not Path(path).is_absolute() and inside.is_dir():
        return vae | {"source": f"{kind}:{inside}"}
    return vae


def latent_facts(vae: dict, shift: list[float], scale: list[float]) -> dict:
    """What a checkpoint records of a latent space.

    Args:
        vae: ``source`` (KIND:PATH) and ``fingerprint`` of its weights.
        shift: Per channel.
        scale: Per channel; the flow sees (z - shift) * scale.
    """
    kept = {"source": vae["source"], "fingerprint": vae["fingerprint"]}
    return {"space": "latent", "vae": kept, "shift": list(shift), "scale": list(scale)}


def open_latent_space(facts: dict, device: torch.device) -> LatentSpace:
    """The latent space that a flow's facts record, with its autoencoder.

    Raises:
        ValueError: the autoencoder is not there, or not the one that made the latents.
    """
    source = facts["vae"]["source"]
    if not source:
        raise ValueError(
            "this flow lives in the latent space of an autoencoder that its file does not name; "
            "give it: --vae diffusers:PATH_OR_NAME (public SiT: stabilityai/sd-vae-ft-ema)"
        )
    try:
        autoencoder = load_autoencoder(source)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"the autoencoder of these latents cannot be read: {error}; say where it is with "
            "--vae KIND:PATH"
        ) from error
    autoencoder.network.to(device).requires_grad_(False)
    if "shift" in facts:
        return LatentSpace.of_record(autoencoder, facts)
    if autoencoder.normalization is None:
        raise ValueError(f"{source} does not say how its latents are normalised")
    return LatentSpace(autoencoder, *autoencoder.normalization)


def sampling_options(
    generator: FlowGenerator,
    sampler: str | None,
    steps: int | None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    guidance_rescale: float = 0.0,
    guidance_channels: int | None = None,
    **others,
) -> SamplingOptions:
    """Options with what suits the model where nothing is asked for, checked against it.

    Args:
        generator: The model and its facts.
        sampler: None is ``mean_flow`` for a MeanFlow model, else ``heun``.
        steps: None is 1 for ``mean_flow``, else 25.
        guidance_scale: As for `Guidance`, like the next three.
        guidance_interval: As there.
        guidance_rescale: As there.
        guidance_channels: As there.
        others: Further fields of `SamplingOptions`.

    Raises:
        ValueError: options that the model cannot meet.
    """
    if sampler is None:
        sampler = "mean_flow" if generator.facts["objective"] == "mean_flow" else "heun"
    if steps is None:
        steps = 1 if sampler == "mean_flow" else 25
    guidance = Guidance(guidance_scale, guidance_interval, guidance_rescale, guidance_channels)
    options = replace(SamplingOptions(sampler, steps, guidance), **others)
    generator.check(options)
    return options
