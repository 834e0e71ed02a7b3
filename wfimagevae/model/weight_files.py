"""Weights on disk: training checkpoints, Hugging Face folders, public files, hub names."""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wfimagevae.files import DIFFUSERS, is_folder, is_hub_name, read_json, read_torch_file

StateDict = dict[str, Tensor]
logger = logging.getLogger(__name__)

_STEM = "diffusion_pytorch_model"
_WEIGHTS = f"{_STEM}*.safetensors"
_NO_VARIANT = re.compile(rf"{_STEM}|\.safetensors|\.index|\.json")  # the rest of a name says it
_PART = re.compile(r"-\d+-of-\d+\.safetensors$")
_WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod)\.")  # whole parts of a name
_MAX_LISTED = 10
PIPELINE_INDEX, FLOW_FOLDER = "model_index.json", "transformer"


def bare(state_dict: StateDict, file: str | os.PathLike = "the state dict") -> StateDict:
    """The state dict without what DDP (``module.``) and `torch.compile` add to parts' names.

    ValueError, naming the file, for what is no state dict, or two tensors of one name then.
    """
    if not isinstance(state_dict, dict):
        raise ValueError(f"{file} holds a {type(state_dict).__name__} in place of weights")
    weights = {}
    for key, value in state_dict.items():
        if not isinstance(value, Tensor) or not isinstance(key, str):
            raise ValueError(f"{file} holds a {type(value).__name__} under {key!r}, no tensor")
        name = _WRAPPERS.sub("", key)
        if name in weights:
            raise ValueError(f"{file} holds {name} twice, once as {key}: keep one of them")
        weights[name] = value
    return weights


