"""The program's logging fails: its filters raise, block, switch greenlets, kill. The library works all the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
import pytest
from gevent import GreenletExit, getcurrent
from gevent import socket as gsocket
from gevent.event import Event

from gmultisocket import Message, Pub, Rep, Req, Socket, Sub, Switch, log
from gmultisocket.errors import HandlerFailed, MultiSocketError
from gmultisocket.testing import wait_until
from tests.faults.process import run_script
from tests.faults.test_hostile_subscriptions import forms, hostile

LONG = 20.0
QUICKLY = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.05}


class Spoiler(logging.Filter):
    """A filter that does something bad with every record.

    Attributes:
        calls: how often it was called.
    """

    def __init__(self, spoil: Callable[[], object]) -> None:
        super().__init__()
        self._spoil = spoil
        self.calls = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.calls += 1
        self._spoil()
        return True


def raise_error() -> None:
    raise RuntimeError("no request is active")


def leak_a_timeout() -> None:
    raise gevent.Timeout(1)


def exit_greenlet() -> None:
    raise GreenletExit


def kill_greenlet() -> None:
    getcurrent().kill()


def switch() -> None:
    gevent.sleep(0)


def switch_for_long() -> None:
    gevent.sleep(0.05)


SPOILERS = [raise_error, leak_a_timeout, exit_greenlet, kill_greenlet, switch, switch_for_long]


@contextmanager
def spoiled(spoil: Callable[[], object]) -> Iterator[Spoiler]:
    """Put a filter on each logger of the library, and turn every record on."""
    spoiler = Spoiler(spoil)
    top = logging.getLogger("gmultisocket")
    names = [name for name in logging.root.manager.loggerDict if name.startswith("gmultisocket")]
    loggers = [logging.getLogger(name) for name in names]
    level = top.level
    top.setLevel(logging.DEBUG)
    for logger in loggers:
        logger.addFilter(spoiler)
    try:
        yield spoiler
    finally:
        for logger in loggers:
            logger.removeFilter(spoiler)
        top.setLevel(level)


@pytest.fixture(autouse=True)
def report_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset, for each test, that a failure of logging was reported."""
    monkeypatch.setattr(log, "_reported", -log._REPORT_INTERVAL)


@pytest.fixture(params=SPOILERS, ids=lambda spoil: spoil.__name__)
def spoiler(request: pytest.FixtureRequest) -> Iterator[Spoiler]:
    with spoiled(request.param) as made:
        yield made


def test_messages_to_all_reach_all_while_pipes_drop_close_and_come_again(
    spoiler: Spoiler, new_address: Callable[[], str]
) -> None:
    drop = {"socket.send_overflow": "drop_newest", "socket.send_queue_size": 4}
    with Socket(drop) as server, Socket(QUICKLY) as one, Socket(QUICKLY) as two, Socket(QUICKLY) as slow:
        address = server.listen(new_address()).address
        clients = [one, two, slow]
        for client in clients:
            client.set_option("socket.recv_queue_size", 1)
            client.dial(address)
        server.wait_pipes(3, LONG)
        # Pipes lose messages, and log that in the middle of a send to all.
        while len([pipe for pipe in server.pipes.values() if pipe.counters.drops]) < 3:
            for _ in range(20):
                assert server.send_all(bytes(20_000)) <= 3
            gevent.sleep(0.001)
        received: dict[Socket, list[Message]] = {client: [] for client in clients}
        readers = [gevent.spawn(lambda client=client: received[client].extend(client)) for client in clients]
        wait_until(lambda: not any(pipe.queued for pipe in server.pipes.values()))
        sent = sum(pipe.messages_sent for pipe in server.pipes.values())
        wait_until(lambda: sum(client.counters.messages_received for client in clients) == sent)
        # All pipes close, and every dialer comes back.
        for pipe_id in list(server.pipes):
            server.close_pipe(pipe_id)
        assert not server.pipes
        server.wait_pipes(3, LONG)
        for client in clients:
            wait_until(lambda client=client: client.reconnects == 1 and len(client.pipes) == 1)
        assert server.send_all(b"again") == 3
        # One peer leaves for good. The others get all that follows.
        wait_until(lambda: all(messages[-1].content == b"again" for messages in received.values()))
        two.close()
        wait_until(lambda: len(server.pipes) == 2)
        assert server.send_all(b"last") == 2
        server.close()
        for client in (one, slow):
            wait_until(lambda client=client: not client.pipes)
    gevent.joinall(readers, raise_error=True)
    assert [messages[-1].content for messages in received.values()] == [b"last", b"again", b"last"]
    wait_until(lambda: spoiler.calls > 0)


