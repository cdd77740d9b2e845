"""The user's own code, called by the library: it raises, returns nonsense, takes its time, closes what called it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import GreenletExit

from gmultisocket import Message, Negotiation, PipeEvent, Pub, Rep, Req, Respondent, Socket, Sub, Surveyor, Switch
from gmultisocket.core.pipes.pipe import headers_of
from gmultisocket.errors import HandlerFailed, HandshakeFailed, MultiSocketError, PipeRefused, RequestRefused
from gmultisocket.testing import wait_until
from gmultisocket.transport.tcp import TCPConnection
from tests.peers import only_pipe

QUICKLY = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.05}


def raise_error() -> Any:
    raise RuntimeError("a mistake of the user's")


def leak_a_timeout() -> Any:
    with gevent.Timeout(0.01):
        gevent.sleep(10)


def divide_by_zero() -> Any:
    return 1 // 0


def exit_greenlet() -> Any:
    raise GreenletExit


def kill_greenlet() -> Any:
    gevent.getcurrent().kill()


def get_killed() -> Any:
    # The greenlet that kills waits until the other one has really ended.
    gevent.spawn(gevent.getcurrent().kill)
    gevent.sleep(10)


ERRORS = [raise_error, leak_a_timeout, divide_by_zero]
#: Ways to end the greenlet that the code runs in.
KILLS = [exit_greenlet, kill_greenlet, get_killed]
MISTAKES = ERRORS + KILLS


def failures(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    """Return the records of a logger that tell of errors of the user's."""
    return [each for each in caplog.records if each.name == name and each.levelno >= logging.WARNING and each.exc_info]


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
    (failure,) = failures(caplog, "gmultisocket.switch")
    assert failure.pipe_id and failure.peer.startswith("inproc://")  # type: ignore[attr-defined]


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
    assert len(failures(caplog, "gmultisocket.socket")) == 2
    assert "a pipe callback failed" in caplog.text


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("kind", [Rep, Respondent])
def test_a_handler_that_raises_or_is_killed_leaves_the_others_served(
    kind: Any, mistake: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    def handler(content: bytes) -> bytes:
        if content == b"bad":
            mistake()
        return content

    with kind(handler) as answerer, Req() if kind is Rep else Surveyor() as asker:
        asker.dial(answerer.listen("tcp://127.0.0.1:0").address)
        answerer.wait_pipes(1, 5)
        answerer.start()
        for _ in range(3):
            if isinstance(asker, Req):
                with pytest.raises(HandlerFailed):
                    asker.request(b"bad", 5)
                assert asker.request(b"good", 5) == b"good"
            else:
                bad = asker.survey(b"bad", 5)
                assert next(asker.survey(b"good", 5)) == b"good"
                bad.close()
                assert list(bad) == []
        wait_until(lambda: answerer.running == 0)
    # Those after the first, of the same kind, are for the level DEBUG.
    (failure,) = failures(caplog, "gmultisocket.protocol")
    assert failure.pipe_id and failure.peer.startswith("tcp://")  # type: ignore[attr-defined]


def test_a_handlers_greenlet_may_be_killed_when_the_handler_has_returned_long_ago() -> None:
    """A watchdog that comes late ends the greenlet, and another one takes its place."""
    greenlets: list[gevent.Greenlet[..., Any]] = []

    def handler(content: bytes) -> bytes:
        greenlets.append(gevent.getcurrent())  # type: ignore[arg-type]
        return content

    with Rep(handler, concurrency=3) as rep, Req() as req:
        req.dial(rep.listen("tcp://127.0.0.1:0").address)
        rep.start()
        for _ in range(5):
            assert req.request(b"x", 5) == b"x"
            greenlets[-1].kill(timeout=5)
            assert greenlets[-1].dead
        assert rep.running == 0


def test_who_waits_for_the_end_of_a_switch_waits_though_its_middleware_is_killed() -> None:
    def middleware(message: Message) -> Message:
        if message.content == b"bad":
            raise GreenletExit
        return message

    with Socket() as back, Socket() as front, Socket() as server, Socket() as client:
        server.dial(back.listen("inproc://back").address)
        client.dial(front.listen("inproc://front").address)
        with Switch(back, front, middleware) as switch:
            ended = gevent.spawn(switch.join, 20)
            for _ in range(3):
                client.send(b"bad")
            client.send(b"good")
            assert server.recv(timeout=5) == b"good"
            assert not switch.join(0) and not ended.ready() and switch.drops == {"error": 3}
            back.close()
            front.close()
            assert ended.get() is True


def test_a_timeout_that_a_handler_forgets_to_cancel_ends_nothing_else() -> None:
    def handler(content: bytes) -> bytes:
        gevent.Timeout(0.01, GreenletExit).start()
        return content

    with Rep(handler) as rep, Req() as req:
        req.dial(rep.listen("tcp://127.0.0.1:0").address)
        rep.start()
        for _ in range(3):
            workers: set[gevent.Greenlet[..., object]] = vars(rep)["_ProtocolBase__greenlets"]
            worker = next(iter(workers))
            assert req.request(b"x", 5) == b"x"
            worker.join(5)
            assert worker.dead


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["handler", "callback", "middleware", "negotiator", "headers", "authorize"])
def test_what_ends_a_program_is_raised_in_its_main_greenlet_and_if_that_goes_on_so_does_the_library(
    where: str, error: type[BaseException]
) -> None:
    raised = False

    def code(argument: Any = None) -> Any:
        nonlocal raised
        if not raised:
            raised = True
            raise error("of the user's")
        return argument

    def works() -> bool:
        try:
            return req.request(b"x", 5) == b"x"
        except MultiSocketError:
            return False

    authorize = {"transport.ws.listener.authorize": lambda request: bool(code(True))} if where == "authorize" else {}
    headers = {"transport.ws.headers": lambda: code({})} if where == "headers" else {}
    with Socket() as back, Socket() as front, Rep(code if where == "handler" else bytes) as rep, Req(QUICKLY) as req:
        rep.dial(back.listen("inproc://back").address)
        rep.start()
        if where == "callback":
            front.on_pipe(code)
        if where == "negotiator":
            front.set_negotiator(code)
        with Switch(back, front, code if where == "middleware" else None) as switch:
            address = front.listen("ws://127.0.0.1:0", authorize).address
            with pytest.raises(error):
                req.dial(address, {"connector.dialer.dial_async": True, **headers})
                req.request_async(b"x", 5)
                gevent.sleep(20)
            wait_until(works)
            assert switch.running


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_function_for_headers_that_raises_is_a_failed_attempt(
    mistake: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def headers() -> dict[str, str]:
        nonlocal calls
        calls += 1
        if calls <= 3:
            mistake()
        return {"X-Call": str(calls)}

    with Socket() as server, Socket({**QUICKLY, "transport.ws.headers": headers}) as client:
        address = server.listen("ws://127.0.0.1:0").address
        with pytest.raises(HandshakeFailed):
            client.dial(address)
        dialer = client.dial(address, {"connector.dialer.dial_async": True})
        wait_until(lambda: dialer.pipe is not None)
        assert calls == 4 and dialer.attempts == 3
        client.send(b"in the end", timeout=5)
        assert server.recv(timeout=5) == b"in the end"
    assert len(failures(caplog, "gmultisocket.ws")) == (2 if mistake in ERRORS else 0)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("option", ["authorize", "origin_checker"])
def test_a_function_that_decides_about_a_request_and_raises_refuses_it_with_an_answer(
    option: str, mistake: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def function(request: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls <= 2:
            mistake()
        return True

    with Socket() as server, Socket(QUICKLY) as client:
        address = server.listen("ws://127.0.0.1:0", {f"transport.ws.listener.{option}": function}).address
        for _ in range(2):
            with pytest.raises(RequestRefused) as caught:
                client.dial(address)
            assert caught.value.status == 500 and caught.value.why == "500 Internal Server Error"
        client.dial(address)
        client.send(b"in the end", timeout=5)
        assert server.recv(timeout=5) == b"in the end"
    shown = failures(caplog, "gmultisocket.ws")
    assert len(shown) == (1 if mistake in ERRORS else 0)
    assert all(failure.peer.startswith("ws://") for failure in shown)  # type: ignore[attr-defined]
    assert "refused ws://" in caplog.text


def test_every_report_names_the_pipe_and_the_peer(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*args: object) -> Any:
        raise RuntimeError("a mistake of the user's")

    with Pub(authorize=lambda subscriber, pattern: False) as pub, Sub() as sub, Rep(fail) as rep, Req() as req:
        sub.on_refused(fail)
        pub.on_pipe(fail)
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("secret")
        req.dial(rep.listen("tcp://127.0.0.1:0").address)
        rep.start()
        request = req.request_async(b"")
        with pytest.raises(HandlerFailed):
            request.get(5)
        wait_until(lambda: len(failures(caplog, "gmultisocket.protocol")) == 2)
        (callback,) = failures(caplog, "gmultisocket.socket")
        by_what = {record.getMessage().split(" failed")[0]: record for record in failures(caplog, callback.name)}
        by_what |= {each.getMessage().split(" failed")[0]: each for each in failures(caplog, "gmultisocket.protocol")}
        for what, pipe in (
            ("a pipe callback", only_pipe(pub.socket)),
            ("a refusal callback", only_pipe(sub.socket)),
            ("a handler of a Rep", only_pipe(rep.socket)),
        ):
            record: Any = by_what[what]
            assert (record.pipe_id, record.peer) == (pipe.id, pipe.peer_address)
            assert record.request_id == (request.id if what.endswith("Rep") else "")
    caplog.clear()
    with Socket() as server, Socket(QUICKLY) as client:
        numbers: list[int] = []

        def negotiator(negotiation: Negotiation) -> None:
            numbers.append(negotiation.pipe_id)
            fail()

        server.set_negotiator(negotiator)
        client.dial(server.listen("tcp://127.0.0.1:0").address, {"connector.dialer.dial_async": True})
        wait_until(lambda: failures(caplog, "gmultisocket.connector"))
        refused: Any = failures(caplog, "gmultisocket.connector")[0]
        assert refused.pipe_id == numbers[0] and refused.peer.startswith("tcp://127.0.0.1:")


def test_what_a_negotiator_raises_is_for_the_log_and_not_for_the_peer(caplog: pytest.LogCaptureFixture) -> None:
    with Socket() as server, Socket() as client:
        server.set_negotiator(lambda negotiation: raise_error())
        pipes: list[Any] = []
        client.on_pipe(lambda event: pipes.append(event.pipe))
        client.dial(server.listen("ws://127.0.0.1:0").address, {"connector.dialer.reconnect": False})
        wait_until(lambda: pipes and pipes[0].closed)
        assert "mistake" not in pipes[0].reason
    (failure,) = failures(caplog, "gmultisocket.connector")
    assert "a mistake of the user's" in str(failure.exc_info)


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


def fail_on_remove(client: Socket, mistake: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    client._for_protocol().on_pipe(lambda kind, pipe: mistake() if kind == "remove" else None)


def fail_on_requeue(client: Socket, mistake: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    client._for_protocol().on_requeue(lambda message, pipe: mistake())


def fail_on_next_pipe(client: Socket, mistake: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    client._for_protocol().on_requeue(lambda message, pipe: True if pipe is None else mistake())


def fail_to_close(client: Socket, mistake: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    close = TCPConnection.close

    def closed_with_an_error(connection: TCPConnection) -> None:
        close(connection)
        mistake()

    monkeypatch.setattr(TCPConnection, "close", closed_with_an_error)


@pytest.mark.parametrize("mistake", [raise_error, divide_by_zero, exit_greenlet])
@pytest.mark.parametrize("install", [fail_on_remove, fail_on_requeue, fail_on_next_pipe, fail_to_close])
def test_an_error_at_the_end_of_a_pipe_is_logged_and_the_dialer_dials_again(
    install: Callable[..., None],
    mistake: Callable[[], Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG, "gmultisocket")
    removed: list[PipeEvent] = []
    with Socket() as server, Socket() as client:
        install(client, mistake, monkeypatch)
        client.on_pipe(lambda event: removed.append(event) if event.kind == "remove" else None)
        client.dial(server.listen("tcp://127.0.0.1:0").address, QUICKLY)
        for _ in range(2):
            client.wait_pipes(timeout=5)
            (pipe,) = client.pipes.values()
            # It has not left when the pipe closes, so it is requeued.
            pipe._put_one(headers_of(15), b"first")
            client.send(b"second")
            client.close_pipe(pipe.id)
            assert pipe.id not in client.pipes
            client.wait_pipes(timeout=5)
        client.send(b"the end", timeout=5)
        received = []
        while received[-1:] != [b"the end"]:
            received.append(server.recv(timeout=5))
        assert received == [b"first", b"second"] * 2 + [b"the end"]
        wait_until(lambda: len(removed) == 2)
        wait_until(lambda: any(each.exc_info for each in caplog.records))


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
