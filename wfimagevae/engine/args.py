"""Command lines: strict flags with units, YAML defaults, suggestions for typos. No torch here."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def _bounded(kind: type, low: float, high: float, what: str) -> Callable[[str], Any]:
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not {what}")
        return value

    return parse


_INF = float("inf")
_MAX_FLOAT = sys.float_info.max
positive_int = _bounded(int, 1, _INF, "a whole number of at least 1")
non_negative_int = _bounded(int, 0, _INF, "a whole number of at least 0")
positive_float = _bounded(float, sys.float_info.min, _MAX_FLOAT, "a number above 0")
non_negative_float = _bounded(float, 0.0, _MAX_FLOAT, "a number of at least 0")
probability = _bounded(float, 0.0, 1.0, "a number between 0 and 1")


def output_file(text: str) -> str:
    """The path of a file that can be written, said before any work is done for it."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {above} is no writable folder")
    return text


class _Switch(argparse.Action):
    """``--name`` and ``--no_name``, with underscores as every flag here."""

    def __init__(self, option_strings, dest, default=False, help=None):
        name = option_strings[0].removeprefix("--")
        super().__init__([f"--{name}", f"--no_{name}"], dest, nargs=0, default=default, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, not option_string.startswith("--no_"))

    def format_usage(self):
        return " | ".join(self.option_strings)


def add_switch(group, flag: str, default: bool, help: str) -> None:
    """Declares ``--flag`` / ``--no_flag``."""
    group.add_argument(flag, action=_Switch, default=default, help=help)


class _Several(argparse.Action):
    """Gathers the numbers of all words: ``a b``, ``a,b`` and ``"a b"`` are the same."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, [number for word in values for number in word])


def add_several(group, flag: str, kind: Callable[[str], Any], default: list, help: str) -> None:
    """Declares a flag that takes one number or several, also in one word of a launch script."""

    def parse(text: str) -> list:
        return [kind(word) for word in text.replace(",", " ").split()]

    group.add_argument(
        flag, type=parse, nargs="+", action=_Several, default=default, metavar="P", help=help
    )


def add_overrides(group, flag: str, declare: Callable[["Parser"], None], help: str) -> None:
    """Declares a flag of ``key=value`` words, which win over flags of these names for one part.

    Args:
        group: Where the flag goes.
        flag: Its name.
        declare: Declares the flags whose names and types the keys have.
        help: What the flag is for.
    """
    known = Parser(add_help=False)
    known.raises = True
    declare(known)

    def parse(word: str) -> tuple[str, Any]:
        key, equals, value = word.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{word!r} is not key=value")
        if key not in known.flags():
            near = difflib.get_close_matches(key, known.flags(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"keys: {', '.join(known.flags())}"
            raise argparse.ArgumentTypeError(f"unknown key {key!r}; {hint}")
        try:
            return key, getattr(known.parse_args([f"--{key}={value}"]), key)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    group.add_argument(
        flag, type=parse, nargs="+", action=_Pairs, default={}, metavar="KEY=VALUE", help=help
    )


class _Pairs(argparse.Action):
    """Gathers ``key=value`` words into one dictionary."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, getattr(namespace, self.dest) | dict(values))


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where it tells something."""

    def _get_help_string(self, action):
        if action.default in (None, argparse.SUPPRESS) or action.required:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """ArgumentParser without abbreviations, whose unknown flags name the nearest known one.

    Attributes:
        raises: A bad flag raises ValueError instead of ending the process.
    """

    raises = False

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **options)

    def flags(self) -> dict[str, argparse.Action]:
        """Every long flag, without dashes, and its action."""
        return {
            flag.removeprefix("--"): action
            for action in self._actions
            for flag in action.option_strings
            if flag.startswith("--")
        }

    def make_optional(self, *names: str) -> None:
        """Flags that another command required are optional here."""
        for name in names:
            self.flags()[name].required = False

    def suggest(self, name: str) -> str:
        """`` Did you mean --x?`` for an unknown name, or nothing."""
        near = difflib.get_close_matches(name, self.flags(), n=1)
        return f"; did you mean --{near[0]}?" if near else "; --help lists the flags"

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        known = self.flags()
        for token in args:
            name = token.removeprefix("--").split("=")[0]
            if token.startswith("--") and name not in known:
                self.error(f"unknown flag --{name}{self.suggest(name)}")
        return super().parse_args(args, namespace)

    def error(self, message: str):
        if self.raises:
            raise ValueError(message)
        self.exit(2, f"error: {message}\n")

    def words(self, name: str, value: Any) -> list[str]:
        """The command-line words of one flag, from its value in a YAML file; null gives none.

        Raises:
            ValueError: no such flag, or a switch that is neither true nor false.
        """
        flags = self.flags()
        if name not in flags or name in ("config", "help", "list_flags"):
            raise ValueError(f"unknown key {name!r}{self.suggest(str(name))}")
        if value is None:
            return []
        if flags[name].nargs == 0:
            if not isinstance(value, bool):
                raise ValueError(f"{name} is a switch, write true or false, not {value!r}")
            negative = [f"--no_{name}"] if f"no_{name}" in flags else []
            return [f"--{name}"] if value else negative
        if isinstance(value, dict):
            return [f"--{name}", *(f"{key}={entry}" for key, entry in value.items())]
        if isinstance(value, list):
            return [f"--{name}", *map(str, value)]
        return [f"--{name}={value}"]


def add_config_arg(parser: Parser) -> None:
    """Declares ``--config``; `parse_with_config` reads it."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of flag names and values; flags given on the command line win over it",
    )


def parse_with_config(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses ``argv`` with the YAML file of ``--config`` under it: defaults < YAML < command line.

    The file's entries become flags in front of ``argv``, so the same types, choices and
    suggestions check both.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    tokens = _yaml_tokens(parser, path) if path else []
    return parser.parse_args([*tokens, *argv])


def read_config(parser: Parser, path: str) -> dict[str, Any]:
    """The flags and values in a YAML file; what is wrong with the file is the parser's error."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            options = yaml.safe_load(file) or {}
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"--config {path}: {error}")
    if not isinstance(options, dict):
        parser.error(
            f"--config {path}: expected 'flag: value' lines, got a {type(options).__name__}"
        )
    if isinstance(options.get("training"), dict):
        parser.error(f"--config {path}: that file has sections; give it by --pipeline {path}")
    return options


def _yaml_tokens(parser: Parser, path: str) -> list[str]:
    tokens: list[str] = []
    for name, value in read_config(parser, path).items():
        try:
            tokens += parser.words(name, value)
        except ValueError as error:
            parser.error(f"--config {path}: {error}")
    return tokens


def add_device_arg(group) -> None:
    """Declares ``--device``, the same everywhere."""
    group.add_argument(
        "--device",
        default="auto",
        metavar="D",
        help="auto (CUDA, else Apple's MPS, else CPU), cuda, cuda:N, mps or cpu",
    )
