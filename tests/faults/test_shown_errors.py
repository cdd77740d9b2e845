"""Errors of the program's own code are shown, whether the program has configured logging or not, and not too often."""

from __future__ import annotations

import logging
import re

import gevent
import pytest

from gmultisocket import Rep, Req, usercode
from gmultisocket.errors import HandlerFailed
from tests.faults.process import run_script

#: Runs all kinds of code that fails. Everything is printed to one place.
PROGRAM = """
import os, sys
os.dup2(1, 2)
if "patched" in sys.argv:
    from gevent import monkey
    monkey.patch_all()
import logging
{configure}
import gevent
from gmultisocket import Negotiation, Rep, Req, Socket, Switch
from gmultisocket.errors import HandlerFailed, HandshakeFailed, PipeRefused, Timeout

def fail(where):
    def failing(*arguments):
        raise RuntimeError("failed in the " + where)
    return failing

with Rep(fail("handler")) as rep, Req() as req:
    req.dial(rep.listen("tcp://127.0.0.1:0").address)
    rep.start()
    for _ in range(100):
        try:
            req.request(b"", timeout=20)
        except HandlerFailed:
            pass
with Socket() as server, Socket() as client:
    server.on_pipe(lambda event: event.kind == "add" and fail("callback")())
    client.dial(server.listen("tcp://127.0.0.1:0").address)
    server.wait_pipes(1, 20)
with Socket() as server, Socket() as client:
    server.set_negotiator(fail("negotiator"))
    client.dial(server.listen("tcp://127.0.0.1:0").address, {{"connector.dialer.reconnect": False}})
    while not server.listeners[0].refused:
        gevent.sleep(0.01)
for options in ({{"authorize": fail("authorize")}}, {{"origin_checker": fail("origin_checker")}}):
    with Socket() as server, Socket() as client:
        options = {{"transport.ws.listener." + name: value for name, value in options.items()}}
        try:
            client.dial(server.listen("ws://127.0.0.1:0", options).address)
        except HandshakeFailed:
            pass
with Socket() as server, Socket({{"transport.ws.headers": fail("headers")}}) as client:
    dialer = client.dial(server.listen("ws://127.0.0.1:0").address, {{"connector.dialer.dial_async": True}})
    while not dialer.attempts or not dialer.last_error:
        gevent.sleep(0.01)
with Socket() as back, Socket() as front, Socket() as client, Switch(back, front, fail("middleware")) as switch:
    client.dial(front.listen("tcp://127.0.0.1:0").address)
    client.send(b"")
    while not switch.drops:
        gevent.sleep(0.01)
"""
PLACES = ("handler", "callback", "negotiator", "authorize", "origin_checker", "headers", "middleware")
CONFIGURED = {
    "nothing": "",
    "basic": "logging.basicConfig()",
    "its own": "logging.getLogger('gmultisocket').addHandler(logging.StreamHandler())",
}


@pytest.mark.parametrize("patched", ["patched", "not patched"])
@pytest.mark.parametrize("configured", CONFIGURED)
def test_each_error_is_shown_once_with_its_traceback(configured: str, patched: str) -> None:
    shown = run_script(PROGRAM.format(configure=CONFIGURED[configured]), patched.replace("not patched", "-"))
    for where in PLACES:
        found = re.findall(rf"^RuntimeError: failed in the {where}$", shown, re.MULTILINE)
        assert len(found) == 1, (where, shown)
    assert shown.count("Traceback (most recent call last)") == len(PLACES), shown


@pytest.mark.parametrize(
    "configure",
    ["logging.getLogger('gmultisocket').addHandler(logging.NullHandler())", "logging.lastResort = None"],
)
def test_a_program_can_silence_the_library(configure: str) -> None:
    assert run_script(PROGRAM.format(configure=configure), "-") == ""


def test_errors_that_a_peer_causes_again_and_again_are_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(usercode, "monotonic", lambda: now[0])

    def handler(content: bytes) -> bytes:
        if content == b"odd":
            raise KeyError(content)
        raise ValueError(content)

    def shown() -> list[str]:
        return [each.getMessage().partition(", for")[0] for each in caplog.records if each.levelno == logging.ERROR]

    def more() -> list[int]:
        return [int(number) for number in re.findall(r"\((\d+) more like this were not shown\)", caplog.text)]

    with Rep(handler) as rep, Req() as req:
        req.dial(rep.listen("tcp://127.0.0.1:0").address)
        rep.start()

        def ask(content: bytes, times: int) -> None:
            for _ in range(times):
                with pytest.raises(HandlerFailed):
                    req.request(content, 20)

        with caplog.at_level(logging.INFO):
            ask(b"even", 50)
            assert shown() == ["a handler of a Rep failed"]
            # Another kind of error is news.
            ask(b"odd", 10)
            assert len(shown()) == 2
            now[0] += 9.9
            ask(b"even", 5)
            assert len(shown()) == 2 and more() == []
            now[0] += 0.1
            ask(b"even", 5)
            assert len(shown()) == 3 and more() == [54]
            ask(b"odd", 1)
            assert len(shown()) == 4 and more() == [54, 9]
            now[0] += 100
            ask(b"even", 1)
            assert len(shown()) == 5 and more() == [54, 9, 4]
        # The others are there for those who want them all.
        with caplog.at_level(logging.DEBUG):
            before = len(caplog.records)
            ask(b"even", 3)
            assert [each.levelno for each in caplog.records[before:] if each.exc_info] == [logging.DEBUG] * 3


def test_kinds_of_errors_that_a_peer_makes_up_are_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """The class of an error may be made for each error. What is remembered stays bounded."""

    class Owner:
        pass

    owner = Owner()
    for number in range(10 * usercode._MAX_KINDS):
        usercode.report("gmultisocket.test", "it failed", type(f"Error{number}", (Exception,), {})(), owner)
    assert len(usercode._owners[owner]._kinds) == usercode._MAX_KINDS
    del owner
    gevent.idle()
    caplog.clear()
