"""One Python file out of this package's own: the definitions that a module needs, and no others.

What is exported runs the code that trained it, so there is no second model that could differ from the first.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "avpretrain"
REPLACED = {("einops", "rearrange"): ("avpretrain.evaluation.portable.rearrange", "rearrange")}
"""External names that the bundle takes from here, since a reader of the bundle need not have their package."""


@dataclass
class _Module:
    """Top-level names of a source file."""

    source: str
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name here -> module and name there; an empty name there = the module itself."""


class _Names(ast.NodeVisitor):
    """Names that are looked up when the code runs; annotations stay text."""

    def __init__(self) -> None:
        self.used: dict[str, None] = {}

    def visit_Name(self, node: ast.Name) -> None:
        self.used[node.id] = None

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        pass

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, node.args, *node.body):
            self.visit(part)


class Bundle:
    """Collects definitions, each after those that it needs.

    Raises:
        ValueError: two modules give different things the same name, or a name is used as a module of this package.
    """

    def __init__(self) -> None:
        self._modules: dict[str, _Module] = {}
        self._owner: dict[str, str] = {}
        self._external: dict[str, None] = {}
        self._parts: list[str] = []

    def add(self, module: str, name: str) -> None:
        """Adds a definition of a module and all that it needs."""
        contents = self._read(module)
        if name not in contents.definitions:
            if name in contents.imports:
                self._add_import(name, *contents.imports[name])
            return
        if name in self._owner:
            if self._owner[name] != module:
                raise ValueError(f"{module} and {self._owner[name]} both define {name}; rename one")
            return
        self._owner[name] = module
        node = contents.definitions[name]
        names = _Names()
        names.visit(node)
        for needed in names.used:
            self.add(module, needed)
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        self._parts.append("\n".join(contents.source.splitlines()[first - 1 : node.end_lineno]))

    def text(self, docstring: str) -> str:
        """The file."""
        head = f'"""{docstring}"""\n\nfrom __future__ import annotations\n\n' + "\n".join(sorted(self._external))
        return head + "\n\n\n" + "\n\n\n".join(self._parts) + "\n"

    def _add_import(self, name: str, module: str, original: str) -> None:
        module, original = REPLACED.get((module, original), (module, original))
        if module.split(".")[0] != PACKAGE:
            renamed = "" if name == (original or module) else f" as {name}"
            line = f"from {module} import {original}{renamed}" if original else f"import {module}{renamed}"
            self._external[line] = None
        elif not original or _is_module(module, original):
            raise ValueError(f"{name} is a module; import what is needed of it by name")
        elif name != original:
            raise ValueError(f"{original} of {module} is imported as {name}; import it by its own name")
        else:
            self.add(module, original)

    def _read(self, module: str) -> _Module:
        if module not in self._modules:
            spec = importlib.util.find_spec(module)
            assert spec is not None and spec.origin is not None, module
            source = Path(spec.origin).read_text(encoding="utf-8")
            self._modules[module] = contents = _Module(source)
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    contents.definitions[node.name] = node
                elif isinstance(node, ast.Assign | ast.AnnAssign):
                    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                        contents.definitions |= {n.id: node for n in ast.walk(target) if isinstance(n, ast.Name)}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    contents.imports |= {a.asname or a.name: (node.module, a.name) for a in node.names}
                elif isinstance(node, ast.Import):
                    contents.imports |= {a.asname or a.name.split(".")[0]: (a.name, "") for a in node.names}
        return self._modules[module]


def _is_module(package: str, name: str) -> bool:
    """Whether a name of a package is a module in it."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return any((Path(place) / f"{name}.py").is_file() or (Path(place) / name).is_dir() for place in places or ())
