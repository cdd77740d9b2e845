"""The house rules that a machine can read: who imports whom, what no module does, how long it is; and the top level."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.house import (
    Module,
    cycles,
    habits,
    imported_names,
    read_package,
    rows_imported,
    sizes,
    upward_imports,
)

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "gmultisocket"

# Row by row as in docs/design.rst: what a module of the row may import of the library, its own row aside.
FLOOR = {"counters", "errors", "frozen", "log", "state", "system", "usercode"}
BELOW_TRANSPORT = FLOOR | {"options", "wire", "address", "loop"}
BELOW_CORE = BELOW_TRANSPORT | {"transport"}
BELOW_SOCKET_USERS = BELOW_CORE | {"core"}
EVERYTHING = BELOW_SOCKET_USERS | {"switch", "protocol", "backplane", "contrib", "testing", "cli", PACKAGE}
MAY_IMPORT: dict[str, set[str]] = {
    "counters": set(),
    "errors": set(),
    "frozen": set(),
    "log": {"errors"},
    "state": set(),
    "usercode": {"errors", "log"},
    "system": set(),
    "loop": FLOOR,
    "options": FLOOR,
    "wire": FLOOR,
    "address": FLOOR | {"options"},
    "transport": BELOW_TRANSPORT,
    "core": BELOW_CORE,
    "switch": BELOW_SOCKET_USERS,
    "protocol": BELOW_SOCKET_USERS,
    "backplane": BELOW_SOCKET_USERS | {"protocol"},
    "contrib": BELOW_SOCKET_USERS | {"backplane"},
    PACKAGE: BELOW_SOCKET_USERS | {"switch", "protocol", "backplane"},  # the package's own __init__
    "testing": EVERYTHING - {"cli", "contrib"},
    "cli": EVERYTHING,
}
#: The folders of the core, each on top of those before it; what is directly in core/ stands on all of them.
CORE_FLOORS = ("receiving", "pipes", "sending", "connecting")

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


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    """All modules of the library."""
    return read_package(ROOT / PACKAGE)


def row_of(module: Module) -> str:
    """Return the row of the house that a module belongs to."""
    parts = module.name.split(".")
    row = parts[1] if len(parts) > 1 else PACKAGE
    return {"__main__": "cli"}.get(row, row)


def check(findings: Iterable[str]) -> None:
    """Fail with all findings, one below the other."""
    found = list(findings)
    if found:
        pytest.fail("\n".join([f"{len(found)} findings:", *found]), pytrace=False)


# The library


def test_a_module_imports_only_from_the_rows_under_it(modules: dict[str, Module]) -> None:
    findings = []
    for module in modules.values():
        row = row_of(module)
        if row not in MAY_IMPORT:
            findings.append(f"{module.path} stands in no row of the house")
            continue
        above = rows_imported(module, MAY_IMPORT) - MAY_IMPORT[row] - {row}
        findings += [f"{module.path} imports from {other}" for other in sorted(above)]
    check(findings)


def test_no_modules_need_each_other_also_for_their_types(modules: dict[str, Module]) -> None:
    check(cycles(modules))


def test_a_folder_of_the_core_imports_only_from_those_under_it(modules: dict[str, Module]) -> None:
    check(upward_imports(modules, f"{PACKAGE}.core", CORE_FLOORS))


def test_no_module_uses_threads_blocks_the_loop_or_monkey_patches(modules: dict[str, Module]) -> None:
    findings = []
    for module in modules.values():
        row = row_of(module)
        findings += habits(module, FOREIGN_TO_WIRE if row == "wire" else FOREIGN_TO_ALL, may_print=row == "cli")
    check(findings)


def test_a_module_a_class_and_a_function_can_be_read_in_one_sitting(modules: dict[str, Module]) -> None:
    """A guard, and no target: what is far under the limits is not better for being shorter."""
    check(
        finding
        for module in modules.values()
        for finding in sizes(module, module_lines=700, class_lines=400, function_lines=60)
    )


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


# The repository


def tracked_files() -> list[Path]:
    """Return the files under version control, or skip where this is no checkout."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    return [Path(name) for name in listing.stdout.decode().split("\0") if name]


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
    check(found)


