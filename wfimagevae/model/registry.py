"""Models by name, so that flags and config files can choose one."""

import difflib
import importlib
from collections.abc import Callable
from typing import ClassVar

# Importing a module registers its models; names are looked up after that.
_BUILT_IN = (
    "wfimagevae.model.vae.modeling_wfvae2_image",
    "wfimagevae.model.flow.flow_transformer",
    "wfimagevae.model.flow.mlp",
    "wfimagevae.model.flow.small_cnn",
    "wfimagevae.model.flow.unet",
)


class ModelRegistry:
    """Maps a name to a callable that builds the network: a class or a preset of one."""

    _builders: ClassVar[dict[str, Callable]] = {}

    @classmethod
    def register(cls, name: str) -> Callable[[Callable], Callable]:
        """Decorator that registers a class or a function under ``name``.

        Raises:
            ValueError: another builder has that name.
        """

        def add(builder: Callable) -> Callable:
            known = cls._builders.get(name)
            if known is not None and known.__qualname__ != builder.__qualname__:
                raise ValueError(f"model name {name!r} is taken by {known.__qualname__}")
            cls._builders[name] = builder
            return builder

        return add

    @classmethod
    def get_model(cls, name: str) -> Callable:
        """The builder registered as ``name``, or the registered class that is called ``name``.

        Raises:
            ValueError: no such model; the message suggests the nearest name and lists all.
        """
        builders = cls._load()
        if name in builders:
            return builders[name]
        for builder in builders.values():
            if builder.__name__ == name:
                return builder
        near = difflib.get_close_matches(str(name), builders, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown model {name!r}; {hint}Registered: {', '.join(cls.names())}")

    @classmethod
    def names(cls) -> list[str]:
        """All registered names, sorted."""
        return sorted(cls._load())

    @classmethod
    def _load(cls) -> dict[str, Callable]:
        for module in _BUILT_IN:
            importlib.import_module(module)
        return cls._builders
