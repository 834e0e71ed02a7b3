"""Trained flows from disk: a checkpoint, an export or a public file, with its autoencoder."""

import re
from dataclasses import replace
from pathlib import Path

import torch

from wfimagevae.files import is_folder, read_json
from wfimagevae.generate.autoencoders import Autoencoder, load_autoencoder, read_spec
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.options import (
    FlowComputeOptions,
    GeneratorOptions,
    UpsamplerOptions,
)
from wfimagevae.generate.two_stages import TwoStageGenerator
from wfimagevae.model.clip import TokensAndClip
from wfimagevae.model.flow.velocity_model import VelocityModel
from wfimagevae.model.losses.lpips_network import missing_download
from wfimagevae.model.text import open_text_encoder
from wfimagevae.model.weight_files import find_weights, read_facts, weights_fingerprint

FACTS_NAME = "generator.json"
_PUBLIC = "https://openaipublic.blob.core.windows.net/diffusion/dec-2021/{}.pt"  # GLIDE


def load_generator(
    options: GeneratorOptions | str, device: torch.device, precision: str = "fp32"
) -> FlowGenerator:
    """A trained flow, ready to draw from.

    The options say which, and where its autoencoder and text encoder are, if not where they were;
    a string is the path alone. ``precision`` is that of the flow. Weights, an autoencoder or a text
    encoder that are missing or do not fit are a ValueError, a missing path a FileNotFoundError.
    """
    if isinstance(options, str):
        options = GeneratorOptions(from_pretrained=options)
    path, vae, text_encoder = options.from_pretrained, options.vae, options.text_encoder
    # Once: a name on the hub is asked for over the network.
    source, name = _find(path, options.model_name)
    how = {"model_name": name, "use_ema": False if options.use_raw_weights else None}
    model = VelocityModel.from_pretrained(source, **how)

    # What training recorded, but for parts that stand elsewhere now.
    facts = find_generator_facts(source) or _facts_of_public(model)
    if vae and facts["space"] != "latent":
        raise ValueError(f"--vae {vae}: this flow makes {facts['space']}s, which need none")
    if facts["space"] == "latent":
        recorded = facts["vae"]["source"]
        if recorded and not vae:
            where = read_spec(recorded)
            place = Path(where.from_pretrained)
            # Where an export has it, unless the place is absolute; or moved with a pipeline's step.
            inside = source / place if is_folder(source) else source.parent / place.name
            is_inside = inside.is_dir() and (is_folder(source) or not place.exists())
            vae = f"{where.model_name}:{inside}" if is_inside else recorded
        facts = facts | {"vae": facts["vae"] | {"source": vae}}
    text = facts.get("text")
    if text_encoder:
        kind, _, place = text_encoder.partition(":")
        if not text or text["kind"] != kind:
            has = f"the text encoder {text['kind']}" if text else "no text encoder"
            raise ValueError(f"--text_encoder {text_encoder}: this model was trained with {has}")
        text = text | {"source": place or None}
        facts = facts | {"text": text}

    # The parts around the network: from and to latents, from texts.
    model, decode, downsampling, encoder = model.to(device), None, 1, None
    if isinstance(options, FlowComputeOptions) and options.compile:
        model.compile_blocks()
    if facts["space"] == "latent":
        space = open_latent_space(facts, device)
        decode, downsampling = space.to_images, space.multiple
    if model.takes_text and not text:
        raise ValueError("this model takes text, but its file does not say from which encoder")
    if model.takes_text:
        try:
            encoder = open_text_encoder(text, device)
            if text.get("clip"):
                encoder = TokensAndClip(encoder, text["clip"], device)
        except ValueError as error:
            reason = str(error).removeprefix("--text_encoder ")  # a flag that may not be there
            raise ValueError(
                f"the text encoder of this flow cannot be read: {reason}; say where it is with "
                f"--text_encoder {text['kind']}:PATH"
            ) from error
    generator = FlowGenerator(model, device, facts, decode, encoder, downsampling, precision)

    # What finds the same flow again, from any folder.
    is_local = Path(path).expanduser().exists()
    generator.source = {
        "path": str(source.expanduser().absolute()) if is_local else path,
        "step": None if is_folder(source) else read_facts(source, "current_step"),
        "raw_weights": options.use_raw_weights,
        "model_name": options.model_name,
        "vae": facts.get("vae", {}).get("source"),
        "text_encoder": text and ":".join(filter(None, (text["kind"], text["source"]))),
    }
    if isinstance(options, UpsamplerOptions) and options.upsampler:
        return _with_upsampler(generator, options)
    return generator