def test_a_publication_reaches_its_subscribers_after_one_of_them_broke_the_rules(spoiler: Spoiler) -> None:
    with Pub() as pub, Sub(QUICKLY) as sub:
        address = pub.listen("tcp://127.0.0.1:0").address
        sub.dial(address)
        sub.subscribe("news")
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        for number in range(5):
            with gsocket.create_connection((host, int(port))) as raw:
                raw.sendall(b"GET / HTTP/1.1\r\n\r\n" if number % 2 else bytes(100))
                raw.settimeout(LONG)
                wait_until(lambda raw=raw: not raw.recv(100))
            wait_until(lambda: len(pub.pipes) == 1)
            wait_until(lambda number=number: pub.publish("news", b"%d" % number) == 1)
            assert sub.recv(LONG) == ("news", b"%d" % number)
    wait_until(lambda: spoiler.calls > 0)


def test_a_publication_is_sent_though_the_pub_logs_in_the_middle_of_it(spoiler: Spoiler) -> None:
    topic = ".".join("abcdefghijk")
    with Pub() as pub, Sub() as sub, Socket({"socket.no_recv": True}) as by_hand:
        address = pub.listen("inproc://crowd").address
        sub.dial(address)
        sub.subscribe(topic, LONG)
        by_hand.dial(address)
        # A peer that subscribes in so many ways that the Pub warns of it, at the first publication.
        hostile(by_hand, pub, list(forms(topic)))
        before = spoiler.calls
        for number in range(3):
            assert pub.publish(topic, b"%d" % number) == 2
            assert sub.recv(LONG) == (topic, b"%d" % number)
        assert pub._subscribers.relieved == 1
        wait_until(lambda: spoiler.calls > before)


def test_dialers_dial_again_and_listeners_let_peers_in(spoiler: Spoiler) -> None:
    with Socket(QUICKLY) as client:
        with Socket() as server:
            address = server.listen("tcp://127.0.0.1:0").address
        dialer = client.dial(address, {"connector.dialer.dial_async": True})
        wait_until(lambda: dialer.attempts >= 3)
        with Socket({"connector.pipe_limit": 1, "connector.listener.over_limit": "refuse"}) as server:
            server.listen(address)
            client.wait_pipes(1, LONG)
            server.wait_pipes(1, LONG)
            with Socket() as refused:
                refused.dial(address, {"connector.dialer.reconnect": False})
                wait_until(lambda: not refused.pipes)
            client.send(b"in")
            assert server.recv(LONG) == b"in"
    wait_until(lambda: spoiler.calls > 0)


def test_requests_are_answered_directly_and_through_a_switch(spoiler: Spoiler) -> None:
    def handler(content: bytes) -> bytes:
        if content == b"bad":
            raise ValueError
        return content

    def middleware(message: Message) -> Message:
        if message.content.endswith(b"dropped"):
            raise ValueError
        return message

    with Socket() as back, Socket() as front, Switch(back, front, middleware) as between, Rep(handler) as rep:
        with Req() as direct, Req() as behind:
            rep.start()
            direct.dial(rep.listen("tcp://127.0.0.1:0").address)
            rep.dial(back.listen("tcp://127.0.0.1:0").address)
            behind.dial(front.listen("tcp://127.0.0.1:0").address)
            for req in (direct, behind):
                for _ in range(3):
                    with pytest.raises(HandlerFailed):
                        req.request(b"bad", LONG)
                    assert req.request(b"good", LONG) == b"good"
            lost = [behind.request_async(b"dropped") for _ in range(3)]
            assert behind.request(b"good", LONG) == b"good"
            assert not any(request.done for request in lost) and between.drops == {"error": 3}
    wait_until(lambda: spoiler.calls > 0)


# A handler that never returns


def test_what_the_library_does_never_waits_for_logging() -> None:
    go = Event()
    with spoiled(lambda: go.wait()) as spoiler, Socket() as server, Socket(QUICKLY) as client:
        dialer = client.dial(server.listen("tcp://127.0.0.1:0").address)
        for number in range(1, 4):
            server.wait_pipes(1, LONG)
            # Neither the call nor the caller's own timeout notices anything.
            with gevent.Timeout(LONG):
                server.close_pipe(next(iter(server.pipes)))
            wait_until(lambda number=number: client.reconnects == number)
        assert dialer.pipe is not None and spoiler.calls == 1
        go.set()
        wait_until(lambda: spoiler.calls >= 6)