# What reads the source, on small packages


def package(folder: Path, sources: Mapping[str, str]) -> dict[str, Module]:
    """Write the files of a package named "house" and read it; an ``__init__`` that is not given is empty."""
    for name, source in sources.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    for parent in (folder / "house", *(path for path in (folder / "house").rglob("*") if path.is_dir())):
        (parent / "__init__.py").touch()
    return read_package(folder / "house")


def module_of(path: str, source: str) -> Module:
    name = path.removesuffix(".py").replace("/", ".")
    return Module(name.removesuffix(".__init__"), path, name.endswith("__init__"), source)


def test_a_package_is_read_with_its_folders(tmp_path: Path) -> None:
    found = package(tmp_path, {"one.py": "", "core/pipe.py": "import os"})
    assert {name: (module.path, module.is_package) for name, module in found.items()} == {
        "house": ("house/__init__.py", True),
        "house.one": ("house/one.py", False),
        "house.core": ("house/core/__init__.py", True),
        "house.core.pipe": ("house/core/pipe.py", False),
    }
    assert list(imported_names(found["house.core.pipe"])) == [("os",)]


@pytest.mark.parametrize(
    ("path", "source", "rows"),
    [
        ("gmultisocket/wire.py", "from .core.pipe import Pipe", {"core"}),
        ("gmultisocket/core/pipe.py", "from .. import errors, wire", {"errors", "wire"}),
        ("gmultisocket/core/pipe.py", "from ..transport.base import X\nfrom .ids import Y", {"transport", "core"}),
        ("gmultisocket/core/pipes/pipe.py", "from ...wire import X\nfrom ..socket import Y", {"wire", "core"}),
        ("gmultisocket/core/pipe.py", "import gmultisocket.cli.demo, gevent", {"cli"}),
        ("gmultisocket/protocol/stream.py", "def f():\n    from gmultisocket import Socket", {"gmultisocket"}),
        ("gmultisocket/core/pipe.py", "if TYPE_CHECKING:\n    from ..switch import Switch", {"switch"}),
        ("gmultisocket/__init__.py", "from .core import Socket", {"core"}),
    ],
)
def test_every_way_to_import_is_seen(path: str, source: str, rows: set[str]) -> None:
    assert rows_imported(module_of(path, source), MAY_IMPORT) == rows


def test_a_package_without_a_cycle_has_none(tmp_path: Path) -> None:
    sources = {
        "__init__.py": "from . import low\nfrom .core.pipe import Pipe\n",
        "low.py": "",
        "core/__init__.py": "from .pipe import Pipe\n",
        "core/pipe.py": "from .. import low\nfrom .ids import next_id\nimport house.low\n",
        "core/ids.py": "import os\nfrom ..low import something\n",
        "top.py": "from . import core, low\nfrom .core import Pipe\nimport house\n",
    }
    assert cycles(package(tmp_path, sources)) == []


def test_a_cycle_of_types_is_found_and_its_modules_are_named(tmp_path: Path) -> None:
    sources = {
        "one.py": "from .two import Two\n",
        "two.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .three import Three\n",
        "three.py": "def f():\n    from . import one\n",
        "aside.py": "from .one import One\n",
        "core/a.py": "from .b import B\n",
        "core/b.py": "import house.core.a\n",
    }
    assert cycles(package(tmp_path, sources)) == [
        "a cycle of 2 modules:\n  house.core.a -> house.core.b\n  house.core.b -> house.core.a",
        "a cycle of 3 modules:\n  house.one -> house.two\n  house.three -> house.one\n  house.two -> house.three",
    ]


def test_cycles_that_share_a_module_are_one(tmp_path: Path) -> None:
    sources = {
        "a.py": "from . import b, c",
        "b.py": "from .a import A",
        "c.py": "from .d import D",
        "d.py": "from . import a",
    }
    (text,) = cycles(package(tmp_path, sources))
    assert text.startswith("a cycle of 4 modules:")
    assert "house.a -> house.b, house.c" in text


