"""Pipe events: in order, with reasons, and callbacks that may do anything."""

from __future__ import annotations

import logging

import gevent
import pytest

from gmultisocket import PipeEvent, Socket
from gmultisocket.core.connecting.events import PipeCallback
from gmultisocket.testing import wait_until


def connect(server: Socket, client: Socket, address: str) -> None:
    client.dial(server.listen(address).address, {"connector.dialer.reconnect": False})
    server.wait_pipes(timeout=5)


def test_a_pipe_that_comes_and_goes_is_told_in_order_with_the_reason(address: str) -> None:
    events: list[PipeEvent] = []
    with Socket() as server, Socket() as client:
        server.on_pipe(events.append)
        connect(server, client, address)
        (pipe,) = server.pipes.values()
        server.close_pipe(pipe.id, "not wanted")
        wait_until(lambda: len(events) == 2)
    assert [(event.kind, event.pipe, event.reason) for event in events] == [
        ("add", pipe, ""),
        ("remove", pipe, "not wanted"),
    ]


def test_the_reason_says_that_the_peer_closed(address: str) -> None:
    events: list[PipeEvent] = []
    with Socket() as server, Socket() as client:
        server.on_pipe(events.append)
        connect(server, client, address)
        client.close()
        wait_until(lambda: len(events) == 2)
    # Some transports have words of their own behind that.
    assert events[1].reason.startswith("the peer closed the connection")


def test_closing_a_socket_tells_the_end_of_all_its_pipes_before_it_is_closed(address: str) -> None:
    events: list[tuple[str, str]] = []
    with Socket() as server:
        listener = server.listen(address)
        with Socket() as client:
            client.on_pipe(lambda event: events.append((event.kind, event.reason)))
            for _ in range(3):
                client.dial(listener.address)
        assert events == [("add", "")] * 3 + [("remove", "the socket was closed")] * 3


def test_every_pipe_is_told_once_each_way_whatever_happens(address: str) -> None:
    events: list[PipeEvent] = []
    with Socket() as server:
        server.on_pipe(events.append)
        listener = server.listen(address)
        for number in range(20):
            client = Socket()
            client.dial(listener.address)
            if number % 3 == 0:
                gevent.sleep(0)
            client.close()
        wait_until(lambda: not server.pipes and len(events) % 2 == 0)
    open_ids: set[int] = set()
    for event in events:
        assert (event.pipe.id in open_ids) == (event.kind == "remove")
        open_ids ^= {event.pipe.id}
    assert not open_ids and len({event.pipe.id for event in events}) == len(events) // 2


def test_a_slow_callback_delays_nothing_but_the_events_behind_it(address: str) -> None:
    seen: list[str] = []
    go_on = gevent.event.Event()

    def slow(event: PipeEvent) -> None:
        seen.append(event.kind)
        go_on.wait()

    with Socket() as server, Socket() as client:
        server.on_pipe(slow)
        connect(server, client, address)
        wait_until(lambda: seen == ["add"])
        client.send(b"x")
        assert server.recv(timeout=5) == b"x"
        client.close()
        wait_until(lambda: not server.pipes)
        assert seen == ["add"]
        go_on.set()
        wait_until(lambda: seen == ["add", "remove"])


@pytest.mark.parametrize("error", [ValueError("broken"), gevent.Timeout(1)])
def test_an_error_in_a_callback_is_logged_and_ends_nothing(
    address: str, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    seen: list[str] = []

    def fail(event: PipeEvent) -> None:
        raise error

    with Socket() as server, Socket() as client:
        server.on_pipe(fail)
        server.on_pipe(lambda event: seen.append(event.kind))
        with caplog.at_level(logging.ERROR, "gmultisocket"):
            connect(server, client, address)
            client.close()
            wait_until(lambda: seen == ["add", "remove"])
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_a_callback_may_be_taken_back_also_by_itself_and_twice(address: str) -> None:
    seen: list[str] = []

    def once(event: PipeEvent) -> None:
        seen.append(event.kind)
        end()
        end()

    with Socket() as server, Socket() as client:
        end = server.on_pipe(once)
        connect(server, client, address)
        wait_until(lambda: seen == ["add"])
        client.close()
        wait_until(lambda: not server.pipes)
        gevent.sleep(0)
    assert seen == ["add"]


def test_a_callback_that_was_taken_back_by_another_one_is_not_called_any_more(address: str) -> None:
    seen: list[str] = []
    with Socket() as server, Socket() as client:
        server.on_pipe(lambda event: end_second())
        end_second = server.on_pipe(lambda event: seen.append("second"))
        server.on_pipe(lambda event: seen.append("third"))
        connect(server, client, address)
        wait_until(lambda: seen)
    assert "second" not in seen


def test_a_callback_may_send_and_close_pipes(address: str) -> None:
    with Socket() as server, Socket() as client:

        def greet(event: PipeEvent) -> None:
            if event.kind == "add":
                server.send_to(event.pipe.path, b"welcome")

        server.on_pipe(greet)
        client.on_pipe(lambda event: client.close_pipe(event.pipe.id) if client.queued else None)
        connect(server, client, address)
        assert client.recv(timeout=5) == b"welcome"


def test_a_callback_may_close_its_socket(address: str) -> None:
    with Socket() as server, Socket() as client:
        server.on_pipe(lambda event: server.close())
        connect_options = {"connector.dialer.reconnect": False}
        client.dial(server.listen(address).address, connect_options)
        wait_until(lambda: server.closed)
        wait_until(lambda: not client.pipes)


@pytest.mark.parametrize("first_to_close", ["one of them", "their peer"])
def test_two_sockets_whose_callbacks_close_each_other_do_not_wait_for_one_another(
    address: str, first_to_close: str
) -> None:
    def end(other: Socket) -> PipeCallback:
        return lambda event: other.close() if event.kind == "remove" else None

    with Socket() as server, Socket() as one, Socket() as other:
        where = server.listen(address).address
        one.on_pipe(end(other))
        other.on_pipe(end(one))
        one.dial(where)
        other.dial(where)
        server.wait_pipes(2, timeout=5)
        if first_to_close == "one of them":
            one.close()
        else:
            for pipe in list(server.pipes.values()):
                pipe.close()
        wait_until(lambda: one.closed and other.closed)
        assert not one.pipes and not other.pipes


def test_no_greenlet_stays_when_there_is_nothing_to_tell(address: str) -> None:
    seen: list[str] = []
    with Socket() as server, Socket() as client:
        server.on_pipe(lambda event: seen.append(event.kind))
        connect(server, client, address)
        wait_until(lambda: seen == ["add"])
        gevent.sleep(0)
        assert server._connector.events._greenlet is None