class SlowHandler(logging.Handler):
    """A handler that waits for the network, and holds its lock meanwhile."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.written: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        gevent.sleep(0.002)
        self.written.append(record.getMessage())


def test_a_handler_that_waits_for_the_network_holds_nobody_up() -> None:
    """The lock of a handler is contended then: errors of handlers are logged by several greenlets, pipes by others."""

    def handler(content: bytes) -> bytes:
        raise ValueError(content)

    slow = SlowHandler()
    top = logging.getLogger("gmultisocket")
    top.addHandler(slow)
    top.setLevel(logging.DEBUG)
    try:
        with Rep(handler, concurrency=5) as rep, Req(QUICKLY) as req:
            rep.start()
            req.dial(rep.listen("tcp://127.0.0.1:0").address)
            for number in range(1, 6):
                requests = [req.request_async(b"%d" % each, LONG) for each in range(10)]
                for request in requests:
                    with pytest.raises(HandlerFailed):
                        request.get(LONG)
                rep.socket.close_pipe(next(iter(rep.pipes)))
                wait_until(lambda number=number: req.socket.reconnects == number)
                wait_until(lambda: len(rep.pipes) == 1)
            wait_until(lambda: len([text for text in slow.written if "handler of a Rep failed" in text]) == 50)
        wait_until(lambda: len([text for text in slow.written if text.startswith("pipe ")]) == 12)
    finally:
        top.removeHandler(slow)
        top.setLevel(logging.NOTSET)


def test_records_that_nobody_takes_are_bounded_and_their_number_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    go = Event()
    logger = log.get_logger("gmultisocket.test.slow")
    plain = logging.getLogger("gmultisocket.test.slow")
    spoil = Spoiler(lambda: go.wait())
    plain.addFilter(spoil)
    with caplog.at_level(logging.INFO, "gmultisocket"):
        for number in range(log._MAX_WAITING + 51):
            logger.info("%d", number)
            if not number:
                wait_until(lambda: spoil.calls == 1)
        go.set()
        wait_until(lambda: "50 log records are missing: a handler of logging is slow" in caplog.messages)
    plain.removeFilter(spoil)
    assert caplog.messages[: log._MAX_WAITING + 1] == [str(number) for number in range(log._MAX_WAITING + 1)]


# What is said of it


def test_a_failure_of_logging_is_printed_and_not_once_for_each_record(capsys: pytest.CaptureFixture[str]) -> None:
    with spoiled(raise_error) as spoiler, Socket() as server:
        for _ in range(3):
            with Socket() as client:
                client.dial(server.listen("inproc://" + os.urandom(4).hex()).address)
        wait_until(lambda: spoiler.calls >= 6)
    said = capsys.readouterr().err
    assert said.count("gmultisocket: logging has failed, and records are missing") == 1
    assert said.count("RuntimeError: no request is active") == 1


def test_programs_can_turn_that_off(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with spoiled(raise_error) as spoiler, Socket() as server, Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        server.close()
        wait_until(lambda: spoiler.calls > 0)
    assert capsys.readouterr().err == ""


def test_a_factory_of_records_that_fails_costs_records_only(capsys: pytest.CaptureFixture[str]) -> None:
    def factory(*args: object, **more: object) -> logging.LogRecord:
        raise MultiSocketError("of the program")

    original = logging.getLogRecordFactory()
    top = logging.getLogger("gmultisocket")
    top.setLevel(logging.DEBUG)
    logging.setLogRecordFactory(factory)
    try:
        with Socket() as server, Socket(QUICKLY) as client:
            client.dial(server.listen("tcp://127.0.0.1:0").address)
            server.wait_pipes(1, LONG)
            server.close_pipe(next(iter(server.pipes)))
            wait_until(lambda: client.reconnects == 1)
    finally:
        logging.setLogRecordFactory(original)
        top.setLevel(logging.NOTSET)
    assert "logging has failed" in capsys.readouterr().err


# The end of a process, and forks

AT_THE_END = """
import logging, os
os.dup2(1, 2)
from gmultisocket import Socket
logging.basicConfig(level=logging.DEBUG)
server, client = Socket(), Socket()
client.dial(server.listen("inproc://end").address)
client.close()
"""

FORKED = """
import logging, os
os.dup2(1, 2)
import gevent
from gmultisocket.log import get_logger
logging.basicConfig(level=logging.DEBUG)
get_logger("gmultisocket.test").warning("said once")
pid = gevent.os.fork() if {gevent} else os.fork()
gevent.sleep(0.01)
if not pid:
    get_logger("gmultisocket.test").warning("said by the child")
    gevent.sleep(0.01)
    os._exit(0)
try:
    os.waitpid(pid, 0)
except ChildProcessError:
    pass  # the event loop was faster
"""


def test_records_that_wait_when_a_program_ends_are_written() -> None:
    assert "DEBUG:gmultisocket.pipe:pipe" in run_script(AT_THE_END)


@pytest.mark.parametrize("kind", ["True", "False"])
def test_a_forked_child_does_not_repeat_what_its_parent_has_to_say(kind: str) -> None:
    said = run_script(FORKED.format(gevent=kind))
    assert said.count("said once") == said.count("said by the child") == 1
