"""The source of a class and of all that it needs of its own packages, as one file.

Who opens a model by diffusers has its code fetched file by file: one file has no parts to miss.
"""

import ast
import builtins
import copy
import importlib
import re
from collections import defaultdict
from functools import lru_cache
from importlib.util import resolve_name
from pathlib import Path

from wfimagevae.export import stand_ins
from wfimagevae.options import Options

_STAND_INS = {"ModelRegistry", "Options", "RegisteredModel"}
_IMPORT = ast.Import | ast.ImportFrom


def standalone_source(cls: type) -> str:
    """Python that defines a class without importing its own package, or ours.

    What it needs of these is copied, without comments: functions, classes and values, each behind
    what it is made of. ValueError for what cannot be: a module imported as a whole, or two parts of
    one name.
    """
    own = {"wfimagevae", cls.__module__.partition(".")[0]}
    own_import = re.compile(rf"^( *)from ({'|'.join(own)})\b.*", re.MULTILINE)
    seen: set[ast.stmt | tuple[str, str]] = set()
    made: dict[str, tuple[object, str]] = {}
    texts: dict[str, ast.stmt] = {}

    def need(place: str, name: str) -> None:
        """Copies what a module calls by a name."""
        if name in _STAND_INS and place.startswith("wfimagevae."):
            place = stand_ins.__name__
        if (place, name) in seen:
            return
        seen.add((place, name))
        nodes = _statements(place)[name]
        value = getattr(importlib.import_module(place), name, None)
        if not nodes and value is not None and not hasattr(builtins, name):
            if not hasattr(value, "__qualname__"):
                raise ValueError(f"{place} has a module {name}: import from it by name")
            need(value.__module__, name)  # of a package that imports its parts when asked
        for node in (node for node in nodes if node not in seen):
            seen.add(node)
            # Bodies of functions may be made of this, and of what comes later.
            parts = list(ast.walk(node))
            bodies = [line for n in parts if isinstance(n, ast.FunctionDef) for line in n.body]
            later = {n for line in bodies for n in ast.walk(line)}
            later |= {n for n in parts if isinstance(getattr(n, "ctx", None), ast.Store)}
            use(place, [n for n in parts if n not in later])
            text = own_import.sub(r"\1pass", ast.unparse(node))
            if text != "pass":
                first = made.setdefault(name, (value, text))
                if value is not first[0] and text != first[1]:
                    raise ValueError(f"two parts are called {name}, one of {place}: rename it")
                texts.setdefault(text, node)
            use(place, [n for n in parts if n in later])

    def use(place: str, parts: list[ast.AST]) -> None:
        for part in parts:
            if isinstance(part, ast.Name):
                need(place, part.id)
            for alias in part.names if isinstance(part, _IMPORT) else ():
                source = getattr(part, "module", alias.name)
                if source.partition(".")[0] not in own:
                    continue
                if alias.asname or isinstance(part, ast.Import):
                    raise ValueError(f"{place} imports {alias.name}: write from ... import NAME")
                need(source, alias.name)

    need(cls.__module__, cls.__name__)
    imports = sorted(text for text, node in texts.items() if isinstance(node, _IMPORT))
    body = "\n\n\n".join(text for text, node in texts.items() if not isinstance(node, _IMPORT))
    head = f'"""{cls.__name__}, opened by torch and diffusers alone."""\n\n'
    return head + "\n".join(imports) + f"\n\n\n{body}\n"


@lru_cache
def _statements(place: str) -> dict[str, list[ast.stmt]]:
    """The statements of a module by the names that they bind; imports are of one name each."""
    module, bound = importlib.import_module(place), defaultdict(list)
    tree = ast.parse(Path(module.__file__).read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            path = "." * node.level + (node.module or "")
            node.module, node.level = resolve_name(path, module.__spec__.parent), 0
    for node in tree.body:
        value = getattr(module, getattr(node, "name", ""), None)
        if isinstance(node, _IMPORT):
            for alias in node.names:
                one = copy.copy(node)
                one.names = [alias]
                bound[alias.asname or alias.name.partition(".")[0]].append(one)
        elif isinstance(value, type) and issubclass(value, Options):  # its defaults are enough
            fields = [f"{name} = {field.default!r}" for name, field in value.model_fields.items()]
            text = "\n    ".join([f"class {node.name}(Options):", *fields])
            bound[node.name] = ast.parse(text).body
        else:
            stored = [n for n in ast.walk(node) if isinstance(getattr(n, "ctx", None), ast.Store)]
            names = {n.id for n in stored if isinstance(n, ast.Name)}
            for name in [node.name] if hasattr(node, "name") else names:
                bound[name].append(node)
    return bound