def latest_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The .ckpt file with the highest step at the end of its name, or None without any file.

    Files without a step (``best-psnr.ckpt``) count only where no file has one; several of those
    are a ValueError.
    """
    files = sorted(Path(folder).glob("*.ckpt"))
    numbered = [(int(m[0]), file) for file in files if (m := re.search(r"\d+$", file.stem))]
    if numbered:
        return max(numbered, key=lambda pair: pair[0])[1]
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{folder} has several checkpoints without a step: {names}; give one")
    return files[0] if files else None


def read_checkpoint_weights(
    path: str | os.PathLike, use_ema: bool | None = None, or_public: bool = False
) -> tuple[StateDict, dict | None]:
    """The generator's weights in a training checkpoint, memory-mapped, and its config if any.

    The file holds ``state_dict.gen_model``, ``ema_state_dict`` (if that is empty, the raw weights
    are taken, and a line says so) and, in ours, ``config``. ``use_ema`` None means yes, unless the
    environment has NOT_USE_EMA_MODEL=1. With ``or_public`` it may also be a public file, without a
    config: a state dict in .safetensors, .pt or .pth, in the latter two also as ``ema`` (taken
    first) or ``model`` in a dict.
    """
    path = Path(path)
    if or_public and path.suffix == ".safetensors":
        return bare(_read_safetensors(path), path), None
    content, is_trained = _read_content(path)
    if is_trained:
        if use_ema is None:
            use_ema = os.environ.get("NOT_USE_EMA_MODEL", "0") != "1"
        ema = content.get("ema_state_dict")
        if use_ema and not ema:
            logger.warning("%s has no EMA weights; taking the raw ones", path)
        weights = ema if use_ema and ema else content["state_dict"]["gen_model"]
        return bare(weights, path), content.get("config")
    # Public files: the average, if there is one beside the raw weights, or the weights alone.
    weights = content.get("ema", content.get("model", content)) if or_public else content
    weights = weights if isinstance(weights, dict) else content
    if or_public and weights and all(isinstance(value, Tensor) for value in weights.values()):
        return bare(weights, path), None
    also = ", and neither a state dict nor one as 'ema' or 'model'" if or_public else ""
    held = listed(sorted(map(str, weights))) or "nothing"
    raise ValueError(f"{path} holds {held}: no state_dict.gen_model of a training{also}")


def _read_content(path: Path) -> tuple[dict, bool]:
    """What a file of `torch.save` holds, and whether that is a training checkpoint."""
    content = read_torch_file(path)
    weights, config = content.get("state_dict"), content.get("config")
    is_trained = isinstance(weights, dict) and "gen_model" in weights
    if is_trained and not isinstance(config, dict | None):
        raise ValueError(f"{path} holds a {type(config).__name__} as its config")
    return content, is_trained


def _read_safetensors(path: Path) -> StateDict:
    try:
        with path.open("rb") as file:  # whose name may be no UTF-8
            return load_file(f"/dev/fd/{file.fileno()}")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def read_facts(path: Path, name: str) -> dict | None:
    """What a training checkpoint records under ``name``; None of a public file, or if nothing."""
    content, is_trained = ({}, False) if path.suffix == ".safetensors" else _read_content(path)
    return content.get(name) if is_trained else None


def read_folder(folder: Path, variant: str | None = None) -> tuple[StateDict, dict]:
    """Weights, in one file or several, and config of a Hugging Face folder; ValueError if none.

    As in diffusers, an index says which files there are, or else the one without a variant counts,
    or the only variant; ``variant`` asks for one by its name.
    """
    files, config = sorted(folder.glob(f"{_WEIGHTS}*")), folder / "config.json"
    if not config.is_file() or not files:
        raise ValueError(
            f"{folder} holds no model: expected .ckpt files, or config.json and {_WEIGHTS}"
        )
    # By variant, "" for none: the index of several files, or one file.
    whole = [file for file in files if not _PART.search(file.name)]
    whole.sort(key=lambda file: file.suffix == ".json")
    found = {_NO_VARIANT.sub("", file.name).lstrip("."): file for file in whole}
    names = [variant] if variant else [""] if "" in found else list(found)
    if len(names) != 1 or names[0] not in found:
        what = f"no variant {variant!r}" if variant else "no weights to choose"
        raise ValueError(
            f"{folder} has {what}: of {listed([file.name for file in files])}, give one by "
            f"variant=NAME, or keep one; parts need their {_STEM}.safetensors.index.json"
        )
    file = found[names[0]]
    if file.suffix != ".json":
        return _read_safetensors(file), read_json(config)
    # Each tensor is taken from the file that the index names.
    places = read_json(file).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(place, str) and Path(place).name == place for place in places.values()
    ):
        raise ValueError(f"{file} has no weight_map of tensors to files beside it")
    weights = {}
    for part in sorted({*places.values()}):
        if not (folder / part).is_file():
            raise ValueError(f"{file} names {part}, which is missing")
        found = _read_safetensors(folder / part)
        weights |= {k: v for k, v in found.items() if places.get(k) == part}
    return weights, read_json(config)


def find_weights(
    path: str | os.PathLike,
    subfolder: str | None = None,
    hub_options: dict | None = None,
    fits: Callable[[dict], bool] = bool,
) -> Path:
    """The file of weights, or Hugging Face folder, that ``path`` means.

    That is a file, a folder of checkpoints, a Hugging Face folder, the output of a pipeline, of
    which the last step counts whose config ``fits``, or a hub name, ``user/model``, which is
    downloaded if it is not cached. Several checkpoints without steps, or a hub name that
    cannot be had, are a ValueError; a local path that does not exist is a FileNotFoundError.
    """
    source = Path(path).expanduser()
    if not source.exists():
        source = download(str(path), ("*.json", "*.safetensors"), **hub_options or {})
    source = source / subfolder if subfolder else source
    if not is_folder(source):
        return source
    # The export of a flow is a pipeline of diffusers, with the network in a folder of its own.
    if (source / PIPELINE_INDEX).is_file() and (source / FLOW_FOLDER).is_dir():
        return source / FLOW_FOLDER
    if file := latest_checkpoint(source):
        return file
    # A pipeline's output: what the last of its steps trained that is wanted.
    for step in sorted(source.glob("steps/*/"), reverse=True):
        file = latest_checkpoint(step)
        if file and fits(read_facts(file, "config") or {}):
            return file
    return source


def download(name: str, patterns: Sequence[str], **hub_options) -> Path:
    """The folder of a model's files from the hub, or its cache; errors as of `find_weights`."""
    if name.startswith(DIFFUSERS):
        raise ValueError(f"{name}: models of diffusers serve to encode and decode, not for this")
    if not is_hub_name(name):
        raise FileNotFoundError(f"{name} does not exist (and is no hub name, user/model)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=[*patterns], **hub_options))
    except (HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{name} is no local path, and cannot be had from the Hugging Face hub: {reason}"
        ) from error


def hub_answers(name: str) -> bool:
    """Whether the Hugging Face hub, asked once for a model, says anything at all."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        HfApi().model_info(name, timeout=10)
    except HfHubHTTPError:
        return True  # no such model, or not for us: diffusers says which
    except (HTTPError, OSError):  # no connection, no answer in time, HF_HUB_OFFLINE
        return False
    return True


def config_of(source: Path) -> dict | None:
    """What describes weights, as `find_weights` gives them: in their file or beside it, or None."""
    folder = source if is_folder(source) else source.parent
    config = None if folder == source else read_facts(source, "config")
    beside = folder / "config.json"
    return read_json(beside) if config is None and beside.is_file() else config


def weights_fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's state dict: names, types, shapes and values, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy() if values.numel() else b"")
    return digest.hexdigest()


def listed(names: list[str]) -> str:
    """The names with commas between them, the first ten if they are more."""
    rest = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
