"""Base class of the autoencoders: from a checkpoint or a Hugging Face folder to a model."""

import inspect
import json
import logging
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from wfimagevae.model.registry import ModelRegistry

StateDict = dict[str, Tensor]
logger = logging.getLogger(__name__)

# Kernels of the Haar transform, which some checkpoints hold as buffers.
_HAAR_BUFFER = re.compile(r"wavelet_transform\w*\.(aa|ad|da|dd)$")
_WEIGHTS = "diffusion_pytorch_model*.safetensors"
_MAX_LISTED = 10


class ImageBaseAE(ModelMixin, ConfigMixin):
    """An image autoencoder that its config.json describes completely.

    Subclasses have ``encode(x)`` with ``.latent_dist``, ``decode(z)`` with ``.sample``,
    ``spatial_factor`` and ``last_layer``.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True

    @classmethod
    def from_config(cls, config: dict[str, Any] | str | os.PathLike, **overrides) -> "ImageBaseAE":
        """A new model with fresh weights.

        Args:
            config: The config, or a JSON file of it. Called on `ImageBaseAE`, its
                ``_class_name`` (a class or a registered name) chooses the model.
            overrides: Config keys to replace.

        Raises:
            ValueError: wrong or missing ``_class_name``, unknown keys, or values that the model
                refuses.
        """
        if not isinstance(config, dict):
            config = _read_json(Path(config))
        model_class = cls._resolve(config.get("_class_name"))
        options = {key: value for key, value in config.items() if not key.startswith("_")}
        options |= overrides
        known = inspect.signature(model_class.__init__).parameters.keys() - {"self"}
        if unknown := sorted(options.keys() - known):
            raise ValueError(
                f"{model_class.__name__} has no config key {', '.join(map(repr, unknown))}; "
                f"known: {', '.join(sorted(known))}"
            )
        return model_class(**options)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        model_config: str | os.PathLike | None = None,
        ignore_mismatched_sizes: bool = False,
        torch_dtype: torch.dtype | None = None,
        subfolder: str | None = None,
        **hub_options,
    ) -> "ImageBaseAE":
        """A model with trained weights, in eval mode.

        Args:
            path: A training checkpoint (.ckpt); a folder of them, of which the one with the
                highest step is taken; a Hugging Face folder; or a hub name, ``user/model``.
                Checkpoints give their EMA weights, unless the environment has
                NOT_USE_EMA_MODEL=1.
            model_config: JSON file with the config of a checkpoint that embeds none and has no
                config.json beside it; given, it wins over those.
            ignore_mismatched_sizes: Keep fresh weights where shapes differ, and warn.
            torch_dtype: Type of the parameters; None keeps float32.
            subfolder: Folder inside ``path`` that holds config.json.
            hub_options: For `huggingface_hub.snapshot_download`: revision, token, cache_dir,
                local_files_only.

        Raises:
            ValueError: not a checkpoint or model, no config, or weights that do not fit it.
            FileNotFoundError: a local path that does not exist.
        """
        folder = _locate(path, hub_options)
        folder = folder / subfolder if subfolder else folder
        file = latest_checkpoint(folder) if folder.is_dir() else folder
        if file is not None:
            state_dict, config = read_checkpoint_weights(file)
            config = _config_for(file, config, model_config)
        else:
            state_dict, config = _read_folder(folder), _read_json(folder / cls.config_name)
        model = cls.from_config(config)
        model.load_weights(state_dict, ignore_mismatched_sizes)
        if torch_dtype is not None:
            torch.nn.Module.to(model, torch_dtype)  # diffusers' own warns about nothing
        return model.eval()

    def load_weights(self, state_dict: StateDict, ignore_mismatched_sizes: bool = False) -> None:
        """Copies weights in; Haar buffers in them are passed over.

        Args:
            state_dict: The model's keys, with or without a leading ``module.``.
            ignore_mismatched_sizes: Keep this model's weights where shapes differ, and warn.

        Raises:
            ValueError: missing or unexpected keys, or shapes that differ; all are listed.
        """
        given = {key: v for key, v in bare(state_dict).items() if not _HAAR_BUFFER.search(key)}
        own = self.state_dict()
        shapes = [
            f"{key}: {tuple(given[key].shape)} in the file, {tuple(own[key].shape)} in the model"
            for key in sorted(given.keys() & own.keys())
            if given[key].shape != own[key].shape
        ]
        problems = {
            "missing": sorted(own.keys() - given.keys()),
            "unexpected": sorted(given.keys() - own.keys()),
            "of another shape": [] if ignore_mismatched_sizes else shapes,
        }
        if any(problems.values()):
            listed = "; ".join(f"{what}: {_listed(ks)}" for what, ks in problems.items() if ks)
            raise ValueError(f"weights do not fit {type(self).__name__}: {listed}")
        if shapes:
            logger.warning("fresh weights kept where shapes differ: %s", _listed(shapes))
            given = {key: v if v.shape == own[key].shape else own[key] for key, v in given.items()}
        self.load_state_dict(given)

    @classmethod
    def _resolve(cls, name: str | None) -> type["ImageBaseAE"]:
        """The class that a config's ``_class_name`` means, which must be ``cls`` or below it."""
        if name is None:
            if cls is ImageBaseAE:
                raise ValueError("the config has no _class_name; write WFVAE2ImageModel there")
            return cls
        model_class = ModelRegistry.get_model(name)
        if not (isinstance(model_class, type) and issubclass(model_class, cls)):
            raise ValueError(f"the config's _class_name is {name!r}, which is no {cls.__name__}")
        return model_class


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
    checkpoint = _read_ckpt(Path(path))
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict) or "gen_model" not in weights:
        raise ValueError(
            f"{path} is not a training checkpoint: no state_dict.gen_model in it, "
            f"but {_listed(sorted(map(str, checkpoint)))}"
        )
    if use_ema is None:
        use_ema = os.environ.get("NOT_USE_EMA_MODEL", "0") != "1"
    weights = weights["gen_model"]
    if use_ema:
        ema = checkpoint.get("ema_state_dict")
        if ema:
            weights = ema
        else:
            logger.warning("%s has no EMA weights; taking the raw ones", path)
    return bare(weights), checkpoint.get("config")


