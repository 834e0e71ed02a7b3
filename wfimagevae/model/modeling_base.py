"""Base class of all networks: from a config, a checkpoint or a Hugging Face folder to a model."""

import contextlib
import inspect
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from wfimagevae.files import read_json
from wfimagevae.model.config_values import check_config_values
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.weight_files import (
    StateDict,
    bare,
    config_beside,
    find_weights,
    listed,
    read_checkpoint_weights,
    read_folder,
)

logger = logging.getLogger(__name__)
_HUB_WORDS = {"revision", "token", "cache_dir", "local_files_only", "force_download"}
_MEMORY_WORDS = {
    "low_cpu_mem_usage",
    "use_safetensors",
    "disable_mmap",
    "max_memory",
    "offload_folder",
    "offload_state_dict",
}
# Diffusers hands these on also where nobody asks for them.
_NOT_SERVED = {"proxies", "quantization_config", "use_flashpack"}


class CheckpointedBlocks(nn.Module):
    """Runs blocks, each recomputed in backward if diffusers' switch is on."""

    gradient_checkpointing = False

    def run(self, block: nn.Module, *args):
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)


class RegisteredModel(ModelMixin, ConfigMixin):
    """A network that its config.json describes completely.

    Its direct subclasses are the kinds of network; called on one of these, `from_config` and
    `from_pretrained` take the class from the config.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True
    # Keys that some files hold and the model does not.
    _passed_over: ClassVar[re.Pattern | None] = None
    # What a config may hold beside the arguments: it names remote code, or follows from them.
    _derived_keys: ClassVar[set[str]] = {"auto_map"}
    _reads_public_files = False
    _no_config = "give model_config"  # what to do about a file without one

    @classmethod
    def from_config(cls, config: dict[str, Any] | str | os.PathLike, **overrides) -> Self:
        """A new model with fresh weights, of a config or its JSON file; ``overrides`` win over it.

        Called on a kind of network, the config's ``_class_name`` chooses the model: a class's name,
        a registered name, or ``package.module:Class``. It is a ValueError if that is wrong or
        missing, for unknown keys, and for values that the model refuses.
        """
        if not isinstance(config, dict):
            with naming(config):
                return cls.from_config(read_json(config), **overrides)
        model_class = cls._resolve(config.get("_class_name"))
        known = inspect.signature(model_class.__init__).parameters.keys() - {"self"}
        # Beside the arguments there may be what diffusers writes, and what follows from them.
        options = {key: value for key, value in config.items() if not key.startswith("_")}
        also = (model_class._derived_keys & options.keys()) - known
        derived = {key: options.pop(key) for key in also}
        options |= overrides
        if unknown := sorted(options.keys() - known):
            raise ValueError(
                f"{model_class.__name__} has no config key {', '.join(map(repr, unknown))}; "
                f"known: {', '.join(sorted(known))}"
            )
        try:
            model = model_class(**options)
        except (TypeError, RuntimeError, ArithmeticError, LookupError, MemoryError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{model_class.__name__} cannot be built: {reason}") from error
        for key in () if overrides else derived.keys() - {"auto_map"}:
            if json.dumps(derived[key]) != json.dumps(own := model.config.get(key)):
                raise ValueError(
                    f"config key {key!r} is {derived[key]}, but {own} follows from the model's "
                    "own keys: change those, and leave it out"
                )
        return model

    def register_to_config(self, **values) -> None:
        """As diffusers', which its decorator calls before ``__init__`` runs; checks the values."""
        check_config_values(type(self).__init__, values)
        super().register_to_config(**values)

    @classmethod
    def from_pretrained(  # noqa: PLR0913 - diffusers' words beside ours
        cls,
        path: str | os.PathLike,
        model_config: str | os.PathLike | None = None,
        ignore_mismatched_sizes: bool = False,
        torch_dtype: torch.dtype | None = None,
        subfolder: str | None = None,
        model_name: str | None = None,
        overrides: dict | None = None,
        *,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        device_map: str | int | torch.device | dict | None = None,
        output_loading_info: bool = False,
        **others,
    ) -> Self | tuple[Self, dict[str, list]]:
        """A model with trained weights, in eval mode.

        Args:
            path: A training checkpoint (.ckpt); a folder of them, of which the one with the highest
                step is taken; a Hugging Face folder; a pipeline's output folder; or a hub name,
                ``user/model``. Checkpoints give their EMA weights, unless the environment has
                NOT_USE_EMA_MODEL=1. Of velocity networks also a public SiT or DiT file: a state
                dict, or one as ``ema`` or ``model``, in .pt, .pth or .safetensors.
            model_config: JSON file with a checkpoint's config; wins over one in it or beside it.
            ignore_mismatched_sizes: Keep fresh weights where shapes differ, also where either side
                alone has classes, and warn.
            dtype: Type of the parameters, also as ``torch_dtype``; None keeps float32.
            variant: Which file of weights of a folder, ``fp16`` for one called
                diffusion_pytorch_model.fp16.safetensors. None is the one without a variant, or the
                only one.
            device_map: A device for the whole model, or ``auto``, the accelerator if there is one.
            output_loading_info: Give the model and a dict of lists: ``missing_keys``, which start
                fresh, ``unexpected_keys``, passed over, ``mismatched_keys`` and ``error_msgs``.
            subfolder: Folder inside ``path`` that holds config.json.
            model_name: Registered name of the size of a public file, which has no config; passed
                over where there is one. The rest is read off the shapes; a file called DiT...
                predicts ``epsilon``, any other ``velocity``.
            overrides: Config keys that win over all that. Of a velocity network,
                ``average_velocity=True`` for weights without it adds a fresh embedder of the end
                time, and ``text_encoder`` fresh parameters that read texts; neither changes
                anything at first, but for ``text_attention="joint"``.
            others: revision, token, cache_dir, local_files_only and force_download, of the hub, and
                diffusers' ways to save memory and time while it loads, which change no result.

        Weights that do not fit, no config, or a word that is none of these, are a ValueError; a
        local path that does not exist is a FileNotFoundError.
        """
        dtype, device = dtype or torch_dtype, _one_device(device_map)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype must be a torch.dtype such as torch.float16, got {dtype!r}")
        # Where the weights are, and what describes them.
        source = find_weights(path, subfolder, _hub_options(others), cls.describes)
        if source.is_dir():
            weights, embedded = read_folder(source, variant)
        elif variant:
            raise ValueError(f"variant {variant!r} of {source}: only folders have variants")
        else:
            weights, embedded = read_checkpoint_weights(source, or_public=cls._reads_public_files)
        overrides = overrides or {}
        if embedded is None and model_config is None and model_name:
            config, place = cls._config_of_public_file(source, weights, model_name), source
        else:
            config, place = cls._config_for(source, embedded, model_config)
        with naming(place):
            model = cls.from_config(config, **overrides)
        # Parts that the model has, and that the weights need not have, start fresh.
        missing = []
        for is_part, message in model._optional_parts(embedded or {}, overrides):
            fresh = {key: value for key, value in model.state_dict().items() if is_part(key)}
            if fresh and not any(map(is_part, weights)):
                logger.info(message)
                weights, missing = weights | fresh, [*missing, *fresh]
        with naming(source):
            info = model.load_weights(weights, ignore_mismatched_sizes)
        nn.Module.to(model, device, dtype)  # diffusers' own warns about nothing
        if device is not None:
            model.hf_device_map = {"": device}
        info = {"missing_keys": missing, **info, "error_msgs": []}
        return (model.eval(), info) if output_loading_info else model.eval()

    @classmethod
    def _config_of_public_file(cls, source: Path, weights: StateDict, model_name: str) -> dict:
        raise ValueError(f"{source} has no config; model_name is for public SiT and DiT files")

    def _optional_parts(
        self, embedded: dict, overrides: dict
    ) -> list[tuple[Callable[[str], bool], str]]:
        """Which keys are of a part that weights with that config may lack, and what to say then."""
        return []

    def load_weights(
        self, state_dict: StateDict, ignore_mismatched_sizes: bool = False
    ) -> dict[str, list]:
        """Copies weights in, whatever wrappers their keys tell of; gives those that were left out.

        ``ignore_mismatched_sizes`` keeps this model's weights where shapes differ, and warns.
        Otherwise these, and missing and unexpected keys, are a ValueError that lists them all.
        """
        own = self.state_dict()
        names = dict(zip(bare(own), own, strict=True))  # a wrapper's name may be a part's too
        weights = {names.get(key, key): value for key, value in bare(state_dict).items()}
        passed = [key for key in weights if self._passed_over and self._passed_over.search(key)]
        weights = {key: value for key, value in weights.items() if key not in passed}
        # All that does not fit is told at once.
        differ = [
            (key, tuple(weights[key].shape), tuple(own[key].shape))
            for key in sorted(weights.keys() & own.keys())
            if weights[key].shape != own[key].shape
        ]
        shapes = [f"{key}: {there} in the file, {here} in the model" for key, there, here in differ]
        problems = {
            "missing": sorted(own.keys() - weights.keys()),
            "unexpected": sorted(weights.keys() - own.keys()),
            "of another shape": [] if ignore_mismatched_sizes else shapes,
        }
        if any(problems.values()):
            text = "; ".join(f"{what}: {listed(keys)}" for what, keys in problems.items() if keys)
            if shapes and not problems["missing"] + problems["unexpected"]:
                flag = "--ignore_mismatched_sizes (in Python, ignore_mismatched_sizes=True)"
                text += f"; {flag} starts these afresh"
            raise ValueError(f"weights do not fit {type(self).__name__}: {text}")
        if shapes:
            logger.warning("fresh weights kept where shapes differ: %s", listed(shapes))
            weights = {k: v if v.shape == own[k].shape else own[k] for k, v in weights.items()}
        self.load_state_dict(weights)
        return {"unexpected_keys": passed, "mismatched_keys": differ}

    def own_config(self) -> dict[str, Any]:
        """The arguments of ``__init__``, which are all that brings the network back."""
        return {k: v for k, v in self._internal_dict.items() if not k.startswith("_")}

    @classmethod
    def class_name(cls) -> str:
        """What config.json calls the class: its name; ``module:Class`` if it is a user's own."""
        # FSDP2 puts a class of its own in front.
        own = next(base for base in cls.__mro__ if not base.__module__.startswith("torch."))
        if own.__module__.startswith("wfimagevae."):
            return own.__name__
        return f"{own.__module__}:{own.__name__}"

    def to_json_string(self) -> str:
        config = json.loads(super().to_json_string()) | {"_class_name": self.class_name()}
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def check_own_config(cls, name: str) -> None:
        """Raises ValueError for a class whose config would say nothing of its arguments."""
        if not hasattr(cls.__init__, "__wrapped__"):
            raise ValueError(
                f"model {name!r}: decorate its __init__ with "
                "diffusers.configuration_utils.register_to_config, so that config.json holds its "
                "arguments"
            )

    @classmethod
    def describes(cls, config: dict) -> bool:
        """Whether a config is that of one of these."""
        try:
            return bool(config) and cls._resolve(config.get("_class_name")) is not None
        except ValueError:
            return False

    @classmethod
    def _resolve(cls, name: str | None) -> type[Self]:
        """The class that a config's ``_class_name`` means, which must be ``cls`` or below it."""
        if name is None:
            if RegisteredModel in (cls, *cls.__bases__):
                raise ValueError("the config has no _class_name; write the model's class there")
            return cls
        kind = cls if RegisteredModel in cls.__bases__ else RegisteredModel
        with naming("config key '_class_name'"):
            model_class = ModelRegistry.get_model(name, kind)
        if not (isinstance(model_class, type) and issubclass(model_class, cls)):
            raise ValueError(f"the config's _class_name is {name!r}, which is no {cls.__name__}")
        return model_class

    @classmethod
    def _config_for(
        cls, source: Path, embedded: dict | None, model_config: str | os.PathLike | None
    ) -> tuple[dict, Path]:
        """A checkpoint's config, and its file: ``model_config``, else embedded, else beside it."""
        if model_config is None and embedded is None:
            return config_beside(source, cls._no_config), source.parent / "config.json"
        if model_config is None:
            return embedded, source / "config.json" if source.is_dir() else source
        if source.is_dir():
            raise ValueError(
                f"model_config {model_config} is of no use to {source}: a Hugging Face folder's "
                "own config.json counts; leave model_config out"
            )
        if embedded and "_class_name" in embedded:
            cls._resolve(embedded["_class_name"])  # no config makes another kind of network fit
        return read_json(model_config), Path(model_config)


