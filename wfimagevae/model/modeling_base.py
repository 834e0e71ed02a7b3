"""Base class of all networks: from a config, a checkpoint or a Hugging Face folder to a model."""

import inspect
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from wfimagevae.files import read_json
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
            config = read_json(config)
        model_class = cls._resolve(config.get("_class_name"))
        options = {key: value for key, value in config.items() if not key.startswith("_")}
        options.pop("auto_map", None)  # of diffusers: where an export has its code
        options |= overrides
        keys = inspect.signature(model_class.__init__).parameters.keys() - {"self"}
        if unknown := sorted(options.keys() - keys):
            raise ValueError(
                f"{model_class.__name__} has no config key {', '.join(map(repr, unknown))}; "
                f"known: {', '.join(sorted(keys))}"
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
        model_name: str | None = None,
        overrides: dict | None = None,
        **hub_options,
    ) -> Self:
        """A model with trained weights, in eval mode.

        Args:
            path: A training checkpoint (.ckpt); a folder of them, of which the one with the highest
                step is taken; a Hugging Face folder; or a hub name, ``user/model``. Checkpoints
                give their EMA weights, unless the environment has NOT_USE_EMA_MODEL=1. Of velocity
                networks also a public SiT or DiT file: a state dict, or one as ``ema`` or
                ``model``, in .pt, .pth or .safetensors.
            model_config: JSON file with a checkpoint's config; wins over one in it or beside it.
            ignore_mismatched_sizes: Keep fresh weights where shapes differ, also where either side
                alone has classes, and warn.
            torch_dtype: Type of the parameters; None keeps float32.
            subfolder: Folder inside ``path`` that holds config.json.
            model_name: Registered name of the size of a public file, which has no config; passed
                over where there is one. The rest is read off the shapes; a file called DiT...
                predicts ``epsilon``, any other ``velocity``.
            overrides: Config keys that win over all that. Of a velocity network,
                ``average_velocity=True`` for weights without it adds a fresh embedder of the end
                time, and ``text_encoder`` fresh parameters that read texts; neither changes
                anything at first, but for ``text_attention="joint"``.
            hub_options: For `huggingface_hub.snapshot_download`: revision, token, cache_dir,
                local_files_only.

        Weights that do not fit, or no config, are a ValueError; a local path that does not exist is
        a FileNotFoundError.
        """
        # Where the weights are, and what describes them.
        source = find_weights(path, subfolder, hub_options)
        if source.is_dir():
            weights, embedded = read_folder(source)
        else:
            weights, embedded = read_checkpoint_weights(source, or_public=cls._reads_public_files)
        overrides = overrides or {}
        if embedded is None and model_config is None and model_name:
            config = cls._config_of_public_file(source, weights, model_name)
        else:
            config = cls._config_for(source, embedded, model_config)
        model = cls.from_config(config, **overrides)
        # Parts that the model has, and that the weights need not have, start fresh.
        for is_part, message in model._optional_parts(embedded or {}, overrides):
            fresh = {key: value for key, value in model.state_dict().items() if is_part(key)}
            if fresh and not any(map(is_part, weights)):
                logger.info(message)
                weights = weights | fresh
        model.load_weights(weights, ignore_mismatched_sizes)
        if torch_dtype is not None:
            torch.nn.Module.to(model, torch_dtype)  # diffusers' own warns about nothing
        return model.eval()

    @classmethod
    def _config_of_public_file(cls, source: Path, weights: StateDict, model_name: str) -> dict:
        raise ValueError(f"{source} has no config; model_name is for public SiT and DiT files")

    def _optional_parts(
        self, embedded: dict, overrides: dict
    ) -> list[tuple[Callable[[str], bool], str]]:
        """Which keys are of a part that weights with that config may lack, and what to say then."""
        return []

    def load_weights(self, state_dict: StateDict, ignore_mismatched_sizes: bool = False) -> None:
        """Copies weights in, with or without a leading ``module.`` before their keys.

        ``ignore_mismatched_sizes`` keeps this model's weights where shapes differ, and warns.
        Otherwise these, and missing and unexpected keys, are a ValueError that lists them all.
        """
        weights, own = bare(state_dict), self.state_dict()
        if self._passed_over:
            weights = {key: v for key, v in weights.items() if not self._passed_over.search(key)}
        # All that does not fit is told at once.
        shapes = [
            f"{key}: {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the model"
            for key in sorted(weights.keys() & own.keys())
            if weights[key].shape != own[key].shape
        ]
        problems = {
            "missing": sorted(own.keys() - weights.keys()),
            "unexpected": sorted(weights.keys() - own.keys()),
            "of another shape": [] if ignore_mismatched_sizes else shapes,
        }
        if any(problems.values()):
            text = "; ".join(f"{what}: {listed(keys)}" for what, keys in problems.items() if keys)
            raise ValueError(f"weights do not fit {type(self).__name__}: {text}")
        if shapes:
            logger.warning("fresh weights kept where shapes differ: %s", listed(shapes))
            weights = {k: v if v.shape == own[k].shape else own[k] for k, v in weights.items()}
        self.load_state_dict(weights)

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
    def _resolve(cls, name: str | None) -> type[Self]:
        """The class that a config's ``_class_name`` means, which must be ``cls`` or below it."""
        if name is None:
            if RegisteredModel in (cls, *cls.__bases__):
                raise ValueError("the config has no _class_name; write the model's class there")
            return cls
        model_class = ModelRegistry.get_model(name)
        if not (isinstance(model_class, type) and issubclass(model_class, cls)):
            raise ValueError(f"the config's _class_name is {name!r}, which is no {cls.__name__}")
        return model_class

    @classmethod
    def _config_for(
        cls, source: Path, embedded: dict | None, model_config: str | os.PathLike | None
    ) -> dict:
        """The config of a checkpoint: ``model_config``, else embedded, else beside it."""
        if model_config is None:
            return config_beside(source, cls._no_config) if embedded is None else embedded
        if source.is_dir():
            raise ValueError(
                f"model_config {model_config} is of no use to {source}: a Hugging Face folder's "
                "own config.json counts; leave model_config out"
            )
        if embedded and "_class_name" in embedded:
            cls._resolve(embedded["_class_name"])  # no config makes another kind of network fit
        return read_json(model_config)
