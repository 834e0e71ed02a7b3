"""YAML as people read it, whoever wrote it, for pipelines and files of flags. No torch here."""

import os
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from wfimagevae.files import plain_text

_TAG = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_texts: set[str] = set()  # with a colon, of all files that were read


class YamlLoader(yaml.SafeLoader):
    """Reads a text; what it refuses is a YAMLError with its line.

    Keys are text. 1e-4 is a number; 12:30:45, 0x1F, 017 and 2024-01-01, which YAML 1.1 takes for
    numbers of base 60, 16 and 8 and a date, are text. With all that its aliases stand for, a file
    has no more than ``MOST_VALUES`` in ``MOST_LEVELS``. Tags are those of plain values. Keys given
    twice are refused unless they ``may_repeat``.
    """

    MOST_VALUES, MOST_LEVELS = 100_000, 50
    yaml_constructors: ClassVar = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, *(_TAG + kind for kind in _KINDS))
    }
    yaml_implicit_resolvers: ClassVar = {
        first: [pair for pair in known if pair[0][len(_TAG) :] in ("null", "bool", "merge")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        super().__init__(text)
        self.repeated: list[tuple[int, str]] = []
        self._level = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # values and levels that a node stands for

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """A node that is not too large; keys are checked, too."""
        mark, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self._level += 1
        self._check_size(0, self._level, mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if id(node) not in self._sizes:
            if is_alias:
                raise _refused("an alias contains itself", mark)
            inside = []
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node)
                inside = [each for pair in node.value for each in pair]
            elif isinstance(node, yaml.SequenceNode):
                inside = node.value
            elif ":" in node.value:
                _texts.add(node.value)
            values, levels = zip((0, 0), *(self._sizes[id(each)] for each in inside), strict=True)
            self._sizes[id(node)] = 1 + sum(values), 1 + max(levels)
        self._check_size(*self._sizes[id(node)], mark)
        return node

    def _check_size(self, values: int, levels: int, mark: yaml.Mark) -> None:
        if values > self.MOST_VALUES:
            raise _refused(f"with its aliases, more than {self.MOST_VALUES:,} values", mark)
        if levels > self.MOST_LEVELS:
            raise _refused(f"nested deeper than {self.MOST_LEVELS} levels", mark)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, mark = key.value, key.start_mark
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key is text, not a list or a mapping", mark)
            if name in lines and name != "<<":
                text = f"{name} is given twice, first in line {lines[name]}"
                self.repeated.append((mark.line + 1, text))
            lines[name] = mark.line + 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        """A mapping, by the text of its keys."""
        if not isinstance(node, yaml.MappingNode):
            raise _refused("expected a mapping", node.start_mark)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


_INT = "[-+]?(0|[1-9][0-9_]*)"
_FLOAT = r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
_FLOAT += r"|[-+]?\.(?i:inf)|\.(?i:nan)"
for _kind, _looks in (("int", _INT), ("float", _FLOAT)):
    _pattern = re.compile(f"({_looks})$")
    YamlLoader.add_implicit_resolver(_TAG + _kind, _pattern, list("-+.0123456789"))


def stands_in_file(text: str) -> bool:
    """Whether this process read a text with a colon from a YAML file."""
    return any(text in known for known in _texts)


def _refused(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, mark)


def read_yaml(path: str | os.PathLike) -> Any:
    """What is in a file; ValueError where that is not YAML, or has a key twice.

    Its message begins with the line, not with the file.
    """
    data, _, repeated = read_nodes(path)
    for line, text in repeated:
        raise ValueError(f"line {line}: not YAML: {text}")
    return data


def read_nodes(path: str | os.PathLike) -> tuple[Any, yaml.Node | None, list[tuple[int, str]]]:
    """What `read_yaml` reads, its node, and (line, what is wrong) of keys given twice.

    In a node, merged keys stand before a mapping's own.
    """
    try:
        loader = YamlLoader(plain_text(Path(path).read_bytes()))
        node = loader.get_single_node()
        return node and loader.construct_document(node), node, loader.repeated
    except (yaml.YAMLError, ValueError, LookupError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"{where}not YAML: {reason}") from None
