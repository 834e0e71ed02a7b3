"""Base class of all networks: from a config, a checkpoint or a Hugging Face folder to a model."""

import contextlib
import inspect
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from wfimagevae.files import is_folder, read_config, read_json
from wfimagevae.model.registry import ModelRegistry, fits, in_words
from wfimagevae.model.weight_files import (
    StateDict,
    bare,
    config_of,
    find_weights,
    listed,
    read_checkpoint_weights,
    read_folder,
)

logger = logging.getLogger(__name__)
_HUB_WORDS = {"revision", "token", "cache_dir", "local_files_only", "force_download"}
_MEMORY_WORDS = {"low_cpu_mem_usage", "use_safetensors", "disable_mmap"}
_MEMORY_WORDS |= {"max_memory", "offload_folder", "offload_state_dict"}
# Diffusers hands these on also where nobody asks for them.
_NOT_SERVED = {"proxies", "quantization_config", "use_flashpack"}


# So often is a function compiled before Dynamo runs it eagerly; by itself 8 times. Each block of a
# class at each size counts, in training, in evaluation and without gradients.
_RECOMPILE_LIMIT = 1024


def compile_each(modules: Iterable[nn.Module], mode: str | None = None) -> None:
    """Compiles modules in place, as `torch.compile` does; names in the state dict stay.

    Each size of input is compiled by itself.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _RECOMPILE_LIMIT)
    limit = 4 * _RECOMPILE_LIMIT  # of all functions together
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, limit)
    for module in modules:
        module.compile(mode=mode, dynamic=False)


class CheckpointedBlocks(nn.Module):
    """Runs blocks, each recomputed in backward if diffusers' switch is on."""

    gradient_checkpointing = False

    @property
    def run(self) -> Callable:
        """What calls a block in one pass: ``run(block, *args)``."""
        recomputes = self.gradient_checkpointing and torch.is_grad_enabled()
        return self._gradient_checkpointing_func if recomputes else nn.Module.__call__


