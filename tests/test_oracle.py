"""The oracle fails the test that leaks, by its name, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import pytest
from gevent import monkey

ROOT = Path(__file__).resolve().parent.parent

SUBJECT = """
import os, socket as plain_socket, sys, types
import gevent, pytest
from gevent import socket
from gevent.event import Event
from hypothesis import given, strategies

kept = []

@pytest.fixture(scope="module")
def background():
    greenlet = gevent.spawn(Event().wait)
    listener = socket.create_server(("127.0.0.1", 0))
    yield
    listener.close()
    greenlet.kill()

@pytest.fixture
def own_greenlet():
    greenlet = gevent.spawn(Event().wait)
    yield
    greenlet.kill()

def test_descriptor():
    kept.append(open(os.devnull))

def test_socket():
    kept.append(socket.create_server(("127.0.0.1", 0)))

def test_greenlet():
    kept.append(gevent.spawn(Event().wait))

def test_socket_file(tmp_path):
    with plain_socket.socket(plain_socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "left"))

def test_open_socket():
    sys.modules["gmultisocket.core.socket"] = types.SimpleNamespace(live_sockets=lambda: ["Socket 1"])

def test_inproc_name():
    sys.modules["gmultisocket.transport.inproc"] = types.SimpleNamespace(names=lambda: ["left-name"])

def test_greenlet_error():
    gevent.spawn(lambda: 1 // 0).join()

def test_callback_error():
    gevent.get_hub().loop.run_callback(lambda: {}["missing"])

def test_looked_at_without_taking():
    greenlet = gevent.spawn(lambda: 1 // 0)
    greenlet.join()
    assert greenlet.exception

def test_unclosed_and_collected():
    socket.create_server(("127.0.0.1", 0))

@pytest.mark.timeout(1)
def test_hangs_in_the_loop():
    Event().wait(30)

@pytest.mark.timeout(1)
def test_hangs_in_a_greenlet():
    def spin():
        while True:
            pass
    gevent.spawn(spin).join()

def test_after_the_leaks():
    gevent.sleep(0)

def test_taken_error():
    with pytest.raises(ZeroDivisionError):
        gevent.spawn(lambda: 1 // 0).get()
    with pytest.raises(ZeroDivisionError):
        gevent.joinall([gevent.spawn(lambda: 1 // 0)], raise_error=True)

def test_ends_soon():
    gevent.spawn(gevent.sleep, 0.1)

def test_wider_fixture(background):
    gevent.sleep(0)

def test_own_fixture(own_greenlet):
    gevent.sleep(0)

def test_killed():
    greenlet = gevent.spawn(Event().wait)
    gevent.sleep(0)
    greenlet.kill()

@given(strategies.binary())
def test_property(data):
    assert data == bytes(data)
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Run the subject in a pytest of its own, patched if this one is: test name -> what it failed with, or ""."""
    folder = tmp_path_factory.mktemp("inner")
    (folder / "test_subject.py").write_text(SUBJECT)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\ntimeout = 20\noracle_grace = 0.5\n")
    runner = ["gevent.monkey", "--module", "pytest"] if monkey.is_module_patched("socket") else ["pytest"]
    inner = subprocess.run(
        [sys.executable, "-m", *runner, "-p", "tests.oracle", "-p", "no:cacheprovider", "--import-mode=importlib"]
        + ["-c", str(folder / "pytest.ini"), "--junitxml", str(folder / "report.xml"), str(folder)],
        cwd=ROOT,
        env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(folder), "PYTEST_ADDOPTS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert inner.returncode == pytest.ExitCode.TESTS_FAILED, inner.stdout + inner.stderr
    cases = ElementTree.parse(folder / "report.xml").iter("testcase")
    return {
        case.attrib["name"]: "\n".join(part.text or "" for part in case if part.tag in ("failure", "error"))
        for case in cases
    }


@pytest.mark.parametrize(
    ("test", "named"),
    [
        ("test_descriptor", "a descriptor: "),
        ("test_socket", "AF_INET ('127.0.0.1', "),
        ("test_greenlet", "a live greenlet: <Greenlet "),
        ("test_socket_file", "/left"),
        ("test_open_socket", "an open Socket: 'Socket 1'"),
        ("test_inproc_name", "an inproc name: 'left-name'"),
        ("test_greenlet_error", "ZeroDivisionError"),
        ("test_callback_error", "KeyError: 'missing'"),
        ("test_looked_at_without_taking", "ZeroDivisionError"),
        ("test_unclosed_and_collected", "ResourceWarning"),
        ("test_hangs_in_the_loop", "Timeout (>1.0s)"),
        ("test_hangs_in_a_greenlet", "Timeout (>1.0s)"),
    ],
)
def test_what_is_left_behind_fails_the_test_and_is_named(verdicts: Mapping[str, str], test: str, named: str) -> None:
    assert named in verdicts[test]


@pytest.mark.parametrize(
    "test",
    [
        "test_after_the_leaks",
        "test_taken_error",
        "test_ends_soon",
        "test_wider_fixture",
        "test_own_fixture",
        "test_killed",
        "test_property",
    ],
)
def test_what_is_put_in_order_passes(verdicts: Mapping[str, str], test: str) -> None:
    assert verdicts[test] == ""
