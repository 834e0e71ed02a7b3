"""Option classes: a field is at once flag, help, default, bounds, YAML key and argument. No torch.

    class ScheduleOptions(Options):
        '''optimization: the learning rate over a player's updates'''

        warmup_steps: Natural = option(0, "updates of linear warm-up", "N")

`command_line.parse` reads ``--warmup_steps 5``, or that key of a ``--config`` file, and code takes
the object. The options of a command are one class that inherits those of its parts; code that reads
one part names that part's class.
"""

import copy
import difflib
import os
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
)
from pydantic_core import PydanticCustomError


def worded(annotation: Any, words: str, takes_bools: bool = True) -> Any:
    """A type; a value that is none is told in ``words`` what it is not."""

    def check(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            if isinstance(value, bool) and not takes_bools:
                raise ValueError("a switch is no number")
            return validate(value)
        except ValueError:
            raise PydanticCustomError("number", "{words}", {"words": words}) from None

    return Annotated[annotation, WrapValidator(check)]


def _number(kind: type, words: str, **bounds: float) -> Any:
    limits = Field(**bounds) if kind is int else Field(allow_inf_nan=False, **bounds)
    return worded(Annotated[kind, limits], words, takes_bools=False)


Integer = _number(int, "a whole number")
Natural = _number(int, "a whole number of at least 0", ge=0)
Count = _number(int, "a whole number of at least 1", ge=1)
Number = _number(float, "a number")
NonNegative = _number(float, "a number of at least 0", ge=0)
Positive = _number(float, "a number above 0", gt=0)
Share = _number(float, "a number between 0 and 1", ge=0, le=1)
Factor = _number(float, "a number above 0, of at most 1", gt=0, le=1)

BOTH_WAYS = object()
Switch = Annotated[bool, BOTH_WAYS]  # --name and --no_name


def _split(value: Any) -> Any:
    """The numbers of all words: ``a b``, ``a,b`` and ``"a b"`` are the same, and one is a list."""
    words = value if isinstance(value, list | tuple) else [value]
    parts = [w.replace(",", " ").split() if isinstance(w, str) else [w] for w in words]
    return [number for part in parts for number in part]


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else [value]


_Item = TypeVar("_Item")
ListOf = Annotated[list[_Item], BeforeValidator(_as_list)]  # one value may stand alone
Several = Annotated[list[_Item], BeforeValidator(_split)]


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a command line need not be text
        raise ValueError(f"{text!r} is not UTF-8 text") from None
    return text


def _check_output_file(text: str) -> str:
    path = Path(text)
    if path.is_dir():
        raise ValueError(f"{text} is a folder; name a file")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f"{text} cannot be written: {above} is no writable folder")
    return text


Prompt = Annotated[str, AfterValidator(_check_text)]
# The path of a file that can be written, said before any work is done for it.
OutputFile = Annotated[str, AfterValidator(_check_output_file)]


def option(
    default: Any,
    help: str,
    unit: str | tuple[str, ...] | None = None,
    *,
    basic: bool = False,
    repeat: Literal["one", "several"] | None = None,
    flag: str | None = None,
    positional: bool = False,
) -> Any:
    """A field that is also a flag.

    Args:
        default: ``...`` makes it required.
        help: Its help text; the default is shown behind it.
        unit: What stands for the value in the help.
        basic: Shown by ``--help`` alone, where a command has many flags.
        repeat: A list's flag may come again, with one value or several each time.
        flag: Its name for users, where pydantic keeps the field's own for itself.
        positional: Written without a flag before it.
    """
    extra = {"unit": unit, "basic": basic or default is ..., "repeat": repeat}
    extra["positional"] = positional
    extra = {name: value for name, value in extra.items() if value}
    return Field(default, description=help, alias=flag, json_schema_extra=extra)


_Class = TypeVar("_Class", bound="Options")


