"""The house rules that a machine can read: who imports whom, what no module does, what stands at the top."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gmultisocket"

# Row by row as in docs/design.rst: what a module of the row may import of the library, its own row aside.
FLOOR = {"counters", "errors", "frozen", "log", "state"}
BELOW_TRANSPORT = FLOOR | {"options", "wire", "address", "loop"}
BELOW_CORE = BELOW_TRANSPORT | {"transport"}
BELOW_SOCKET_USERS = BELOW_CORE | {"core"}
EVERYTHING = BELOW_SOCKET_USERS | {"switch", "protocol", "contrib", "testing", "cli", "gmultisocket"}
MAY_IMPORT: dict[str, set[str]] = {
    "counters": set(),
    "errors": set(),
    "frozen": set(),
    "log": {"errors"},
    "state": set(),
    "loop": FLOOR,
    "options": FLOOR,
    "wire": FLOOR,
    "address": FLOOR | {"options"},
    "transport": BELOW_TRANSPORT,
    "core": BELOW_CORE,
    "switch": BELOW_SOCKET_USERS,
    "protocol": BELOW_SOCKET_USERS,
    "contrib": BELOW_SOCKET_USERS,
    "gmultisocket": BELOW_SOCKET_USERS | {"switch", "protocol"},  # the package's own __init__
    "testing": EVERYTHING - {"cli", "contrib"},
    "cli": EVERYTHING,
}
FOREIGN_TO_ALL = {"threading", "_thread", "asyncio"}
FOREIGN_TO_WIRE = FOREIGN_TO_ALL | {"gevent", "greenlet", "socket", "ssl", "select", "time", "logging"}

TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGES.rst",
    "LICENSE",
    "README.rst",
    "benchmarks",
    "docs",
    "examples",
    "gmultisocket",
    "pyproject.toml",
    "setup.cfg",
    "setup.py",
    "tests",
}
# Put together here, so that this file does not break its own rule.
MACHINE_NAMES = ["/" + "work/", "/" + "root/", "pypi" + ".org", "pythonhosted" + ".org", "proxy.golang" + ".org"]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def row_of(path: Path) -> str:
    """Return the row of the house that a module belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return {"__init__.py": "gmultisocket", "__main__.py": "cli"}.get(first, first.removesuffix(".py"))


def imports(path: Path, tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """Yield what a module imports as absolute dotted names, split; ``from a import b`` is ``("a", "b")``."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = base + tuple(node.module.split(".") if node.module else ())
            yield from ((*start, alias.name) for alias in node.names)


def rows_imported(path: Path, tree: ast.AST) -> set[str]:
    """Return the rows of the library that a module imports from."""
    rows = set()
    for name in imports(path, tree):
        if name[0] == "gmultisocket":
            part = name[1] if len(name) > 1 else ""
            rows.add(part if part in MAY_IMPORT else "gmultisocket")
    return rows


def tracked_files() -> list[Path]:
    """Return the files under version control, or skip where this is no checkout."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    return [Path(name) for name in listing.stdout.decode().split("\0") if name]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_from_the_rows_under_it(path: Path) -> None:
    row = row_of(path)
    assert row in MAY_IMPORT, f"{name_of(path)} stands in no row of the house"
    assert rows_imported(path, ast.parse(path.read_text())) <= MAY_IMPORT[row] | {row}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_module_uses_threads_blocks_the_loop_or_monkey_patches(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = set(imports(path, tree))
    foreign = FOREIGN_TO_WIRE if row_of(path) == "wire" else FOREIGN_TO_ALL
    assert not {name[0] for name in imported} & foreign
    assert ("time", "sleep") not in imported
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "time.sleep", f"line {node.lineno}"
            assert not node.attr.startswith("patch_"), f"line {node.lineno} patches"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and row_of(path) != "cli":
            assert node.func.id != "print", f"line {node.lineno} prints"
    assert not [name for name in imported if name[0] == "gevent" and name[-1].startswith("patch_")]


def test_importing_everything_starts_nothing() -> None:
    program = """
import importlib, os, pkgutil, sys
import gmultisocket
before = os.listdir("/proc/self/fd")
for module in pkgutil.walk_packages(gmultisocket.__path__, "gmultisocket."):
    if not module.name.startswith("gmultisocket.contrib.") and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from gevent import monkey
from gevent._hub_local import get_hub_if_exists
assert get_hub_if_exists() is None, "an event loop was made"
assert os.listdir("/proc/self/fd") == before, "a descriptor was opened"
assert not monkey.saved, "something is monkey patched"
"""
    fresh = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50
    )
    assert fresh.returncode == 0, fresh.stderr


def test_only_the_listed_names_stand_at_the_top_level() -> None:
    assert {path.parts[0] for path in tracked_files()} <= TOP_LEVEL


def test_no_tracked_file_names_a_machine_or_a_registry() -> None:
    found = []
    for path in tracked_files():
        try:
            text = (ROOT / path).read_text()
        except (FileNotFoundError, UnicodeDecodeError):
            continue  # deleted and not yet committed, or not a text
        found += [f"{path}: {name}" for name in MACHINE_NAMES if name in text]
    assert not found


@pytest.mark.parametrize(
    ("module", "source", "rows"),
    [
        ("wire.py", "from .core.pipes.pipe import Pipe", {"core"}),
        ("core/pipe.py", "from .. import errors, wire", {"errors", "wire"}),
        ("core/pipe.py", "from ..transport.base import Connection\nfrom .ids import next_id", {"transport", "core"}),
        ("core/pipe.py", "import gmultisocket.cli.demo, gevent", {"cli"}),
        ("protocol/stream.py", "def f():\n    from gmultisocket import Socket", {"gmultisocket"}),
        ("__init__.py", "from .core import Socket", {"core"}),
    ],
)
def test_every_way_to_import_is_seen(module: str, source: str, rows: set[str]) -> None:
    assert rows_imported(PACKAGE / module, ast.parse(source)) == rows
