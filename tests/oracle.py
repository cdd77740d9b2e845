"""The oracle: after every test, the process must hold what it held before.

A test fails by its own name when it leaves behind a descriptor, a live greenlet, an open Socket, an inproc name or a
socket file under its ``tmp_path``, or when the loop reported an error that nobody took. What is still closing gets
``oracle_grace`` seconds of loop turns first. It looks at differences, so that fixtures of a wider scope may keep things
open.

An error of a greenlet counts as taken once it was raised again: ``greenlet.get()`` or ``gevent.joinall(...,
raise_error=True)`` does that. Reading ``greenlet.exception`` does not.

This is a pytest plugin, loaded by ``tests/conftest.py`` and by the inner runs of ``tests/test_oracle.py``.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import gevent
import pytest
from gevent.hub import Hub

# What the event loop opens for itself, and when it likes: epoll, eventfd, timerfd, inotify. The library opens no such.
_LOOP_DESCRIPTOR = "anon_inode:"


class HubErrors:
    """Every error that a hub reported, until it is looked at.

    The class is patched, not the hub of the main thread, so that the hubs of a test's other threads are heard too.
    """

    def __init__(self) -> None:
        self._reported: list[tuple[str, BaseException, TracebackType | None]] = []
        self._original: Any = None

    def install(self) -> None:
        self._original = Hub.handle_error
        original, record = self._original, self._record

        def handle_error(hub: Hub, context: object, kind: type[BaseException], value: Any, tb: Any) -> None:
            record(hub, context, kind, value, tb)
            original(hub, context, kind, value, tb)

        setattr(Hub, "handle_error", handle_error)  # noqa: B010, a plain assignment is an error to mypy

    def uninstall(self) -> None:
        setattr(Hub, "handle_error", self._original)  # noqa: B010

    def _record(self, hub: Hub, context: object, kind: type[BaseException], value: Any, tb: Any) -> None:
        error = value if isinstance(value, BaseException) else kind(value)
        if not isinstance(error, hub.NOT_ERROR):
            self._reported.append((repr(context), error, tb or error.__traceback__))

    def take(self) -> list[str]:
        """Forget all reports and return those that nobody took, with their tracebacks."""
        reported, self._reported = self._reported, []
        return [
            f"an error that nobody took, in {context}:\n{''.join(traceback.format_exception(type(error), error, tb))}"
            for context, error, tb in reported
            # Raising an exception again gives it a new traceback: whoever did that has seen the error.
            if error.__traceback__ is tb
        ]


class Greenlets:
    """Every greenlet that was started and has not ended yet."""

    def __init__(self) -> None:
        self._started: weakref.WeakSet[gevent.Greenlet[..., Any]] = weakref.WeakSet()

    def install(self) -> None:
        gevent.Greenlet.add_spawn_callback(self._started.add)

    def uninstall(self) -> None:
        gevent.Greenlet.remove_spawn_callback(self._started.add)

    def alive(self) -> dict[object, str]:
        here = gevent.getcurrent()
        return {g: _describe_greenlet(g) for g in list(self._started) if not g.ready() and g is not here}


def _describe_greenlet(greenlet: gevent.Greenlet[..., Any]) -> str:
    stack = traceback.format_stack(greenlet.gr_frame, limit=4) if greenlet.gr_frame else ["  not run yet\n"]
    return f"a live greenlet: {greenlet!r} at\n{''.join(stack).rstrip()}"


def descriptors() -> dict[object, str]:
    """Return the open descriptors of this process that are not the event loop's."""
    found: dict[object, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
        if not target.startswith(_LOOP_DESCRIPTOR):
            found[name, target] = f"a descriptor: {name} -> {target}"
    return found


def _name_socket(description: str) -> str:
    """Add to a leaked socket's description whose it is: addresses say more than an inode."""
    head, _, target = description.partition(" -> ")
    if not target.startswith("socket:"):
        return description
    try:
        with socket.socket(fileno=os.dup(int(head.rsplit(" ", 1)[1]))) as sock:
            try:
                peer = sock.getpeername()
            except OSError:
                peer = None
            return f"{description} {sock.family.name} {sock.getsockname()!r} peer {peer!r}"
    except (OSError, ValueError):
        return description  # closed in this very moment


def open_sockets() -> dict[object, str]:
    """Return the library's Sockets that are not closed. A test that never imported them has none."""
    module: Any = sys.modules.get("gmultisocket.core.socket")
    return {sock: f"an open Socket: {sock!r}" for sock in module.live_sockets()} if module else {}


def inproc_names() -> dict[object, str]:
    """Return the names that inproc listeners hold."""
    module: Any = sys.modules.get("gmultisocket.transport.inproc")
    return {name: f"an inproc name: {name!r}" for name in module.names()} if module else {}


def socket_files(folder: Path | None) -> dict[object, str]:
    """Return the unix socket files under a test's own folder."""
    if folder is None:
        return {}
    found: dict[object, str] = {}
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            try:
                if stat.S_ISSOCK(path.lstat().st_mode):
                    found[path] = f"a socket file: {path}"
            except FileNotFoundError:
                continue
    return found


class Oracle:
    """What is open now, and what was before."""

    def __init__(self, greenlets: Greenlets, folder: Path | None) -> None:
        self._looks = (greenlets.alive, descriptors, open_sockets, inproc_names, lambda: socket_files(folder))
        self._before = [set(look()) for look in self._looks]

    def leaks(self) -> list[str]:
        """Return a line for each thing that was not there before."""
        return [
            text
            for look, before in zip(self._looks, self._before, strict=True)
            for key, text in look().items()
            if key not in before
        ]

    def settle(self, grace: float) -> list[str]:
        """Give the loop turns until nothing is left or ``grace`` seconds are over, and return what is left."""
        deadline = time.monotonic() + grace
        pause = 0.0
        gevent.sleep(0)  # what was scheduled last gets to run, and to fail, before this test is over
        while (leaks := self.leaks()) and time.monotonic() < deadline:
            gevent.sleep(pause)
            pause = min(pause + 0.001, 0.02)
        return [_name_socket(leak) for leak in leaks]


_greenlets = Greenlets()
_errors = HubErrors()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("oracle_grace", "seconds that a test's leftovers have to close", default="2.0")


def pytest_configure(config: pytest.Config) -> None:
    gevent.get_hub()  # the main hub is never a test's leak
    _greenlets.install()
    _errors.install()


def pytest_unconfigure(config: pytest.Config) -> None:
    _errors.uninstall()
    _greenlets.uninstall()


@pytest.fixture(autouse=True)
def oracle(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves something behind; set up before, and so looking after, its other fixtures."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    watch = Oracle(_greenlets, folder)
    yield
    findings = watch.settle(float(request.config.getini("oracle_grace"))) + _errors.take()
    if findings:
        pytest.fail("the test left behind\n" + "\n".join(findings), pytrace=False)
