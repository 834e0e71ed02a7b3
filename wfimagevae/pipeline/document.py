"""A YAML file with the line of everything in it, and all that is wrong with it at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wfimagevae.yaml_files import read_nodes

Place = tuple[str | int, ...]
# A place in the file, or keys of a step, and what is wrong there.
Problems = Iterator[tuple[Place, str]]


class PipelineError(ValueError):
    """A pipeline file that cannot be run; the message lists everything that is wrong."""


@dataclass
class Document:
    """A file's content, the line of each key and list item, and (line, what is wrong) so far."""

    path: Path
    data: Any = None
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
    try:
        data, node, repeated = read_nodes(path)
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise PipelineError(f"{path}: {error}") from None
    return Document(Path(path), data, dict(_lines(node, ())), repeated)


def _lines(node: yaml.Node | None, place: Place) -> Iterator[tuple[Place, int]]:
    """The places in a node, and their lines; the last line of a place counts."""
    entries = []
    if isinstance(node, yaml.MappingNode):
        entries = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        entries = [(index, value, value) for index, value in enumerate(node.value)]
    for name, at, value in entries:
        yield (*place, name), at.start_mark.line + 1
        yield from _lines(value, (*place, name))


def dotted(place: Place) -> str:
    """A place as people write it: training.pipeline.steps[1].lr."""
    text = ""
    for part in place:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