@contextlib.contextmanager
def naming(file: str | os.PathLike) -> Iterator[None]:
    """Puts the file's name before a ValueError that does not have it."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file}: {error}") from error


def _hub_options(words: dict[str, Any]) -> dict[str, Any]:
    """Those of the hub among `RegisteredModel.from_pretrained`'s other words, checked."""
    unasked = {key for key in _NOT_SERVED & words.keys() if not words[key]}
    if unknown := sorted(words.keys() - _HUB_WORDS - _MEMORY_WORDS - unasked):
        raise ValueError(
            f"from_pretrained() does not take {', '.join(unknown)}; beside its own arguments it "
            f"knows {', '.join(sorted(_HUB_WORDS | _MEMORY_WORDS))}"
        )
    if words.get("use_safetensors") is False:
        raise ValueError("use_safetensors=False: folders are read from .safetensors files alone")
    return {key: words[key] for key in _HUB_WORDS & words.keys() if words[key] is not None}


def _one_device(device_map: str | int | torch.device | dict | None) -> torch.device | None:
    """The device that diffusers' ``device_map`` puts a whole model on; None is where it is."""
    given = device_map.get("") if isinstance(device_map, dict) else device_map
    if given in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        if given is not None or device_map is None:
            return None if given is None else torch.device(given)
    except RuntimeError:
        pass
    raise ValueError(
        f"device_map must be one device, such as 'cuda:0', or 'auto', got {device_map!r}: these "
        "models are not split"
    )
