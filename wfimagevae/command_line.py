"""Command lines: flags of option classes, YAML under them, how a command ends. No torch here."""

import argparse
import gc
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from wfimagevae.options import BOTH_WAYS, BadOptions, Options, by_own_names, nearest

# Of a command with more flags than this, --help alone shows the basic ones.
_MANY_FLAGS = 45
# Controls, directions of writing, and bytes that are no text; lines of a list are indented.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\n(?!  )"
)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where it tells something."""

    def _get_help_string(self, action):
        if action.default in (None, argparse.SUPPRESS) or action.required:
            return action.help
        return super()._get_help_string(action)


class _Store(argparse.Action):
    """Keeps the words of a flag that is given as they are; the option class reads them."""

    is_basic, repeats = False, False

    def __call__(self, parser, namespace, values, option_string=None):
        if self.nargs == 0:
            values = not option_string.startswith("--no_")
        elif self.repeats:
            values = values if isinstance(values, list) else [values]
            values = [*parser.given.get(self.dest, ()), *values]
        parser.given[self.dest] = values

    def format_usage(self):
        return " | ".join(self.option_strings)


class _Help(argparse.Action):
    """``--help``, ``--help all``, ``--help GROUP``."""

    def __call__(self, parser, namespace, topic, option_string=None):
        groups = {group.title: group for group in parser._action_groups if group._group_actions}
        if topic not in (None, "all", *groups):
            parser.error(f"--help {topic}: no such group of flags{nearest(topic, groups)}")
        if topic != "all" and (topic or len(parser._actions) > _MANY_FLAGS):
            for title, group in groups.items():
                for action in group._group_actions:
                    if not (title == topic if topic else getattr(action, "is_basic", True)):
                        action.help = argparse.SUPPRESS
                if all(action.help == argparse.SUPPRESS for action in group._group_actions):
                    group.title = group.description = None
            parser.usage = f"{parser.prog} [--FLAG VALUE ...]"
            names = ", ".join(repr(name) if " " in name else name for name in groups)
            parser.epilog = f"--help all shows all flags, --help GROUP those of one of: {names}"
        parser.print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """The flags of an option class, without abbreviations.

    Args:
        cls: The options.
        about: Paragraphs, of which the help shows the first one, and the last, on the exit status.
    """

    def __init__(self, cls: type[Options], about: str = ""):
        text, heading, status = about.partition("\n\nExit status")
        how = {"allow_abbrev": False, "add_help": False, "formatter_class": _Formatter}
        super().__init__(description=text.split("\n\n")[0], epilog=heading + status, **how)
        self.add_argument(
            "-h", "--help", action=_Help, nargs="?", metavar="GROUP",
            help="show this, 'all' flags or those of a GROUP, and exit",
        )  # fmt: skip
        # A flag for each field, in the group of the class that declares it.
        groups: dict[str, Any] = {}
        for name, owner in cls.groups().items():
            title, _, about = " ".join((owner.__doc__ or "options").split()).partition(": ")
            if title not in groups:
                groups[title] = self.add_argument_group(title, about or None)
            field = cls.model_fields[name]
            extra, flag = field.json_schema_extra or {}, field.alias or name
            words = [flag if extra.get("positional") else f"--{flag}"]
            shape = {"default": None if field.is_required() else field.default}
            shape["help"], kind = field.description, bare_type(field.annotation)
            if kind is bool:
                shape["nargs"] = 0
                if field.default is True or BOTH_WAYS in field.metadata:
                    words.append(f"--no_{flag}")
            else:
                item = bare_type(get_args(kind)[0]) if get_origin(kind) in (list, tuple) else kind
                choices = get_args(item) if get_origin(item) is Literal else None
                shape |= {"metavar": extra.get("unit"), "choices": choices}
                if get_origin(kind) is tuple:
                    shape["nargs"] = len(get_args(kind))
                elif get_origin(kind) in (list, dict) and extra.get("repeat") != "one":
                    shape["nargs"] = "+"
            action = groups[title].add_argument(*words, action=_Store, **shape)
            action.is_basic, action.repeats = extra.get("basic", False), "repeat" in extra
            # A file may bring what the command line lacks.
            action.required = field.is_required() and "config" not in cls.model_fields

    def flags(self) -> dict[str, argparse.Action]:
        """Every long flag, without dashes, and its action."""
        named = self._option_string_actions.items()
        return {flag[2:]: action for flag, action in named if flag.startswith("--")}

    def read_words(self, argv: Sequence[str]) -> dict[str, Any]:
        """The values on a command line by name, unchecked; an unknown flag is an error."""
        known = self._option_string_actions
        for before, token in zip(["", *argv], argv, strict=False):
            flag = token.split("=")[0]
            if token.startswith("--") and flag not in known and self._parse_optional(token):
                takes_value = before in known and known[before].nargs != 0
                hint = f"; as a value, {before}={token}" if takes_value else ""
                self.error(f"unknown flag {flag}{nearest(flag[2:], self.flags(), '--')}{hint}")
        self.given = {}
        self.parse_args(list(argv))
        return self.given

    def _parse_optional(self, arg_string: str):
        """What argparse takes a word for: one with blanks is a text, whatever it begins with."""
        is_text = re.search(r"\s", arg_string.split("=")[0])
        return None if is_text else super()._parse_optional(arg_string)

    def error(self, message: str):
        if re.search(r"expected .*argument", message):
            message += "; a value that begins with a dash is written --FLAG=VALUE"
        _tell(message)
        self.exit(2)


class _LogFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


def printable(text: object) -> str:
    """A text whose names can do nothing to a terminal, or to other lines of a log."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def bare_type(annotation: Any) -> Any:
    """A field's type without None, which stands last, and without what is annotated to it."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return bare_type(get_args(annotation)[0])
    return annotation


_Class = TypeVar("_Class", bound=Options)


def parse(cls: type[_Class], argv: Sequence[str] | None = None, about: str = "") -> _Class:
    """The options on a command line, over those of its ``--config`` file, over the defaults.

    What is wrong ends the process with status 2 and a line that names the flag, or the file.

    Args:
        cls: The options; with a field ``config``, that names a YAML file of flags and values.
        argv: Words of the command line; None takes this process's.
        about: The command's docstring; see `Parser`.
    """
    parser = Parser(cls, about)
    given = parser.read_words(sys.argv[1:] if argv is None else argv)
    path, in_file = given.get("config"), {}
    if path:
        in_file = by_own_names(read_config(path, parser), cls.by_flag())
    if "allow_pipe" in in_file:
        parser.error(f"--config {path}: allow_pipe: stands on the command line, never in a file")
    try:
        return cls(**in_file | given)
    except BadOptions as error:
        places = {name: f"--config {path}: {name}: " for name in in_file}
        places |= {name: f"argument --{name}: " for name in given}
        for name, text in error.problems:
            in_the_file = not name and text.startswith("unknown key")
            place = f"--config {path}: " if in_the_file else places.get(name, "")
            parser.error(f"{place}{text}")
        raise


def find_flag(name: str, argv: Sequence[str] | None) -> Any:
    """The value of one flag, before it is known which others there are; None if not given.

    That is on a command line, None for this process's, or in its file of ``--config``; a flag
    without a value is True.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    finder.add_argument(f"--{name}", nargs="?", const=True)
    finder.add_argument("--config")
    words = vars(finder.parse_known_args(argv)[0])
    if words[name] is None and words["config"]:
        return read_config(words["config"], finder).get(name)
    return words[name]