class BadOptions(ValueError):
    """Values that options cannot have.

    Attributes:
        problems: (name of the option, what is wrong); without a name where several options
            contradict each other.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]):
        super().__init__("; ".join(f"{name}: {text}" if name else text for name, text in problems))
        self.problems = list(problems)


class Options(BaseModel):
    """Base of all option classes: frozen, unknown names refused.

    A class that declares fields is a group of flags; its docstring is the group's title and,
    behind a colon, what is said of it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        coerce_numbers_to_str=True,
        protected_namespaces=(),
    )

    def __init__(self, **values: Any):
        """Reads values by flag, as the words of a command line or as YAML has them.

        Raises:
            BadOptions: with all that is wrong.
        """
        paths = {name: str(value) for name, value in values.items() if isinstance(value, Path)}
        try:
            super().__init__(**values | paths)
        except ValidationError as error:
            problems = [explain(type(self), entry) for entry in error.errors()]
            raise BadOptions(list(dict.fromkeys(problems))) from None

    @classmethod
    def groups(cls) -> dict[str, type["Options"]]:
        """The class that declares each option, its group of flags, in the order of inheritance."""
        found: dict[str, type[Options]] = {}
        for base in cls.__bases__:
            if issubclass(base, Options):
                found = found | base.groups() | found
        # What is inherited and stated again keeps its place.
        found = found | dict.fromkeys(cls.__annotations__, cls) | found
        return {name: group for name, group in found.items() if name in cls.model_fields}

    @classmethod
    def by_flag(cls) -> dict[str, Any]:
        """Pydantic's description of each field, by the name of its flag."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}

    def values(self) -> dict[str, Any]:
        """All values by flag, as JSON can hold them."""
        return self.model_dump(mode="json", by_alias=True)

    def part(self, kind: type[_Class]) -> _Class:
        """The options of one of the classes that this one inherits, alone."""
        return kind.model_construct(**vars(self))

    def changed(self, **values: Any) -> Self:
        """A copy with other values, which are taken as they are."""
        return self.model_copy(update=values)


def new_defaults(**values: Any) -> Callable[[type[_Class]], type[_Class]]:
    """Decorator of a class of options: fields that it inherits get other defaults there."""

    def change(cls: type[_Class]) -> type[_Class]:
        for name, value in values.items():
            cls.model_fields[name] = copy.copy(cls.model_fields[name])
            cls.model_fields[name].default = value
        cls.model_rebuild(force=True)
        return cls

    return change


def explain(cls: type[Options], entry: Any) -> tuple[str, str]:
    """One of pydantic's findings: the option, and what is wrong with it in our words."""
    name, kind, value = str((*entry["loc"], "")[0]), entry["type"], entry["input"]
    if kind == "missing":
        return "", f"the following arguments are required: --{name}"
    if kind == "extra_forbidden":
        return "", f"unknown key {name!r}{nearest(name, cls.by_flag(), '--')}"
    if kind == "number":
        return name, f"{value!r} is not {entry['ctx']['words']}"
    if kind == "literal_error":
        expected = entry["ctx"]["expected"]
        choices = re.findall("'(.*?)'", expected) or [expected]  # a number has no quotes
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return name, f"invalid choice: {value!r} (choose from {', '.join(choices)}){hint}"
    if kind in ("bool_type", "bool_parsing"):
        return name, f"is a switch, write true or false, not {value!r}"
    return name, entry["msg"].removeprefix("Value error, ")


def by_own_names(values: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """Values in a file by flag: ``no_x: true`` is ``x: false``, ``no_x: false`` says nothing."""
    found = {}
    for name, value in values.items():
        switch = name.removeprefix("no_")
        if name in known or switch not in known or not isinstance(value, bool):
            found[name] = value
        elif value:
            found[switch] = False
    return found


# What FluxFlow calls flags of ours.
_ELSEWHERE = {"use_cfg": "guidance_scale", "ddim_steps": "steps", "n_epochs": "epochs"}
_ELSEWHERE |= {"model_checkpoint": "from_pretrained", "text_prompts_path": "prompts_path"}


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean x?`` for a name that is near to a known one, else where to look."""
    known = list(known)
    if _ELSEWHERE.get(name) in known:
        return f"; write {prefix}{_ELSEWHERE[name]}"
    near = difflib.get_close_matches(str(name), known, n=1)
    if near:
        return f"; did you mean {prefix}{near[0]}?"
    return "; --help lists the flags" if prefix else f"; known: {', '.join(known)}"


def overrides_of(group: type[Options]) -> Any:
    """The type of a flag of ``key=value`` words, or of a mapping in YAML, for options of a group.

    Its value is a dictionary, for `Options.changed`.
    """

    def check(words: Any) -> dict[str, Any]:
        if not isinstance(words, Mapping):
            words = _as_list(words)
            for word in words:
                if "=" not in str(word):
                    raise ValueError(f"{word!r} is not key=value")
            words = dict(str(word).split("=", 1) for word in words)
        for key in words:
            if key not in group.by_flag():
                raise ValueError(f"unknown key {key!r}{nearest(key, group.by_flag())}")
        try:
            given = group(**words)
        except BadOptions as error:
            raise ValueError(f"--{error}") from None
        return {key: getattr(given, key) for key in words}

    return Annotated[dict[str, Any], BeforeValidator(check)]
