"""Values of a config.json, held against the annotations of a network's arguments."""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

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


def check_config_values(init: Callable, values: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the key, for values that are not what ``init`` is annotated with.

    Keys without an annotation, and annotations of other kinds, are not looked at.
    """
    try:
        hints = get_type_hints(init, include_extras=True)
    except NameError:  # a user's module that imports its types for type checkers alone
        return
    for key, value in values.items():
        if key in hints and not _fits(value, hints[key]):
            raise ValueError(f"config key {key!r} must be {_name(hints[key])}, got {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin is Annotated:
        return _fits(value, arguments[0]) and arguments[1] <= value <= arguments[2]
    if origin in (Sequence, list):
        return isinstance(value, list | tuple) and all(_fits(v, arguments[0]) for v in value)
    if isinstance(value, bool):
        return kind not in _NAMES or kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind) if kind in _NAMES else True


def _name(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_name, arguments))
    if origin is Literal:
        return " or ".join(arguments)
    if origin in (Sequence, list):
        return f"a list, each {_name(arguments[0])}"
    if origin is Annotated:
        return f"{_NAMES[arguments[0]]} between {arguments[1]} and {arguments[2]}"
    return _NAMES[kind]
