"""Weights on disk: training checkpoints, Hugging Face folders, public files, hub names."""

import hashlib
import json
import logging
import os
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]
logger = logging.getLogger(__name__)

_WEIGHTS = "diffusion_pytorch_model*.safetensors"
_FILES = (".ckpt", ".safetensors", ".pt", ".pth")
_MAX_LISTED = 10


def bare(state_dict: StateDict) -> StateDict:
    """The state dict without the leading ``module.`` that a DDP wrapper adds."""
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def latest_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The .ckpt file with the highest step at the end of its name, or None without any file.

    Files without a step (``best-psnr.ckpt``) count only where no file has one.

    Raises:
        ValueError: several files, and none with a step.
    """
    files = sorted(Path(folder).glob("*.ckpt"))
    steps = {file: re.search(r"\d+$", file.stem) for file in files}
    numbered = [file for file in files if steps[file]]
    if numbered:
        return max(numbered, key=lambda file: int(steps[file].group()))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{folder} has several checkpoints without a step: {names}; give one")
    return files[0] if files else None


def read_checkpoint_weights(
    path: str | os.PathLike, use_ema: bool | None = None
) -> tuple[StateDict, dict | None]:
    """The generator's weights in a training checkpoint; the optimizer's state is not read.

    Args:
        path: A .ckpt file: ``state_dict.gen_model``, ``ema_state_dict`` (may be empty, then the
            raw weights are taken and a line says so) and, in ours, ``config``.
        use_ema: None means yes, unless the environment has NOT_USE_EMA_MODEL=1.

    Returns:
        Weights under the bare model's keys, memory-mapped, and the config if the file has one.

    Raises:
        ValueError: not a readable training checkpoint.
        FileNotFoundError: no such file.
    """
    checkpoint = read_torch_file(Path(path))
    if not _is_training_checkpoint(checkpoint):
        raise ValueError(
            f"{path} is not a training checkpoint: no state_dict.gen_model in it, "
            f"but {listed(sorted(map(str, checkpoint)))}"
        )
    return _checkpoint_weights(path, checkpoint, use_ema)


def read_weights(path: str | os.PathLike) -> tuple[StateDict, dict | None]:
    """Weights of a training checkpoint, or of a public file that holds little else.

    Args:
        path: As for `read_checkpoint_weights`; or a state dict in a .safetensors, .pt or .pth
            file, the latter two also as ``ema`` (taken first) or ``model`` in a dict.

    Returns:
        As `read_checkpoint_weights`; public files have no config.

    Raises:
        ValueError: not a readable file of weights.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return bare(_read_safetensors(path)), None
    content = read_torch_file(path)
    if _is_training_checkpoint(content):
        return _checkpoint_weights(path, content)
    weights = content.get("ema", content.get("model", content))
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{path} holds no weights")
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"{path} holds neither a state dict nor one as 'ema' or 'model', "
            f"but {listed(sorted(map(str, weights)))}"
        )
    return bare(weights), None


def read_facts(path: Path, name: str) -> dict | None:
    """What a training checkpoint records under ``name``; None of a public file, or if nothing."""
    content = {} if path.suffix == ".safetensors" else read_torch_file(path)
    return content.get(name) if _is_training_checkpoint(content) else None


def find_weights(
    path: str | os.PathLike, subfolder: str | None = None, hub_options: dict | None = None
) -> Path:
    """The file of weights, or Hugging Face folder, that ``path`` means.

    Args:
        path: File, folder of checkpoints, Hugging Face folder or hub name, ``user/model``.
        subfolder: Folder inside ``path``.
        hub_options: For `huggingface_hub.snapshot_download`.

    Raises:
        ValueError: a folder of several checkpoints without steps, or a hub name that cannot be
            had.
        FileNotFoundError: a local path that does not exist.
    """
    found = _locate(path, hub_options or {})
    found = found / subfolder if subfolder else found
    return (latest_checkpoint(found) or found) if found.is_dir() else found


def read_folder(folder: Path) -> tuple[StateDict, dict]:
    """Weights, in one file or in shards, and config of a Hugging Face folder.

    Raises:
        ValueError: it is no such folder, or its JSON is broken.
    """
    files, config = sorted(folder.glob(_WEIGHTS)), folder / "config.json"
    if not config.is_file() or not files:
        raise ValueError(
            f"{folder} holds no model: expected .ckpt files, or config.json and {_WEIGHTS}"
        )
    weights = {key: value for file in files for key, value in _read_safetensors(file).items()}
    return weights, read_json(config)


def may_be_hub_name(path: str | os.PathLike) -> bool:
    """Whether a path that does not exist here could be a name on the hub, user/model."""
    # A folder of that name here means a mistyped local path, not a user of the hub.
    local = Path(path)
    is_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)) and not local.parent.exists()
    return bool(is_name) and local.suffix not in _FILES


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


def weights_fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's state dict: names, types, shapes and values, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy() if values.numel() else b"")
    return digest.hexdigest()


def config_beside(file: Path) -> dict:
    """The config.json in the file's folder.

    Raises:
        ValueError: there is none, or its JSON is broken.
    """
    beside = file.parent / "config.json"
    if not beside.is_file():
        raise ValueError(
            f"{file} embeds no config and has no config.json beside it; give model_config"
        )
    return read_json(beside)


def has_config(path: str | os.PathLike) -> bool:
    """Whether a model, as `find_weights` takes it, comes with a config: in it or beside it."""
    source = find_weights(path)
    if source.is_dir() or (source.parent / "config.json").is_file():
        return True
    return read_facts(source, "config") is not None


def read_json(path: str | os.PathLike) -> dict:
    """The object in a JSON file; ValueError if it is broken or holds anything else."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold one JSON object")
    return config


def listed(names: list[str]) -> str:
    """The names with commas between them, the first ten if they are more."""
    rest = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _checkpoint_weights(
    path: str | os.PathLike, checkpoint: dict, use_ema: bool | None = None
) -> tuple[StateDict, dict | None]:
    if use_ema is None:
        use_ema = os.environ.get("NOT_USE_EMA_MODEL", "0") != "1"
    weights = checkpoint["state_dict"]["gen_model"]
    if use_ema:
        ema = checkpoint.get("ema_state_dict")
        if ema:
            weights = ema
        else:
            logger.warning("%s has no EMA weights; taking the raw ones", path)
    return bare(weights), checkpoint.get("config")


def _is_training_checkpoint(content: dict) -> bool:
    weights = content.get("state_dict")
    return isinstance(weights, dict) and "gen_model" in weights


def read_torch_file(path: Path) -> dict:
    """The dict in a file of `torch.save`, on the CPU, memory-mapped, without running code in it.

    Raises:
        ValueError: not such a file, or it holds anything else.
        FileNotFoundError: no such file.
    """
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except OSError:
        raise
    except Exception as error:  # unpickling a damaged file raises almost anything
        hint = ""
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            hint = (
                f"it holds a {foreign[1]} beside its weights, and Python objects are not "
                "unpickled; if you trust it, save its state dict alone to another file: "
            )
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not a readable checkpoint: {hint}{what}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no weights, but a {type(content).__name__}")
    return content


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def _locate(path: str | os.PathLike, hub_options: dict) -> Path:
    """A local file or folder, downloaded first if ``path`` is a hub name."""
    local = Path(path).expanduser()
    if local.exists():
        return local
    name = str(path)
    if not may_be_hub_name(name):
        raise FileNotFoundError(f"{name} does not exist (and is no hub name, user/model)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    patterns = ["*.json", "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **hub_options))
    except (HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{name} is no local path, and cannot be had from the Hugging Face hub: {reason}"
        ) from error
