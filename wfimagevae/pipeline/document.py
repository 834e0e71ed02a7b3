"""A YAML file with the line of everything in it, and all that is wrong with it at once."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Place = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text; here it is the number that everyone means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


class PipelineError(ValueError):
    """A pipeline file that cannot be run; the message lists everything that is wrong."""


@dataclass
class Document:
    """A file's content, its lines, and the problems found in it so far.

    Attributes:
        path: The file.
        data: Its content.
        lines: Line of each key and list item, by its place.
        problems: (line, what is wrong).
    """

    path: Path
    data: Any
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def line(self, place: Place) -> int:
        """The line of what stands at a place, or of the nearest thing above it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def report(self, place: Place, message: str) -> None:
        """Notes a problem, once."""
        problem = self.line(place), message
        if problem not in self.problems:
            self.problems.append(problem)

    def is_wrong(self, place: Place) -> bool:
        """Whether a problem was found in the line of what stands at a place."""
        return self.line(place) in {line for line, _ in self.problems}

    def check(self) -> None:
        """Raises PipelineError with all problems, by line, if there are any."""
        if not self.problems:
            return
        listed = "\n".join(f"  line {line}: {text}" for line, text in sorted(self.problems))
        count = len(self.problems)
        raise PipelineError(f"{self.path} has {count} problem{'s' if count > 1 else ''}:\n{listed}")


def read_document(path: str | Path) -> Document:
    """Reads a YAML file; keys given twice are problems of the document.

    Raises:
        PipelineError: no such file, or not YAML.
    """
    path = Path(path)
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        document = Document(path, None)
        if node is not None:
            _find_lines(node, (), document, ())
            document.data = loader.construct_document(node)
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise PipelineError(f"{path}:{where} not YAML: {reason}") from None
    return document


def _find_lines(node: yaml.Node, place: Place, document: Document, above: tuple) -> None:
    if node in above:
        raise yaml.YAMLError(f"an alias contains itself, line {node.start_mark.line + 1}")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[(*place, index)] = item.start_mark.line + 1
            _find_lines(item, (*place, index), document, above)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for source in merged:
                _find_lines(source, place, document, above)
    own: dict[str, int] = {}
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        name, line = key.value, key.start_mark.line + 1
        document.lines[(*place, name)] = line
        if name in own:
            shown = dotted((*place, name))
            document.report((*place, name), f"{shown} is given twice, first in line {own[name]}")
        own[name] = line
        _find_lines(value, (*place, name), document, above)


def dotted(place: Place) -> str:
    """A place as people write it: training.pipeline.steps[1].lr."""
    text = ""
    for part in place:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for a name that is near to a known one, else all known ones."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
