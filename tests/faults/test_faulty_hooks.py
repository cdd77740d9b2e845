"""The user's own code, called by the library: it raises, returns nonsense, takes its time, closes what called it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from gmultisocket import Message, Negotiation, PipeEvent, Socket, Switch
from gmultisocket.errors import PipeRefused
from gmultisocket.testing import wait_until

QUICKLY = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.05}


def raise_error() -> Any:
    raise RuntimeError("a mistake of the user's")


def leak_a_timeout() -> Any:
    with gevent.Timeout(0.01):
        gevent.sleep(10)


def divide_by_zero() -> Any:
    return 1 // 0


MISTAKES = [raise_error, leak_a_timeout, divide_by_zero]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_middleware_that_raises_costs_its_message_and_is_logged_once(
    mistake: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    def middleware(message: Message) -> Message:
        if message.content == b"bad":
            mistake()
        return message

    with Socket() as back, Socket() as front, Socket() as server, Socket() as client:
        server.dial(back.listen("inproc://back").address)
        client.dial(front.listen("inproc://front").address)
        with Switch(back, front, middleware) as switch:
            for _ in range(3):
                client.send(b"bad")
            client.send(b"good")
            message = server.recv_msg(timeout=5)
            assert message.content == b"good"
            server.send_to(message.source, b"reply")
            assert client.recv(timeout=5) == b"reply"
            assert switch.running
            assert switch.drops == {"error": 3}
    levels = [record.levelno for record in caplog.records if record.name == "gmultisocket.switch"]
    assert levels.count(logging.ERROR) == 1


@pytest.mark.parametrize("answer", [None, "text", 7, object(), Message(flags=3), Message(source=b"odd")])
def test_a_middleware_that_returns_no_message_drops_it(answer: Any) -> None:
    with Socket() as back, Socket() as front, Socket() as server, Socket() as client:
        server.dial(back.listen("inproc://back").address)
        client.dial(front.listen("inproc://front").address)

        def middleware(message: Message) -> Any:
            return message if message.content == b"good" else answer

        with Switch(back, front, middleware) as switch:
            client.send(b"bad")
            client.send(b"good")
            assert server.recv(timeout=5) == b"good"
            assert sum(switch.drops.values()) == 1
            assert switch.running


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_pipe_callback_that_raises_concerns_no_other(
    mistake: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    with Socket() as server, Socket() as client:
        server.on_pipe(lambda event: mistake())
        server.on_pipe(lambda event: heard.append(event.kind))
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        client.send(b"still here")
        assert server.recv(timeout=5) == b"still here"
        client.close()
        wait_until(lambda: heard == ["add", "remove"])
    assert "a pipe callback failed" in caplog.text


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_listeners_negotiator_that_raises_refuses_the_peer_and_nobody_else(mistake: Callable[[], Any]) -> None:
    with Socket() as server, Socket({**QUICKLY, "connector.dialer.dial_async": True}) as client:
        calls = 0

        def negotiator(negotiation: Negotiation) -> None:
            nonlocal calls
            calls += 1
            if calls <= 3:
                mistake()

        server.set_negotiator(negotiator)
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        server.wait_pipes(1, timeout=5)
        assert calls == 4
        server.send(b"let in in the end", timeout=5)
        assert client.recv(timeout=5) == b"let in in the end"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_dialers_negotiator_that_raises_is_a_failed_attempt(mistake: Callable[[], Any]) -> None:
    with Socket() as server, Socket(QUICKLY) as client:
        address = server.listen("tcp://127.0.0.1:0").address
        client.set_negotiator(lambda negotiation: mistake())
        with pytest.raises(PipeRefused):
            client.dial(address)
        assert not client.dialers
        dialer = client.dial(address, {"connector.dialer.dial_async": True})
        wait_until(lambda: dialer.attempts >= 3)
        client.set_negotiator(None)
        client.send(b"no more questions", timeout=5)
        assert server.recv(timeout=5) == b"no more questions"


def test_the_socket_may_be_closed_by_each_of_its_own_hooks() -> None:
    def by_callback(server: Socket) -> None:
        server.on_pipe(lambda event: server.close())

    def by_negotiator(server: Socket) -> None:
        server.set_negotiator(lambda negotiation: server.close())

    def by_receiver(server: Socket) -> None:
        def receive() -> None:
            for _ in server:
                server.close()

        gevent.spawn(receive)

    for hook in (by_callback, by_negotiator, by_receiver):
        with Socket() as server, Socket() as client:
            hook(server)
            client.dial(server.listen("tcp://127.0.0.1:0").address)
            client.send_all(b"anything")
            wait_until(lambda server=server: server.closed)
            assert not server.pipes and not server.listeners


@pytest.mark.parametrize("ends", ["stop", "close"])
def test_a_middleware_may_stop_its_switch_and_close_its_sockets(ends: str) -> None:
    def middleware(message: Message) -> None:
        if ends == "stop":
            switch.stop()
        else:
            back.close()
            front.close()

    with Socket() as back, Socket() as front, Socket() as server, Socket() as client:
        server.dial(back.listen("inproc://back").address)
        client.dial(front.listen("inproc://front").address)
        with Switch(back, front, middleware) as switch:
            client.send(b"end it")
            wait_until(lambda: not switch.running)


def test_an_option_hook_that_refuses_leaves_everything_as_it_was() -> None:
    with Socket() as server, Socket() as client:
        client.options.on_change("socket.send_ttl", lambda old, new: raise_error())
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        with pytest.raises(RuntimeError):
            client.set_option("socket.send_ttl", 3)
        client.send(b"as before")
        assert server.recv_msg(timeout=5).ttl == 15


def test_callbacks_hear_of_each_pipe_in_order_however_long_they_take() -> None:
    events: list[PipeEvent] = []

    def slowly(event: PipeEvent) -> None:
        gevent.sleep(0.001)
        events.append(event)

    with Socket() as server, Socket() as client:
        server.on_pipe(slowly)
        address = server.listen("tcp://127.0.0.1:0").address
        for _ in range(20):
            client.dial(address, {"connector.dialer.reconnect": False})
        server.wait_pipes(20, timeout=5)
        for pipe_id in list(client.pipes):
            client.close_pipe(pipe_id)
        wait_until(lambda: len(events) == 40)
    assert [event.kind for event in events] == ["add"] * 20 + ["remove"] * 20
    assert len({event.pipe.id for event in events}) == 20