def _facts_of_public(model: VelocityModel) -> dict:
    """What is known of GLIDE, which reads text, and of ImageNet models in a latent space."""
    kind = "noise_prediction" if model.prediction == "epsilon" else "flow_matching"
    if not model.takes_text:
        return {"space": "latent", "objective": kind, "vae": {"source": None}}
    text = {"kind": "gpt2", "source": None, "length": model.config.text_length, "fingerprint": None}
    return {"space": "pixel", "objective": kind, "text": text}


def _find(path: str, name: str | None) -> tuple[Path, str | None]:
    """Where weights are, and the name of their model, if they do not tell it themselves."""
    if path != "pretrained":
        return find_weights(path, fits=VelocityModel.describes), name
    name = name or "GLIDE-base"
    return download_glide(name, "--from_pretrained or --upsampler"), name


def download_glide(name: str, flag: str) -> Path:
    """The file of OpenAI's weights of a GLIDE model, which PyTorch's cache keeps.

    MissingWeights, which names the ``flag`` of a file, where they cannot be had; ValueError for a
    model of which there are none.
    """
    if not re.fullmatch("GLIDE-(base|upsample)(-inpaint)?", name):
        raise ValueError(f"there are no public weights of {name}: name a file or folder")
    url = _PUBLIC.format(name.removeprefix("GLIDE-").replace("-", "_"))
    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            torch.hub.download_url_to_file(url, str(file), progress=False)
    except OSError as error:
        raise missing_download(f"the weights of {name}", url, flag, error) from error
    return file


def _with_upsampler(generator: FlowGenerator, options: GeneratorOptions) -> TwoStageGenerator:
    """A base model and the upsampler that the options name, which reads texts as the base does."""
    name = options.model_name or getattr(generator.model, "kind", "GLIDE-base")
    text = generator.source["text_encoder"] or ""
    second = options.changed(
        from_pretrained=options.upsampler,
        model_name=name.replace("base", "upsample"),
        text_encoder=text if text.startswith("gpt2") else None,
        upsampler=None,
        vae=None,
    )
    upsampler = load_generator(second, generator.device, generator.precision)
    generator.source["upsampler"] = upsampler.source["path"]
    return TwoStageGenerator(generator, upsampler, options.part(UpsamplerOptions))


def find_generator_facts(path: str | Path) -> dict | None:
    """What training recorded for generating; None of a public file or another kind of model."""
    source = find_weights(path)
    if not is_folder(source):
        return read_facts(source, "generator")
    return read_json(source / FACTS_NAME) if (source / FACTS_NAME).is_file() else None


def latent_facts(vae: dict, shift: list[float], scale: list[float]) -> dict:
    """What a checkpoint records of a latent space, in which the flow sees (z - shift) * scale.

    ``vae`` has at least ``source`` (KIND:PATH) and the ``fingerprint`` of its weights.
    """
    vae = {"source": vae["source"], "fingerprint": vae["fingerprint"]}
    return {"space": "latent", "vae": vae, "shift": list(shift), "scale": list(scale)}


def open_latent_space(facts: dict, device: torch.device) -> Autoencoder:
    """The autoencoder that a flow's facts record, with shift and scale of its latents there.

    Raises ValueError if that is not there, or not the one that made the latents.
    """
    source = facts["vae"]["source"]
    if not source:
        raise ValueError(
            "this flow lives in the latent space of an autoencoder that its file does not name; "
            "give it: --vae diffusers:PATH_OR_NAME (public SiT: stabilityai/sd-vae-ft-ema)"
        )
    try:
        autoencoder = load_autoencoder(source, device)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"the autoencoder of these latents cannot be read: {error}; say where it is with "
            "--vae KIND:PATH"
        ) from error
    autoencoder.network.requires_grad_(False)
    if "shift" in facts:
        expected = facts["vae"]["fingerprint"]
        if (weights := weights_fingerprint(autoencoder.network)) != expected:
            raise ValueError(
                f"the latents were made by {source} with weights {expected[:12]}, this autoencoder "
                f"has weights {weights[:12]}; give the one that made them"
            )
        return replace(autoencoder, normalization=(facts["shift"], facts["scale"]))
    if autoencoder.normalization is None:
        raise ValueError(f"{source} does not say how its latents are normalised")
    return autoencoder
