"""Pipe callbacks that block while peers come and go: what waits for them is bounded, and what they see is true."""

from __future__ import annotations

import logging

import gevent
import pytest
from gevent.event import Event

from gmultisocket import PipeEvent, Socket
from gmultisocket.core.connecting import events as events_module
from gmultisocket.testing import wait_until

LIMIT = 20


def check_truth(events: list[PipeEvent]) -> None:
    """Fail unless each pipe was added once, and then removed at most once."""
    seen: dict[int, list[str]] = {}
    for event in events:
        seen.setdefault(event.pipe.id, []).append(event.kind)
    assert all(kinds in (["add"], ["add", "remove"]) for kinds in seen.values())


def test_events_behind_a_blocked_callback_are_bounded_and_true(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events_module, "_MAX_WAITING", LIMIT)
    events: list[PipeEvent] = []
    go_on = Event()

    def slow(event: PipeEvent) -> None:
        events.append(event)
        go_on.wait()

    with Socket() as server, Socket() as stays, caplog.at_level(logging.WARNING, "gmultisocket.socket"):
        server.on_pipe(slow)
        where = server.listen(address).address
        stays.dial(where)
        wait_until(lambda: len(events) == 1)
        queue = server._connector.events
        for number in range(1, 101):
            with Socket({"connector.dialer.reconnect": False}) as client:
                client.dial(where)
                server.wait_pipes(2, timeout=5)
            wait_until(lambda: len(server.pipes) == 1)
            assert len(queue._queue) <= LIMIT + 2 * len(server.pipes)
            assert len(queue._queue) + 2 * queue.left_out == 2 * number
        assert queue.left_out == 100 - LIMIT // 2
        assert len(caplog.records) == 1 and "is slow" in caplog.text
        go_on.set()
        wait_until(lambda: not queue._queue and queue._greenlet is None)
    check_truth(events)
    assert len(events) == 1 + LIMIT + 1
    assert [event.kind for event in events[-1:]] == ["remove"]


def test_a_pipe_that_callbacks_know_is_told_to_be_removed_however_many_events_wait(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_MAX_WAITING", 1)
    events: list[PipeEvent] = []
    go_on = Event()
    with Socket() as server:
        where = server.listen(address).address
        early = [Socket({"connector.dialer.reconnect": False}) for _ in range(5)]
        server.on_pipe(events.append)
        for client in early:
            client.dial(where)
        wait_until(lambda: len(events) == 5)
        server.on_pipe(lambda event: go_on.wait())
        late = [Socket({"connector.dialer.reconnect": False}) for _ in range(5)]
        for client in late:
            client.dial(where)
        server.wait_pipes(10, timeout=5)
        for client in early + late:
            client.close()
        wait_until(lambda: not server.pipes)
        go_on.set()
        wait_until(lambda: server._connector.events._greenlet is None)
        gevent.sleep(0)
        check_truth(events)
        known = {event.pipe.id for event in events if event.kind == "add"}
        assert {event.pipe.id for event in events if event.kind == "remove"} == known
        # The first of the late ones was shown before the callback blocked.
        assert len(known) + server._connector.events.left_out == 10
