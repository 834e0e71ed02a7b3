"""The source of a class and of all that it needs of its own packages, as one file.

Who opens a model by diffusers has its code fetched file by file: one file has no parts to miss.
"""

import ast
import builtins
import importlib.util
from pathlib import Path

from wfimagevae.export import stand_ins
from wfimagevae.model.modeling_base import RegisteredModel

_STAND_INS = {"RegisteredModel", "SamplingOptions"}
# Methods that read and write files our way, which diffusers does in an export.
_LEFT_OUT = vars(RegisteredModel).keys() - vars(stand_ins.RegisteredModel).keys()


class _Module:
    """A module's source: which statements bind which names, and what is imported as what.

    ``own`` are the packages whose parts are copied, not imported.
    """

    def __init__(self, name: str, own: set[str]):
        self.name, self.content, self.own = name, importlib.import_module(name), own
        self.package = name if hasattr(self.content, "__path__") else name.rpartition(".")[0]
        self.bound: dict[str, ast.stmt] = {}
        self.imported: dict[str, tuple[str, ast.alias]] = {}
        self.inner: dict[ast.stmt, list[tuple[str, str]]] = {}  # imports in functions
        for node in ast.parse(Path(self.content.__file__).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imported |= {a.asname or a.name: (self._place(node), a) for a in node.names}
                continue
            self.inner[node] = []
            for part in ast.walk(node):
                self._strip(part, self.inner[node])
            stored = (n for n in ast.walk(node) if isinstance(getattr(n, "ctx", None), ast.Store))
            names = [n.id for n in stored if isinstance(n, ast.Name)]
            self.bound |= dict.fromkeys([node.name] if hasattr(node, "name") else names, node)

    def _place(self, node: ast.Import | ast.ImportFrom) -> str:
        """The module that is imported from; none of a plain import."""
        place, level = getattr(node, "module", None) or "", getattr(node, "level", 0)
        return importlib.util.resolve_name("." * level + place, self.package) if level else place

    def _strip(self, part: ast.AST, imported: list[tuple[str, str]]) -> None:
        """Takes away what an export does not have; imports of own parts are noted."""
        if isinstance(part, ast.ClassDef):
            part.body = [n for n in part.body if getattr(n, "name", "") not in _LEFT_OUT]
            decorators = part.decorator_list
            part.decorator_list = [d for d in decorators if "ModelRegistry" not in ast.unparse(d)]
        blocks = [getattr(part, name, None) for name in ("body", "orelse", "finalbody")]
        for block in (block for block in blocks if isinstance(block, list)):
            for node in [node for node in block if isinstance(node, ast.ImportFrom)]:
                if self._place(node).partition(".")[0] in self.own:
                    imported += [(self._place(node), a.name) for a in node.names]
                    block.remove(node)


def standalone_source(cls: type) -> str:
    """Python that defines a class without importing its own package, or ours.

    What it needs of these is copied: functions, classes and values, without comments, in the order
    in which they are made. ValueError for what cannot be: a module imported as a whole, or two
    parts of one name.
    """
    own, modules = {"wfimagevae", cls.__module__.partition(".")[0]}, {}

    def module_of(place: str, name: str = "") -> _Module:
        place = stand_ins.__name__ if name in _STAND_INS else place
        if place not in modules:
            modules[place] = _Module(place, own)
        return modules[place]

    # Which statements it needs, and which modules those of a module must come after.
    needed: dict[_Module, set[ast.stmt]] = {}
    before: dict[_Module | None, dict[_Module, None]] = {}
    imports: set[str] = set()
    waiting = [(module_of(cls.__module__), cls.__name__, None)]
    while waiting:
        module, name, user = waiting.pop()
        if name in module.bound:
            node = module.bound[name]
            before.setdefault(module, {})
            before.setdefault(user, {})[module] = None
            if node not in needed.setdefault(module, set()):
                needed[module].add(node)
                used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                waiting += [(module, part, module) for part in sorted(used)]
                waiting += [(module_of(*part), part[1], None) for part in module.inner[node]]
        elif name in module.imported:
            place, alias = module.imported[name]
            if (place or alias.name).partition(".")[0] not in own:
                words = ast.unparse(alias)
                imports.add(f"from {place} import {words}" if place else f"import {words}")
                continue
            if alias.asname or not place:
                raise ValueError(f"{module.name} imports {alias.name}: write from ... import NAME")
            waiting.append((module_of(place, name), name, user))
        elif not hasattr(builtins, name) and hasattr(module.content, name):
            value = getattr(module.content, name)  # a package that imports its parts when asked
            if not hasattr(value, "__qualname__"):
                raise ValueError(f"{module.name} has a module {name}: import from it by name")
            waiting.append((module_of(value.__module__, name), name, user))

    # Modules in the order of their imports, their parts in the order in which they stand.
    order: dict[_Module | None, None] = {}

    def visit(module: _Module | None, path: tuple = ()) -> None:
        for other in before[module]:
            if other not in (module, *path):
                visit(other, (*path, module))
        order.setdefault(module)

    visit(None)
    parts: dict[str, str] = {}
    for module in [module for module in order if module]:
        for name, node in module.bound.items():
            text = ast.unparse(node) if node in needed[module] else ""
            if text and parts.setdefault(name, text) != text:
                raise ValueError(f"two parts are called {name}, one of {module.name}: rename it")
    head = f'"""{cls.__name__}, opened by torch and diffusers alone."""\n\n'
    body = "\n\n\n".join(dict.fromkeys(parts.values()))
    return head + "\n".join(sorted(imports)) + f"\n\n\n{body}\n"