def test_a_module_that_imports_from_its_own_package_makes_a_cycle_if_that_imports_it(tmp_path: Path) -> None:
    lazy = "if TYPE_CHECKING:\n    from .pipe import Pipe\ndef __getattr__(name):\n    ...\n"
    sources = {"core/__init__.py": lazy, "core/pipe.py": "from . import Pipe\n", "core/ids.py": "from . import Pipe\n"}
    assert cycles(package(tmp_path, sources)) == [
        "a cycle of 2 modules:\n  house.core -> house.core.pipe\n  house.core.pipe -> house.core"
    ]
    # The name of a submodule stands for the submodule, and not for something in the package's __init__.
    sources |= {"core/pipe.py": "from . import ids\n", "core/ids.py": ""}
    assert cycles(package(tmp_path, sources)) == []


CORE = {
    "low.py": "",
    "core/first/a.py": "from ... import low\n",
    "core/second/b.py": "from ..first.a import A\nfrom .c import C\n",
    "core/second/c.py": "from ..first import a\n",
    "core/socket.py": "from .second.b import B\nfrom .first.a import A\nfrom .pair import pair\n",
    "core/pair.py": "from .socket import Socket\n",
}


def test_floors_import_downwards_only(tmp_path: Path) -> None:
    found = package(tmp_path, CORE)
    assert upward_imports(found, "house.core", ("first", "second")) == []
    assert upward_imports(found, "house.core", ("second", "first")) == [
        "house.core.second.b imports house.core.first.a, which stands above it",
        "house.core.second.c imports house.core.first.a, which stands above it",
    ]


def test_what_stands_on_no_floor_or_imports_from_above_is_named(tmp_path: Path) -> None:
    up = "def f():\n    from ..socket import Socket\n    from .. import NAME\n    from ..other.d import D\n"
    found = package(tmp_path, {**CORE, "core/first/a.py": up, "core/other/d.py": ""})
    assert upward_imports(found, "house.core", ("first", "second", "third")) == [
        "house.core.third is not there",
        "house.core.other stands on no floor",
        "house.core.other.d stands on no floor",
        "house.core.first.a imports house.core, which stands above it",
        "house.core.first.a imports house.core.socket, which stands above it",
    ]


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("import threading", ": imports threading"),
        ("def f():\n    from _thread import allocate_lock", ": imports _thread.allocate_lock"),
        ("from time import sleep", ": imports time.sleep"),
        ("import time\n\ntime.sleep(1)", ":3: uses time.sleep"),
        ("from gevent.monkey import patch_all", ": imports gevent.monkey.patch_all"),
        ("from gevent import monkey\nmonkey.patch_socket()", ":2: patches"),
        ("x = 1\nprint(x)", ":2: prints"),
    ],
)
def test_what_no_module_does_is_found(source: str, finding: str) -> None:
    assert habits(module_of("house/one.py", source), {"threading", "_thread"}) == [f"house/one.py{finding}"]


def test_what_a_module_may_do_is_not_found() -> None:
    source = "import time, gevent\ngevent.sleep(1)\ntime.monotonic()\nself.print('x')\nprint('y')\n"
    assert habits(module_of("house/one.py", source), {"threading"}, may_print=True) == []


LONG = """\
class A:
    x = 1

    @property
    def f(self):
        def g():
            pass

        return g
"""


def test_what_is_too_long_is_named_with_its_size() -> None:
    module = module_of("house/one.py", LONG)
    assert sizes(module, module_lines=9, class_lines=9, function_lines=5) == []
    assert sizes(module, module_lines=8, class_lines=8, function_lines=1) == [
        "house/one.py: 9 lines, more than 8",
        "house/one.py:1: A has 9 lines, more than 8",
        "house/one.py:5: f has 5 lines, more than 1",
        "house/one.py:6: g has 2 lines, more than 1",
    ]
