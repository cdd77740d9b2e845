"""Servers that pages and examples show go on beside a peer that asks and does not read, or that disconnects."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import BrokenPath, Timeout
from gmultisocket.testing import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
ANSWERED = 30


def blocks(page: Path) -> list[str]:
    """Return the Python blocks of a page."""
    found = re.findall(r"^\.\. code-block:: python\n(?: +:.*\n)*\n((?:    .*\n|\n)+)", page.read_text(), re.M)
    return [textwrap.dedent(block) for block in found]


def test_every_answer_in_a_loop_survives_a_peer_that_has_gone() -> None:
    """A ``send_to`` in a loop that does not expect BrokenPath ends its server at the first peer that leaves."""
    programs = [(str(page), block) for page in PAGES for block in blocks(page)]
    programs += [(str(path), path.read_text()) for path in EXAMPLES]
    seen, wrong = 0, []
    for name, program in programs:
        for loop in ast.walk(ast.parse(program)):
            if not isinstance(loop, (ast.For, ast.While)):
                continue
            for call in ast.walk(loop):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "send_to":
                    seen += 1
                    if "BrokenPath" not in ast.unparse(loop):
                        wrong.append(f"{name}: {ast.unparse(call)}")
    assert seen >= 6 and not wrong


def ask_and_not_read(address: str, stack: ExitStack, content: bytes) -> None:
    peer = stack.enter_context(Socket({"socket.recv_queue_size": 1, "connector.dialer.reconnect": False}))
    peer.dial(address)
    with suppress(Timeout):
        for _ in range(300):
            peer.send(content, timeout=0.1)


def check_beside_hostile_peers(address: str, query: str = "") -> None:
    """Check that an honest peer is answered while others ask and do not read, and disconnect."""
    large = bytes(100_000)
    with ExitStack() as stack:
        for _ in range(3):
            ask_and_not_read(address, stack, large)
        with Socket() as gone:
            gone.dial(address)
            for _ in range(20):
                gone.send(large)
        honest = stack.enter_context(Socket())
        honest.dial(address)
        for number in range(ANSWERED):
            honest.send(b"number %d" % number)
            assert b"number %d" % number in honest.recv(timeout=20).lower()


@pytest.mark.parametrize("page", ["README.rst", "docs/index.rst", "docs/quickstart.rst"])
def test_the_server_of_a_page_beside_hostile_peers(page: str, tmp_path: Path) -> None:
    (program,) = (block for block in blocks(ROOT / page) if "server.send_to(" in block)
    address = f"ipc://{tmp_path}/page"
    assert "tcp://127.0.0.1:30001" in program
    command = [sys.executable, "-c", program.replace("tcp://127.0.0.1:30001", address)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=ROOT) as process:
        try:
            wait_until((tmp_path / "page").exists, timeout=30)
            check_beside_hostile_peers(address)
            assert process.poll() is None
        finally:
            process.kill()
            (tmp_path / "page").unlink()


def test_the_quick_start_server_beside_hostile_peers(tmp_path: Path) -> None:
    command = [sys.executable, "examples/quickstart_server.py", f"ipc://{tmp_path}/quick"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        try:
            wait_until((tmp_path / "quick").exists, timeout=30)
            check_beside_hostile_peers(f"ipc://{tmp_path}/quick")
            assert process.poll() is None
        finally:
            process.kill()
            (tmp_path / "quick").unlink()


def module(name: str) -> ModuleType:
    """Import an example."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def serving() -> Iterator[Callable[..., Any]]:
    """Runs a server's function in a greenlet until the test has ended."""
    greenlets: list[Any] = []

    def serve(function: Callable[..., object], *arguments: object) -> None:
        greenlets.append(gevent.spawn(function, *arguments))

    yield serve
    gevent.killall(greenlets)


def test_the_server_of_the_gunicorn_page_beside_hostile_peers(serving: Callable[..., None]) -> None:
    (program,) = (block for block in blocks(ROOT / "docs/gunicorn.rst") if "def answer(sock):" in block)
    names: dict[str, Any] = {"BrokenPath": BrokenPath, "suppress": suppress}
    tree = ast.parse(program)
    tree.body = [part for part in tree.body if isinstance(part, ast.FunctionDef) and part.name == "answer"]
    exec(compile(tree, "gunicorn.rst", "exec"), names)
    with Socket() as sock:
        address = sock.listen("ws://127.0.0.1:0").address
        serving(names["answer"], sock)
        check_beside_hostile_peers(address)


def test_the_service_behind_the_example_of_a_switch_beside_hostile_peers(serving: Callable[..., None]) -> None:
    with Socket() as service:
        address = service.listen("tcp://127.0.0.1:0").address
        serving(module("switch").serve, service)
        check_beside_hostile_peers(address)


def test_the_server_of_the_example_of_raw_pipes_beside_hostile_peers(serving: Callable[..., None]) -> None:
    with Socket() as sock, ExitStack() as stack:
        address = sock.listen("tcp://127.0.0.1:0", {"connector.pipe.raw": True}).address
        serving(module("raw_pipe").serve, sock)
        host, port = address.removeprefix("tcp://").split(":")
        for _ in range(3):
            peer = stack.enter_context(gevent.socket.create_connection((host, int(port))))
            peer.settimeout(0.5)
            with suppress(OSError):
                for _ in range(100):
                    peer.sendall(bytes(100_000))
        with gevent.socket.create_connection((host, int(port))) as honest, honest.makefile("rb") as lines:
            assert lines.readline() == b"welcome, stranger\n"
            for number in range(ANSWERED):
                honest.sendall(b"number %d\n" % number)
                assert lines.readline() == b"you said number %d\n" % number
