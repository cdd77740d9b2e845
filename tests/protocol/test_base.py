"""What the base does for every protocol, as far as the checks of all protocols do not show it."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event

from gmultisocket import Message, Socket, protocol
from gmultisocket.errors import BadOptionValue, Closed, MisplacedOption, NotSupported, Timeout
from gmultisocket.loop.waiting import Deadline
from gmultisocket.options import define
from gmultisocket.protocol import ProtocolBase, Rep
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL

LONG = 10.0


class Chat(ProtocolBase):
    """A protocol of somebody else's."""

    defaults = {"socket.send_queue_size": 7}
    fixed = {"socket.send_ttl": 3}
    instead = {"send": "say()"}

    def __init__(self, options: dict[str, object] | None = None) -> None:
        super().__init__(options)
        self.stopping = Event()
        self.go_on = Event()
        self.go_on.set()
        self.ended = 0

    def _stop(self, deadline: Deadline) -> None:
        self.stopping.set()
        self.go_on.wait(deadline.left())

    def _ended(self) -> None:
        self.ended += 1


def test_defaults_may_be_changed_and_what_is_fixed_may_not_under_any_spelling() -> None:
    with Chat({"Socket.SendQueueSize": 9, "socket.send_ttl": 3}) as chat:
        assert chat.options.get("socket.send_queue_size") == 9
        assert chat.options.get("socket.send_ttl") == 3
    with pytest.raises(BadOptionValue, match="Chat depends on"):
        Chat({"Socket.SendTTL": 4})


def test_options_of_a_protocol_of_somebody_else_are_refused_where_nobody_reads_them() -> None:
    size = define("protocol.smoke.size", int, 1, doc="Of the smoke.")

    class Smoke(Chat):
        families = ("protocol.smoke",)

    given: dict[Any, Any] = {size: 5}
    with Smoke(given) as smoke:
        assert smoke.options.get(size) == 5
    for make in (Chat, Socket, Rep):
        with pytest.raises(MisplacedOption, match="protocol.smoke.size has no effect on a"):
            make(options=given)
    with pytest.raises(MisplacedOption, match=r"a Smoke, which reads protocol.smoke.\*"):
        Smoke({"protocol.pubsub.expiry": 1})


def test_the_error_says_what_there_is_instead() -> None:
    with Chat() as chat:
        with pytest.raises(NotSupported, match=r"Chat has say\(\) instead"):
            chat.send(b"")
        with pytest.raises(NotSupported, match="Chat has no use for it"):
            chat.recv()


def test_what_is_shorter_than_a_protocol_can_use_is_dropped_as_garbage() -> None:
    with Chat() as chat, Socket() as peer:
        peer.dial(chat.listen("inproc://short").address)
        for content in (b"", b"123", b"1234"):
            peer.send(content)
        assert chat._next(LONG, min_size=4).content == b"1234"
        assert chat.counters.drops == {"garbage": 2}


def test_its_greenlets_end_with_close_and_may_call_it() -> None:
    chat = Chat()
    forever = chat._spawn(Event().wait)
    closer = chat._spawn(chat.close)
    assert closer.get(timeout=LONG) == 0
    assert forever.ready() and chat.closed
    assert chat.ended == 1


def test_a_method_that_hides_one_of_the_librarys_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"^Rude\._flush hides .*_ended, _outbox, _own_stats, _stop\)$"):

        class Rude(Chat):
            def _flush(self) -> None: ...  # type: ignore[override]


def test_attributes_of_a_subclass_do_not_meet_those_of_the_base() -> None:
    class Logging(Chat):
        def __init__(self) -> None:
            super().__init__()
            self._greenlets = self._logged = None

    with Logging() as chat, Socket() as peer:
        peer.dial(chat.listen("inproc://names").address)
        forever = chat._spawn(Event().wait)
        peer.send_msg(Message(flags=CONTROL), LONG)
        with pytest.raises(Timeout):
            chat._next(0)
        assert chat.counters.drops == {"garbage": 1}
    assert forever.ready()


def test_while_it_closes_its_own_calls_are_refused_and_what_it_could_not_send_is_counted() -> None:
    class Keeping(Chat):
        def _stop(self, deadline: Deadline) -> int:
            super()._stop(deadline)
            return 3

    chat = Keeping()
    chat._check_open()
    chat.go_on.clear()
    closing = chat.close_nowait(LONG)
    assert chat.stopping.wait(LONG)
    with pytest.raises(Closed, match="the Keeping is closed"):
        chat._check_open()
    chat.go_on.set()
    assert closing.get(timeout=LONG) == 3


def test_an_error_of_the_programs_code_is_reported_with_its_peer(caplog: pytest.LogCaptureFixture) -> None:
    with Chat() as chat, Socket() as peer:
        peer.dial(chat.listen("inproc://report").address)
        chat.wait_pipes(1, LONG)
        (pipe,) = chat.pipes.values()
        for _ in range(3):
            chat._report("a handler of a Chat failed", KeyError("what"), pipe_id=pipe.id, request_id="7")
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == f"a handler of a Chat failed, for {pipe.peer_address}"
    assert (record.pipe_id, record.peer, record.request_id) == (pipe.id, pipe.peer_address, "7")  # type: ignore[attr-defined]


def test_linger_is_shared_by_the_protocol_and_its_socket() -> None:
    with Chat() as chat, Socket({"socket.recv_queue_size": 1}) as stuck:
        stuck.dial(chat.listen("inproc://linger").address)
        chat.wait_pipes(1, LONG)
        for _ in range(3):
            chat.socket.send(b"")
        chat.go_on.clear()
        assert chat.close(0.05) == 2


def test_a_close_that_is_killed_leaves_nothing_open() -> None:
    with Chat() as chat:
        chat.listen("tcp://127.0.0.1:0")
        chat.go_on.clear()
        closing = gevent.spawn(chat.close, LONG)
        second = gevent.spawn(chat.close)
        assert chat.stopping.wait(LONG)
        closing.kill()
        assert second.get(timeout=LONG) == 0
        assert chat.closed and chat.socket.closed
        assert chat.ended == 1


def test_close_nowait_closes_in_the_background() -> None:
    chat = Chat()
    chat.go_on.clear()
    closing = chat.close_nowait(LONG)
    wait_until(chat.stopping.is_set)
    assert not chat.closed
    chat.go_on.set()
    assert closing.get(timeout=LONG) == 0
    assert chat.closed


def test_a_name_that_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'gmultisocket.protocol' has no attribute 'Nothing'"):
        protocol.Nothing  # type: ignore[attr-defined]  # noqa: B018
    assert set(dir(protocol)) >= set(protocol.__all__)
