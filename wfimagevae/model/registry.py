"""Models by name, ours and a user's own, and what the values in their configs may be."""

import difflib
import importlib
import os
import pkgutil
import sys
import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

# Importing a module of these folders registers its models; names are looked up after that.
_FOLDERS = ("wfimagevae.model.vae", "wfimagevae.model.flow", "wfimagevae.model.glide")
# Least and largest value; what is larger could not be built.
Natural = Annotated[int, 0, 2**20]
Size = Annotated[int, 1, 2**20]
Depth = Annotated[int, 0, 1000]
Share = Annotated[float, 0, 1]
Ratio = Annotated[float, 0, 1000]
_NAMES = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "a text",
    type(None): "null",
}


class ModelRegistry:
    """Maps a name to a callable that builds the network: a class or a preset of one."""

    _builders: ClassVar[dict[str, Callable]] = {}

    @classmethod
    def register(cls, name: str) -> Callable[[Callable], Callable]:
        """Decorator that registers a class or a function; ValueError if the name is taken."""

        def add(builder: Callable) -> Callable:
            first = cls._builders.get(name)
            if first is not None and first.__qualname__ != builder.__qualname__:
                raise ValueError(f"model name {name!r} is taken by {first.__qualname__}")
            cls._builders[name] = builder
            return builder

        return add

    @classmethod
    def register_preset(cls, name: str, network: type, **preset) -> None:
        """Registers a class with some arguments, over which those given later win."""

        def build(**options):
            return network(**(preset | options))

        build.__name__ = build.__qualname__ = name
        build.__annotations__["return"] = network
        build.__doc__ = f"`{network.__name__}` with {preset}, and the given keys over these."
        cls.register(name)(build)

    @classmethod
    def get_model(
        cls, name: str, kind: type = object, others: tuple[str, ...] = ("or package.module:Class",)
    ) -> Callable:
        """The builder registered as ``name``, or the registered class that is called ``name``.

        ``package.module:Class`` is a model outside of this package, which is imported from the
        working directory or wherever Python finds modules. Of an unknown name the error lists those
        that build a ``kind``, and what else would do.
        """
        if not isinstance(name, str):
            raise ValueError(f"the name of a model must be a text, got {name!r}")
        if name.partition(":")[2].isidentifier():
            return _import_model(name)
        builders = cls._load()
        if name in builders:
            return builders[name]
        for builder in builders.values():
            if builder.__name__ == name:
                return builder
        names = cls.names(kind)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join([*names, *others])
        raise ValueError(f"unknown model {name!r}; {hint}Registered: {known}")

    @classmethod
    def names(cls, kind: type = object) -> list[str]:
        """All registered names, sorted, of what builds a ``kind``, or may do so."""
        built = {name: _built(builder) for name, builder in cls._load().items()}
        return sorted(n for n, one in built.items() if one is None or issubclass(one, kind))

    @classmethod
    def _load(cls) -> dict[str, Callable]:
        for folder in map(importlib.import_module, _FOLDERS):
            for module in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
                importlib.import_module(module.name)
        return cls._builders


def _built(builder: Callable) -> type | None:
    """The class that a builder is, or is annotated to give; None where it is not."""
    one = builder if isinstance(builder, type) else get_type_hints(builder).get("return")
    return one if isinstance(one, type) else None


def _import_model(path: str) -> Callable:
    """The class or function that ``package.module:Class`` names."""
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: files that lie there replace no installed module
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        is_missing = f"{module_name}.".startswith(f"{getattr(error, 'name', None)}.")
        place = f"write package.module:Class, with the package in {os.getcwd()} or on PYTHONPATH"
        hint = f"; {place}" if is_missing else ""
        raise ValueError(f"model {path!r}: importing {module_name}: {error}{hint}") from error
    # A class, or a function that builds one.
    builder = getattr(module, name, None)
    if not callable(builder):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        near = difflib.get_close_matches(name, classes, n=1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise ValueError(f"model {path!r}: {module.__file__} has no class {name!r}{hint}")
    return builder


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is what it is annotated with; annotations of other kinds take any."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin is Annotated:
        return fits(value, arguments[0]) and arguments[1] <= value <= arguments[2]
    if origin in (Sequence, list):
        return isinstance(value, list | tuple) and all(fits(v, arguments[0]) for v in value)
    if isinstance(value, bool):
        return kind not in _NAMES or kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind) if kind in _NAMES else True


def in_words(kind: Any) -> str:
    """What an annotation asks for."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(in_words, arguments))
    if origin is Literal:
        return " or ".join(arguments)
    if origin in (Sequence, list):
        return f"a list, each {in_words(arguments[0])}"
    if origin is Annotated:
        return f"{_NAMES[arguments[0]]} between {arguments[1]} and {arguments[2]}"
    return _NAMES[kind]