def list_flags(cls: type[Options]) -> str:
    """Every flag as launch scripts read it: its variable, its name and its kind, a line each."""
    lines = []
    for flag, action in Parser(cls).flags().items():
        if flag not in ("help", "list_flags"):
            kind = "switch" if action.nargs == 0 else "values" if action.nargs else "value"
            lines.append(f"{flag.upper()} {flag} {kind}")
    return "\n".join(lines)


def read_config(path: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The flags and values in a YAML file, null ones left out; a bad file is the parser's error."""
    from wfimagevae.yaml_files import read_yaml

    try:
        values = read_yaml(path) or {}
    except (OSError, ValueError) as error:
        parser.error(f"--config {path}: {getattr(error, 'strerror', None) or error}")
    if not isinstance(values, dict):
        kind = type(values).__name__
        parser.error(f"--config {path}: expected 'flag: value' lines, got a {kind}")
    if {"model", "data", "training"} & values.keys():  # even empty ones
        parser.error(f"--config {path}: that file has sections; give it by --pipeline {path}")
    return {name: value for name, value in values.items() if value is not None}


def _tell(error: Any) -> None:
    """Prints an error; of several processes, which end each other, the first one that has it."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(10)
    text = f"error: {printable(error)}"
    print(text, file=sys.stderr, flush=True)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun shows it last, once more
        more = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": text, "extraInfo": more}}, file)


def run_cli(main: Callable[[list[str] | None], int | None], dated: bool = False) -> int:
    """Runs ``main`` on the command line and returns the exit status; log lines may be ``dated``.

    A ValueError or OSError is the user's to mend: its message goes to stderr as
    ``error: ...`` and the status is 2. Anything else is our bug and keeps its traceback.
    """
    # OpenMP's threads spin for long before they sleep, and take turns with all other work on a
    # busy machine. The library reads this when torch loads it, which no command has done yet.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    handler = logging.StreamHandler()
    form = "%(asctime)s " * dated + "%(message)s"
    handler.setFormatter(_LogFormatter(form, "%Y-%m-%d %H:%M:%S"))
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if is_main else logging.WARNING, handlers=[handler])
    write = sys.stdout.write  # names are in what is printed, too
    sys.stdout.write = lambda text: write("\n".join(map(printable, text.split("\n"))))
    try:
        status = main(None) or 0
        # Done but for something, which the main process says when it has written all: torchrun
        # ends it as soon as another one fails. Signals are told by whichever process got them.
        status = 0 if status < 128 and not is_main else status
    except (ValueError, OSError) as error:
        _tell(error)
        status = 2
    except KeyboardInterrupt:
        status = 130
    finally:
        gc.freeze()  # or Python's end looks for garbage in all of torch, for seconds
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        # All is written and closed. Gloo's threads, which Python's end may leave running, now
        # and then abort the process there.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
