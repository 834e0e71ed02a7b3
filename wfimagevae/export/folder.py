"""Hugging Face folders of autoencoders and flows, with their code and a card, read back before use.

Also an autoencoder from the halves of two.
"""

import contextlib
import json
import logging
import os
import runpy
from collections.abc import Mapping
from pathlib import Path

import diffusers
import torch
from torch import nn

from wfimagevae.export.card import PICTURE, write_card
from wfimagevae.export.options import CardOptions
from wfimagevae.export.pipeline import FlowPipeline
from wfimagevae.export.source import standalone_source
from wfimagevae.files import read_json, share, write_json, write_text
from wfimagevae.generate.autoencoders import as_autoencoder, read_spec
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.generator_files import FACTS_NAME, load_generator, open_latent_space
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject
from wfimagevae.model.modeling_aebase import ImageBaseAE
from wfimagevae.model.weight_files import FLOW_FOLDER, PIPELINE_INDEX, weights_fingerprint
from wfimagevae.pictures.pixels import from_uint8, to_uint8
from wfimagevae.pictures.writer import save_image

_log = logging.getLogger("wfimagevae")
VAE_FOLDER = "vae"
# What an export consists of; nothing else in its folder is uploaded.
_FILES = ["README.md", PICTURE, "*.safetensors*", "config.json", "modeling_*.py", "pipeline.py"]
_FILES += [FACTS_NAME, PIPELINE_INDEX, f"{FLOW_FOLDER}/*", f"{VAE_FOLDER}/*"]
# Settings that do not change what the halves say to each other.
_FREE = {"shift", "scale", "dropout"}
_OF_DECODER = ("decoder_", "spade")


def check_target(folder: Path, *sources: str, is_flow: bool = False) -> None:
    """Raises ValueError if an export would overwrite its source, or never be read again."""
    if os.fsencode(folder) != str(folder).encode(errors="replace"):
        raise ValueError(f"--save_dir {folder} is not UTF-8, which diffusers needs; name another")
    if any(Path(source).resolve() == folder.resolve() for source in sources):
        raise ValueError(f"--save_dir {folder} is where the model comes from; choose another")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--save_dir {folder} is a file; name a folder")
    if any(folder.glob("*.ckpt")):
        raise ValueError(
            f"--save_dir {folder} holds .ckpt files, which would be loaded instead of the export; "
            "choose another"
        )
    other = folder / ("config.json" if is_flow else PIPELINE_INDEX)
    if other.exists():
        raise ValueError(f"--save_dir {folder} holds another kind of export: choose another folder")


