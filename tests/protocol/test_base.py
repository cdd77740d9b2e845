"""What the base does for every protocol, as far as the checks of all protocols do not show it."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from gmultisocket import Socket, protocol
from gmultisocket.errors import BadOptionValue, NotSupported
from gmultisocket.loop.waiting import Deadline
from gmultisocket.protocol import ProtocolBase
from gmultisocket.testing import wait_until

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
