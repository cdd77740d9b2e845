"""Read the source of a package for :mod:`tests.test_house`: its imports, forbidden habits, and sizes.

Each check returns its findings as lines of text, and an empty list if there are none.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["Module", "cycles", "habits", "imported_names", "read_package", "rows_imported", "sizes", "upward_imports"]


@dataclass(frozen=True)
class Module:
    """A module of a package.

    Attributes:
        name: as in an import statement; a package's ``__init__`` has the name of the package.
        path: the file, as findings show it.
        is_package: whether it is an ``__init__``.
        source: its text.
    """

    name: str
    path: str
    is_package: bool
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def package(self) -> tuple[str, ...]:
        """What relative imports start from."""
        parts = tuple(self.name.split("."))
        return parts if self.is_package else parts[:-1]


def read_package(folder: Path) -> dict[str, Module]:
    """Return all modules of a package, by name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        shown = path.relative_to(folder.parent)
        parts = shown.with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = Module(name, str(shown), is_package, path.read_text())
    assert found, f"{folder} holds no module"
    return found


# Imports


def imported_names(module: Module) -> Iterator[tuple[str, ...]]:
    """Yield what a module imports as absolute dotted names, split; ``from a import b`` is ``("a", "b")``.

    Every statement counts: those in functions and those under ``TYPE_CHECKING`` too.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.package[: len(module.package) - node.level + 1] if node.level else ()
            start = base + tuple(node.module.split(".") if node.module else ())
            yield from ((*start, alias.name) for alias in node.names)


def rows_imported(module: Module, rows: Mapping[str, object]) -> set[str]:
    """Return the rows of the package that a module imports from; its top level is the row of the package's name."""
    top = module.name.split(".")[0]
    found = set()
    for name in imported_names(module):
        if name[0] == top:
            part = name[1] if len(name) > 1 else ""
            found.add(part if part in rows else top)
    return found


def _graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Return which modules each module imports.

    ``from package import name`` counts as an import of the submodule with that name, if it exists, and otherwise of the
    package's ``__init__``.
    """
    graph: dict[str, set[str]] = {}
    for module in modules.values():
        targets = graph[module.name] = set()
        for parts in imported_names(module):
            whole, parent = ".".join(parts), ".".join(parts[:-1])
            target = whole if whole in modules else parent
            if target in modules and target != module.name:
                targets.add(target)
    return graph


def cycles(modules: Mapping[str, Module]) -> list[str]:
    """Return a text for each set of modules that import each other. Imports of every kind count."""
    graph = _graph(modules)
    found = []
    for component in _components(graph):
        if len(component) > 1:
            members = sorted(component)
            lines = [f"  {name} -> {', '.join(sorted(graph[name] & component))}" for name in members]
            found.append("\n".join([f"a cycle of {len(members)} modules:", *lines]))
    return sorted(found)


def _components(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the strongly connected components of a graph (Tarjan's algorithm)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for target in graph[node]:
            if target not in number:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], number[target])
        if lowest[node] == number[node]:
            start = stack.index(node)
            found.append(set(stack[start:]))
            del stack[start:]

    for node in graph:
        if node not in number:
            visit(node)
    return found


def upward_imports(modules: Mapping[str, Module], package: str, floors: Sequence[str]) -> list[str]:
    """Return the imports in a package's folders that go to a higher floor.

    Args:
        modules: all modules.
        package: the package whose folders are the floors. Modules directly in it are above all floors.
        floors: the names of its folders, the lowest first. It may have no other folders.
    """
    above = len(floors)
    prefix = package + "."

    def floor_of(name: str) -> int:
        parts = name.removeprefix(prefix).split(".")
        if len(parts) == 1 and not modules[name].is_package:
            return above
        return floors.index(parts[0]) if parts[0] in floors else -1

    graph = _graph(modules)
    inside = {name: floor_of(name) for name in modules if name.startswith(prefix)}
    found = [f"{prefix}{floor} is not there" for floor in floors if prefix + floor not in modules]
    found += [f"{name} stands on no floor" for name, floor in inside.items() if floor < 0]
    for name, floor in inside.items():
        for target in sorted(graph[name]):
            target_floor = above if target == package else inside.get(target, -1)
            if 0 <= floor < target_floor:
                found.append(f"{name} imports {target}, which stands above it")
    return found


# What a module does


def habits(module: Module, foreign: set[str], *, may_print: bool = False) -> list[str]:
    """Return the places where a module imports foreign modules, blocks the event loop, monkey patches or prints.

    Args:
        module: the module.
        foreign: top-level modules that it may not import.
        may_print: whether it may print.
    """
    found = []
    for name in sorted(set(imported_names(module))):
        if name[0] in foreign or name == ("time", "sleep") or (name[0] == "gevent" and name[-1].startswith("patch_")):
            found.append(f"{module.path}: imports {'.'.join(name)}")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            if ast.unparse(node) == "time.sleep":
                found.append(f"{module.path}:{node.lineno}: uses time.sleep")
            if node.attr.startswith("patch_"):
                found.append(f"{module.path}:{node.lineno}: patches")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and not may_print:
            found.append(f"{module.path}:{node.lineno}: prints")
    return found


# Sizes


def sizes(module: Module, *, module_lines: int, class_lines: int, function_lines: int) -> list[str]:
    """Return the module, classes and functions that are over the limits. Docstrings and comments count."""
    found = []
    lines = len(module.source.splitlines())
    if lines > module_lines:
        found.append(f"{module.path}: {lines} lines, more than {module_lines}")
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            limit = class_lines if isinstance(node, ast.ClassDef) else function_lines
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > limit:
                found.append(f"{module.path}:{node.lineno}: {node.name} has {lines} lines, more than {limit}")
    return found