def check_hub(repository: str | None) -> None:
    """Raises ValueError unless there is somebody who may upload to that repository."""
    if repository is None:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        HfApi().whoami()
    except (HFValidationError, HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--push_to_hub {repository}: {reason}") from error


def push_to_hub(folder: Path, repository: str) -> str:
    """Uploads an export's own files, into a repository that is made if need be; its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        api = HfApi()
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=_FILES)
    except (HTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is exported, but not uploaded to {repository}: {error}"
        ) from error
    return str(address)


def write_model(network: nn.Module, folder: Path, with_code: bool = False) -> None:
    """Writes config.json and safetensors over an earlier export, maybe the code of the model."""
    path, replaced = folder / "config.json", {}
    with contextlib.suppress(FileNotFoundError, ValueError):  # a first export, a broken file
        replaced = read_json(path)
    network.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        share(file)
    config = read_json(path)
    config.pop("_name_or_path", None)  # a path of this machine
    if with_code and not type(network).__module__.startswith("diffusers."):
        module, name = _code_of(network)
        write_text(folder / f"{module}.py", standalone_source(type(network)))
        config["auto_map"] = {"AutoModel": f"{module}.{name}"}
    write_json(path, config)
    if any(key in replaced and replaced[key] != config.get(key) for key in ("shift", "scale")):
        _log.warning("%s had another shift and scale: run latent_stats.py --write again", path)


def _code_of(network: nn.Module) -> tuple[str, str]:
    """The module and class of a network, as an export calls them."""
    place, name = type(network).__module__, type(network).__name__
    if place.startswith("diffusers."):
        return "diffusers", name
    return f"modeling_{place.rpartition('.')[2].removeprefix('modeling_')}", name


def _by_own_code(network: nn.Module, folder: Path) -> nn.Module:
    """The network in a folder as others read it: by the code in there, and by diffusers."""
    module, name = _code_of(network)
    cls = type(network) if module == "diffusers" else _run(folder / f"{module}.py")[name]
    return cls.from_pretrained(folder, low_cpu_mem_usage=False).eval()


def _run(file: Path) -> dict:
    try:
        return runpy.run_path(str(file), run_name=file.stem)
    except Exception as error:
        raise ValueError(
            f"the model's code does not run by itself: {type(error).__name__}: {error}; see {file}"
        ) from error


def export_vae(
    vae: nn.Module, folder: Path, options: CardOptions, training: Mapping | None = None
) -> None:
    """Writes config.json, safetensors, code and a card, and reads them back: see `check_reload`."""
    write_model(vae.cpu().eval(), folder, with_code=True)
    check_reload(vae, folder)
    if options.picture is None:
        from skimage.data import astronaut

        pixels = torch.from_numpy(astronaut()).permute(2, 0, 1)
        output = as_autoencoder(vae, "cpu").reconstruct(from_uint8(pixels)[None])[0]
        save_image(folder / PICTURE, torch.cat([pixels, to_uint8(output)], 2))
    write_card(folder, options, training, vae)


@torch.inference_mode()
def check_reload(network: nn.Module, folder: Path) -> None:
    """Raises ValueError unless the folder gives a network with identical weights and its output.

    That may differ by rounding. It is read by this package and, where it holds the network's code,
    by that.
    """
    if isinstance(network, ImageBaseAE):
        size = 4 * network.spatial_factor
        inputs = (torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size), False, False)
    else:
        inputs = network.example_inputs("cpu")
    readers = [type(network).from_pretrained(folder)]
    if "auto_map" in read_json(folder / "config.json"):
        readers.append(_by_own_code(network, folder))
    # Equal weights are not enough: the configuration decides what is done with them. Kernels of
    # another memory format, or other code, round differently, beside an output of nearly zero too.
    expected = network.to(memory_format=torch.channels_last)(*inputs)[0]
    for reloaded in readers:
        if weights_fingerprint(reloaded) != weights_fingerprint(network):
            raise ValueError(f"{folder}: the reloaded model's weights differ")
        output = reloaded.to(memory_format=torch.channels_last)(*inputs)[0]
        if not _is_same(output, expected):
            raise ValueError(f"{folder}: the reloaded model's output differs")


def _is_same(output: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two outputs differ by rounding at most, as kernels for other layouts do."""
    atol = 1e-5 + 1e-4 * expected.abs().max().item()
    return torch.allclose(output, expected, rtol=0, atol=atol)


def merge(encoder_from: nn.Module, decoder_from: nn.Module) -> nn.Module:
    """A model's encoder, latent statistics included, with the decoder of another of its class.

    Their latents must mean the same, which no configuration tells: usually the second one was
    trained further with the first one's encoder frozen. Settings that both halves share and that
    differ are a ValueError.
    """
    models = encoder_from, decoder_from
    first, second = (json.loads(json.dumps(m.own_config())) for m in models)  # lists for tuples
    # The halves agree in all that both read.
    unlike = [
        f"{key} ({first[key]} and {second.get(key)})"
        for key in first
        if not key.startswith(("encoder_", "base_", *_OF_DECODER))
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


def export_flow(
    generator: FlowGenerator, folder: Path, options: CardOptions, training: Mapping | None = None
) -> None:
    """Writes a pipeline of diffusers, with its code and a card, and reads it back.

    A latent flow's autoencoder goes along. A frozen text encoder does not: generator.json records
    where it was and the fingerprint of its weights. If what was written does not give the same
    samples, it is a ValueError. Of a model that does not draw by itself, an upsampler, the network
    alone is written.
    """
    if "clip" in generator.facts.get("text", {}):
        raise ValueError("a model that reads CLIP's embeddings draws by generate.py: no export")
    if generator.model.needs:
        write_model(generator.model.eval(), folder, with_code=True)
        write_json(folder / FACTS_NAME, generator.facts)
        check_reload(generator.model, folder)
        write_card(folder, options, training, generator)
        return
    place, facts = folder / FLOW_FOLDER, dict(generator.facts)
    write_model(generator.model.eval(), place, with_code=True)
    parts, for_pipeline = {FLOW_FOLDER: generator.model}, {**facts, "vae": None}
    if facts["space"] == "latent":
        space = open_latent_space(facts, torch.device("cpu"))
        parts[VAE_FOLDER] = space.network
        write_model(space.network, folder / VAE_FOLDER, with_code=True)
        kind = read_spec(facts["vae"]["source"]).model_name
        facts["vae"] = facts["vae"] | {"source": f"{kind}:../{VAE_FOLDER}"}
        for_pipeline["downsampling"] = space.multiple
        for_pipeline |= dict(zip(("shift", "scale"), map(list, space.normalization), strict=True))
    write_json(place / FACTS_NAME, facts)
    write_text(folder / "pipeline.py", standalone_source(FlowPipeline))
    index = {"_class_name": ["pipeline", FlowPipeline.__name__], "facts": for_pipeline}
    index |= {"_diffusers_version": diffusers.__version__, VAE_FOLDER: [None, None]}
    write_json(folder / PIPELINE_INDEX, index | {n: list(_code_of(p)) for n, p in parts.items()})

    # What is read back must draw the same, with a prompt and without.
    label = 0 if generator.model.num_classes else None
    prompts = ("a prompt", "") if generator.model.takes_text else (None, None)
    subjects = [Subject(i, label, prompt) for i, prompt in enumerate(prompts)]
    networks = {name: _by_own_code(network, folder / name) for name, network in parts.items()}
    pipeline = _run(folder / "pipeline.py")[FlowPipeline.__name__](**networks, facts=for_pipeline)
    pipeline._text = generator.text
    flows = (generator, load_generator(str(folder), torch.device("cpu")), pipeline._flow())
    samples = [flow.draw(subjects, SamplingOptions(steps=1)) for flow in flows]
    if generator.facts["space"] != "point":
        samples = [flow.images(x) for flow, x in zip(flows, samples, strict=True)]
    if not all(_is_same(other, samples[0]) for other in samples[1:]):
        raise ValueError(f"{folder}: the reloaded model's samples differ")
    write_card(folder, options, training, generator)