class RegisteredModel(ModelMixin, ConfigMixin):
    """A network that its config.json describes completely.

    Its direct subclasses are the kinds of network; called on one of these, `from_config` and
    `from_pretrained` take the class from the config.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True
    # Keys that some files hold and the model does not.
    _passed_over: ClassVar[re.Pattern | None] = None
    # Parts that the weights or the model may lack, where other sizes are allowed.
    _resized: ClassVar[set[str]] = set()
    # Of kinds that read public files, which have no config: what makes one of a registered name.
    _config_of_public_file: ClassVar[Callable[[Path, StateDict, str], dict] | None] = None

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
        given = {k: v for k, v in config.items() if not k.startswith("_") and k != "auto_map"}
        given |= overrides
        try:
            model = model_class(**{key: value for key, value in given.items() if key in known})
        except (TypeError, RuntimeError, ArithmeticError, LookupError, MemoryError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{model_class.__name__} cannot be built: {reason}") from error
        others = given.keys() - known
        if unknown := sorted(others - model.config.keys()):
            raise ValueError(
                f"{model_class.__name__} has no config key {', '.join(map(repr, unknown))}; "
                f"known: {', '.join(sorted(known))}"
            )
        for key in () if overrides else sorted(others):
            if json.dumps(given[key]) != json.dumps(own := model.config[key]):
                raise ValueError(
                    f"config key {key!r} is {given[key]}, but {own} follows from the model's "
                    "own keys: change those, and leave it out"
                )
        return model

    def register_to_config(self, **values) -> None:
        """As diffusers', which its decorator calls before ``__init__`` runs.

        Values that are not what ``__init__`` is annotated with are a ValueError, naming the key.
        """
        hints = {}
        with contextlib.suppress(NameError):  # a user's module imports types for checkers alone
            hints = get_type_hints(type(self).__init__, include_extras=True)
        for key, value in values.items():
            kind = hints.get(key, Any)
            if not fits(value, kind):
                raise ValueError(f"config key {key!r} must be {in_words(kind)}, got {value!r}")
        super().register_to_config(**values)

    @classmethod
    def from_pretrained(  # noqa: PLR0913 - diffusers' words beside ours
        cls,
        path: str | os.PathLike,
        model_config: dict | str | os.PathLike | None = None,
        ignore_mismatched_sizes: bool = False,
        torch_dtype: torch.dtype | None = None,
        subfolder: str | None = None,
        model_name: str | None = None,
        overrides: dict | None = None,
        *,
        use_ema: bool | None = None,
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
                ``user/model``. Of velocity networks also a public SiT or DiT file: a state dict, or
                one as ``ema`` or ``model``, in .pt, .pth or .safetensors.
            use_ema: Of a checkpoint, take the EMA weights; None means yes, unless the environment
                has NOT_USE_EMA_MODEL=1.
            model_config: A checkpoint's config, or its JSON file; wins over one in it or beside it.
            ignore_mismatched_sizes: Keep fresh weights where shapes differ, also where either side
                alone has classes, and warn.
            dtype: Type of the parameters, also as ``torch_dtype``; None keeps float32.
            variant: Which weights of a folder: ``fp16`` for those whose name says .fp16., None for
                those without a variant, or the only ones.
            device_map: A device for the whole model, or ``auto``, the accelerator if there is one.
            output_loading_info: Give the model and a dict of lists: ``missing_keys``, which start
                fresh, ``unexpected_keys``, passed over, ``mismatched_keys`` and ``error_msgs``.
            subfolder: Folder inside ``path`` that holds config.json.
            model_name: Registered name of the size of a public file, which has no config. The rest
                is read off the shapes; a file called DiT... predicts ``epsilon``, not ``velocity``.
            overrides: Config keys that win over all that. Of a velocity network,
                ``average_velocity=True`` for weights without it adds a fresh embedder of the end
                time, and ``text_encoder`` fresh parameters that read texts; neither changes
                anything at first, but for ``text_attention="joint"``.
            others: revision, token, cache_dir, local_files_only and force_download, of the hub, and
                diffusers' ways to save memory and time while it loads, which change no result.

        Weights that do not fit, no config, and unknown words are a ValueError, a local path that
        does not exist is a FileNotFoundError.
        """
        dtype, device = dtype or torch_dtype, _one_device(device_map)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype must be a torch.dtype such as torch.float16, got {dtype!r}")
        # Where the weights are, and what describes them.
        source = find_weights(path, subfolder, _hub_options(others), cls.describes)
        words = variant, model_config, model_name, use_ema
        weights, embedded, config, place = cls._read(source, *words)
        overrides = overrides or {}
        with naming(place):
            model = cls.from_config(config, **overrides)
        # Parts that the model has, and that the weights need not have, start fresh.
        missing = []
        for is_part, message in model._optional_parts(embedded, overrides):
            fresh = {key: value for key, value in model.state_dict().items() if is_part(key)}
            if fresh and not any(map(is_part, weights)):
                logger.info(message)
                weights, missing = weights | fresh, [*missing, *fresh]
        with naming(source):
            info = model.load_weights(weights, ignore_mismatched_sizes)
        info |= {"missing_keys": missing, "error_msgs": []}
        nn.Module.to(model, device, dtype)  # diffusers' own warns about nothing
        if device is not None:
            model.hf_device_map = {"": device}
        return (model.eval(), info) if output_loading_info else model.eval()

    @classmethod
    def _read(
        cls,
        source: Path,
        variant: str | None,
        model_config: dict | str | None,
        model_name: str | None,
        use_ema: bool | None,
    ) -> tuple[StateDict, dict, dict, Path]:
        """Weights, the config that came with them if any, the one that counts, and its file."""
        if is_folder(source):
            weights, config, place = *read_folder(source, variant), source / "config.json"
        elif variant:
            raise ValueError(f"variant {variant!r} of {source}: only folders have variants")
        else:
            is_public = cls._config_of_public_file is not None
            weights, config = read_checkpoint_weights(source, use_ema, is_public)
            place = source
        embedded = config or {}
        if model_config and is_folder(source):
            raise ValueError(
                f"model_config {model_config} is of no use to {source}: a Hugging Face folder's "
                "own config.json counts; leave model_config out"
            )
        if model_config:
            if embedded:  # no config makes another kind of network fit
                cls._resolve(embedded.get("_class_name"))
            config = read_config(model_config)
            place = source if isinstance(model_config, dict) else model_config
        elif config is None and model_name and is_public:
            config = cls._config_of_public_file(source, weights, model_name)
        elif config is None:
            config, place = config_of(source), source.parent / "config.json"
        if config is None:
            also = ", or name the size of a public file: --model_name DiT-XL/2" if is_public else ""
            what = f"{source} embeds no config and has no config.json beside it"
            raise ValueError(f"{what}: give model_config{also}")
        return weights, embedded, config, place

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
        sizes = {
            key: [tuple(side[key].shape) if key in side else "nothing" for side in (weights, own)]
            for key in sorted(weights.keys() | own.keys())
        }
        alone = (weights.keys() ^ own.keys()) - self._resized
        differ = {k: (a, b) for k, (a, b) in sizes.items() if a != b and k not in alone}
        shapes = [f"{k}: {a} in the file, {b} in the model" for k, (a, b) in differ.items()]
        problems = {
            "missing": sorted(alone & own.keys()),
            "unexpected": sorted(alone & weights.keys()),
            "of another shape": [] if ignore_mismatched_sizes else shapes,
        }
        if any(problems.values()):
            text = "; ".join(f"{what}: {listed(keys)}" for what, keys in problems.items() if keys)
            if shapes and not alone:
                flag = "--ignore_mismatched_sizes (in Python, ignore_mismatched_sizes=True)"
                text += f"; add {flag} to start these afresh"
            raise ValueError(f"weights do not fit {type(self).__name__}: {text}")
        if shapes:
            logger.warning("fresh weights kept where shapes differ: %s", listed(shapes))
        self.load_state_dict({k: (own if k in differ else weights)[k] for k in own})
        mismatched = [(key, *both) for key, both in differ.items()]
        return {"unexpected_keys": passed, "mismatched_keys": mismatched}

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
    asked = {key for key, value in words.items() if value or key not in _NOT_SERVED}
    if unknown := sorted(asked - _HUB_WORDS - _MEMORY_WORDS):
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
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return None if device_map is None else torch.device(given)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device_map must be one device, such as 'cuda:0', or 'auto', got {device_map!r}: "
            "these models are not split"
        ) from None