def _read_ckpt(path: Path) -> dict:
    try:
        checkpoint = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} is not a training checkpoint: it holds a {type(checkpoint)}")
    return checkpoint


def _read_json(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold one JSON object")
    return config


def _read_folder(folder: Path) -> StateDict:
    """Weights of a Hugging Face folder, in one file or in shards."""
    from safetensors.torch import load_file

    files = sorted(folder.glob(_WEIGHTS))
    if not (folder / "config.json").is_file() or not files:
        raise ValueError(
            f"{folder} holds no model: expected .ckpt files, or config.json and {_WEIGHTS}"
        )
    return {key: value for file in files for key, value in load_file(file).items()}


def _config_for(file: Path, embedded: dict | None, given: str | os.PathLike | None) -> dict:
    """The config of a checkpoint: given, else embedded, else config.json beside it."""
    if given is not None:
        return _read_json(Path(given))
    if embedded is not None:
        return embedded
    beside = file.parent / "config.json"
    if not beside.is_file():
        raise ValueError(
            f"{file} embeds no config and has no config.json beside it; give model_config"
        )
    return _read_json(beside)


def _locate(path: str | os.PathLike, hub_options: dict) -> Path:
    """A local file or folder, downloaded first if ``path`` is a hub name."""
    local = Path(path).expanduser()
    if local.exists():
        return local
    name = str(path)
    # A folder of that name here means a mistyped local path, not a user of the hub.
    is_hub_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not local.parent.exists()
    if not is_hub_name or local.suffix in (".ckpt", ".safetensors", ".pt"):
        raise FileNotFoundError(f"{name} does not exist (and is no hub name, user/model)")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"], **hub_options))


def _listed(names: list[str]) -> str:
    rest = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
