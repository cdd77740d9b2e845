"""The protocol checks pass for a toy, and each of them fails for a toy that breaks what it is about."""

from __future__ import annotations

from typing import Any

import pytest
from gevent.event import Event

from gmultisocket import Message, Socket
from gmultisocket.errors import MisplacedOption
from gmultisocket.options import OptionValues
from gmultisocket.protocol import Outbox, ProtocolBase
from gmultisocket.testing import ProtocolChecks, run_checks
from gmultisocket.wire import CONTROL

LONG = 10.0


class Chat(ProtocolBase):
    """Sends contents to all, and receives them."""

    defaults = {"socket.send_overflow": "drop_newest"}
    fixed = {"socket.no_recv": False}
    instead = {"send": "say()", "recv": "hear()"}

    def say(self, content: bytes, timeout: float | None = None) -> None:
        self.socket.send_all(content, timeout)

    def hear(self, timeout: float | None = None) -> bytes:
        return self._next(timeout).content


class ChatChecks(ProtocolChecks):
    address = "tcp://127.0.0.1:0"
    lacks = ("send", "recv")
    waits = ("hear",)
    limit = LONG
    kind: type[Chat] = Chat

    def make(self, options: OptionValues | None = None) -> Chat:
        return self.kind(options)

    make_peer = make

    def exchange(self, protocol: Chat, peer: Chat, content: bytes) -> bytes:
        protocol.say(content)
        peer.say(peer.hear())
        return protocol.hear()

    def exchange_by_hand(self, protocol: Chat, sock: Socket, content: bytes) -> bytes:
        protocol.say(content)
        return sock.recv()

    def calls(self, protocol: Chat) -> dict[str, Any]:
        return {"say": lambda timeout: protocol.say(b"", timeout), "hear": protocol.hear}


class TestChat(ChatChecks):
    pass


# Toys that are broken, each in one way, and the check that finds it out.


class Secretive(Chat):
    """What it sends is not what it says that it sends."""

    def say(self, content: bytes, timeout: float | None = None) -> None:
        super().say(b"chat:" + content, timeout)

    def hear(self, timeout: float | None = None) -> bytes:
        return super().hear(timeout)[5:]


class ShortSighted(Chat):
    fixed = {"socket.no_recv": False, "socket.send_ttl": 1}


class Trusting(Chat):
    """Believes that each control message has a kind that it knows."""

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._core.on_message(self._on_message)

    def _on_message(self, message: Message) -> bool:
        return bool(message.flags & CONTROL) and [True, False][message.content[0]]


class Believing(Chat):
    """Takes every message for one of its own."""

    def hear(self, timeout: float | None = None) -> bytes:
        return self.socket.recv(timeout)


class Hoarding(Chat):
    """Keeps everything that a peer does not read."""

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._outbox = self._posts = Outbox(self._core, self._spawn)

    def say(self, content: bytes, timeout: float | None = None) -> None:
        self._check_open()
        for pipe in self.pipes.values():
            self._posts.post(pipe, object(), Message(content=content))


class Stubborn(Chat):
    """Ignores the timeout: it waits for peers that do not read."""

    defaults = {}

    def say(self, content: bytes, timeout: float | None = None) -> None:
        self.socket.send_all(content)


class Careless(Chat):
    def __init__(self, options: OptionValues | None = None) -> None:
        try:
            super().__init__(options)
        except MisplacedOption:
            super().__init__()


class Boasting(Chat):
    def _own_stats(self) -> dict[str, int]:
        return {"pipes": 1000}


class Talkative(Chat):
    def _own_stats(self) -> dict[str, Any]:
        return {"mood": "good"}


class Hiding(Chat):
    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._closing = False


class Deaf(Chat):
    """Waits for something that close() does not know of."""

    def hear(self, timeout: float | None = None) -> bytes:
        self._check_open()
        Event().wait(timeout)
        return b""


class Lenient(Chat):
    def say(self, content: bytes | str, timeout: float | None = None) -> None:
        super().say(content.encode() if isinstance(content, str) else content, timeout)


class Unchecked(Chat):
    """Does not look who calls."""

    def say(self, content: bytes, timeout: float | None = None) -> None:
        if self.pipes:
            super().say(content, timeout)


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        # These three are found out by waiting in vain.
        (ShortSighted, "through_a_switch", "the exchange did not end"),
        (Stubborn, "does_not_read_holds", "say with a timeout of 0 did not return"),
        (Deaf, "close_ends_every_wait", "hear still waits after close()"),
        (Secretive, "a_plain_socket", "b'chat:content' arrived"),
        (Trusting, "no_bytes_from_a_peer", "a greenlet ended with IndexError"),
        (Believing, "garbage_is_counted", "b'who are you?' arrived"),
        (Hoarding, "does_not_read_holds", "100 messages wait for a peer that reads nothing"),
        (Careless, "does_not_read_are_refused", "another protocol's option ended with"),
        (Boasting, "read_in_any_thread", "hide a number of the socket"),
        (Talkative, "read_in_any_thread", "not all of these are numbers: {'mood': 'good'}"),
        (Hiding, "hide_none", "Hiding sets attributes of ProtocolBase: _closing"),
        (Deaf, "a_wait_ends_with_its_timeout", "hear for 0 s ended with b''"),
        (Lenient, "text_cannot", "text was sent"),
        (Unchecked, "after_close_every_call", "say ended with None"),
        (Unchecked, "from_another_thread", "say ended with None"),
    ],
)
def test_a_broken_protocol_is_found_out(kind: type[Chat], name: str, text: str) -> None:
    class Checks(ChatChecks):
        limit = 0.7 if kind in (ShortSighted, Stubborn, Deaf) else LONG

    Checks.kind = kind
    (method,) = (method for method in dir(Checks) if method.startswith("test_") and name in method)
    with pytest.raises(AssertionError) as caught:
        getattr(Checks(), method)()
    assert text in str(caught.value)


def test_all_checks_run_without_a_test_runner() -> None:
    assert run_checks(ChatChecks()) == [name for name in dir(ProtocolChecks) if name.startswith("test_")]


def test_a_subclass_that_says_no_address_is_told_so() -> None:
    class Checks(ChatChecks):
        address = ""

    with pytest.raises(AssertionError, match="Checks must set 'address' or override make_address"):
        Checks().test_many_greenlets_may_talk_at_once()
