"""Models on disk: Hugging Face folders and training checkpoints, loaded strictly.

Haar kernels, which some files hold and averaged weights never do, are constants and passed over.
"""

import dataclasses
import json
import logging
import os
import re
import zipfile
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = "diffusion_pytorch_model.safetensors"
HAAR_KERNEL = re.compile(r"wavelet_trans?form\w*\.([ad]{2}|g?h?h?(_v)?)(_conv\.conv\.weight)?$")
# An older generation counts levels from the pixels on; renamed in this order.
OLDER_NAMES = ((".connect_l2.", ".connect_l1."), (".connect_l3.", ".connect_l2."))
MAX_LENGTH = 400  # of what a message lists
logger = logging.getLogger(__name__)


def read_model(cls: type[nn.Module], path: str | os.PathLike) -> nn.Module:
    """The model of a Hugging Face folder, of a .ckpt file or of a folder with one, to evaluate.

    No model there, or weights that do not fit the class, which are listed, are a ValueError.
    """
    file = find_weights(Path(path))
    name, config = read_config(file)
    if name not in (None, cls.__name__):
        raise ValueError(f"{file} is of a {name}, not of a {cls.__name__}")
    known = {field.name for field in dataclasses.fields(cls.config_class)}
    if unknown := [key for key in config if key not in known and not key.startswith("_")]:
        logger.warning("config.json: passed over unknown keys: %s", ", ".join(unknown))
    try:
        model = cls(**{key: value for key, value in config.items() if key in known})
        lengths = {key: len(getattr(model.config, key)) for key in ("scale", "shift")}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"config.json beside {file} describes no {cls.__name__}: {error}"
        ) from error
    for key, length in lengths.items():
        if length != model.config.latent_dim:
            text = "config.json: %s has %d entries for %d latent channels; only training uses it"
            logger.warning(text, key, length, model.config.latent_dim)
    load_strictly(model, read_weights(file), file)
    return model.eval()


def find_weights(path: Path) -> Path:
    """The file of weights that a path means: in a folder a .ckpt, before the .safetensors."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path} does not exist (hub: hf download OWNER/NAME --local-dir DIR)")
    checkpoints = sorted(path.glob("*.ckpt"))
    if len(checkpoints) > 1:
        names = ", ".join(file.name for file in checkpoints)
        raise ValueError(f"{path} has several checkpoints, {names}; give one by its name")
    if not checkpoints and not (path / WEIGHTS).is_file():
        raise ValueError(f"{path} holds no model: expected a .ckpt file, or {WEIGHTS}")
    return checkpoints[0] if checkpoints else path / WEIGHTS


def read_config(weights: Path) -> tuple[str | None, dict[str, Any]]:
    """The class that the config.json beside a file of weights names, if it does, and its keys."""
    path = weights.with_name("config.json")
    if not path.is_file():
        raise ValueError(f"{path} is missing: {weights.name} does not say its model's sizes")
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no JSON object: {error}") from None
    name = config.pop("_class_name", None)
    return name and str(name).removesuffix("Model"), config


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: bare, or of a training checkpoint its moving average (EMA).

    The environment variable NOT_USE_EMA_MODEL asks for the raw weights.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mmap = zipfile.is_zipfile(path)  # reads no optimizer state
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # unpickling a damaged file raises almost anything
        raise ValueError(f"{path} holds no readable weights: {type(error).__name__}") from error
    weights = content
    if isinstance(content, dict):
        weights = content.get("state_dict", content)
        weights = weights.get("gen_model", weights) if isinstance(weights, dict) else weights
        if os.environ.get("NOT_USE_EMA_MODEL", "0") in ("", "0"):
            weights = content.get("ema_state_dict") or weights
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{path} holds no state dict, but {shorten(str(content), MAX_LENGTH)}")
    return {key.removeprefix("module."): value for key, value in weights.items()}


def load_strictly(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Loads a state dict that has the model's names and shapes, or raises ValueError."""
    weights = {key: value for key, value in weights.items() if not HAAR_KERNEL.search(key)}
    if any(".connect_l3." in key for key in weights):
        logger.warning("%s: older names, connect_l2 and connect_l3 read as l1 and l2", source)
        for old, new in OLDER_NAMES:
            weights = {key.replace(old, new): value for key, value in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{source}: {shorten(str(error), MAX_LENGTH)}") from None
