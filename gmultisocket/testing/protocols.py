"""The checks of the protocols in ``gmultisocket.protocol``: how to make two ends of each and exchange a content.

What a protocol promises beyond :class:`~gmultisocket.testing.ProtocolChecks` is for its own tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from socket import SHUT_WR
from typing import Any, ClassVar

from ..core.socket import Socket
from ..options import OptionValues
from ..protocol import Bus, Pair, ProtocolBase, Pub, Pull, Push, Rep, Req, Respondent, Stream, Sub, Surveyor
from ..wire import CONTROL, TO_ALL, TO_DEST, Message
from ._bench import nothing_left
from ._protocol import ProtocolChecks, Warnings
from ._protocolsetup import Call
from ._wait import wait_until

__all__ = [
    "BusChecks",
    "PairChecks",
    "PubChecks",
    "PullChecks",
    "PushChecks",
    "RepChecks",
    "ReqChecks",
    "RespondentChecks",
    "StreamChecks",
    "SubChecks",
    "SurveyorChecks",
]


class ReqChecks(ProtocolChecks):
    """The checks of Req."""

    lacks = ("send", "recv")
    waits = ("request", "request_async")
    garbage = (*ProtocolChecks.garbage, Message(content=b""), Message(content=b"\0\0\0"))

    def make(self, options: OptionValues | None = None) -> Req:
        return Req(options)

    def make_peer(self, options: OptionValues | None = None) -> Rep:
        rep = Rep(bytes, options, concurrency=2)
        rep.start()
        return rep

    def exchange(self, protocol: Req, peer: Rep, content: bytes) -> bytes:
        return protocol.request(content, self.limit)

    def exchange_by_hand(self, protocol: Req, sock: Socket, content: bytes) -> bytes:
        request = protocol.request_async(b"question", self.limit)
        asked = sock.recv_msg(self.limit)
        assert asked.content[4:] == b"question"
        sock.send_to(asked.source, asked.content[:4] + content, self.limit)
        return request.get(self.limit)

    def calls(self, protocol: Req) -> Mapping[str, Call]:
        return {
            "request": lambda timeout: protocol.request(b"", timeout),
            "request_async": lambda timeout: protocol.request_async(b"", timeout),
        }


class RepChecks(ProtocolChecks):
    """The checks of Rep."""

    lacks = ("send",)
    waits = ("recv",)
    garbage = ReqChecks.garbage

    def make(self, options: OptionValues | None = None) -> Rep:
        return Rep(None, options)

    def make_peer(self, options: OptionValues | None = None) -> Req:
        return Req(options)

    def exchange(self, protocol: Rep, peer: Req, content: bytes) -> bytes:
        request = peer.request_async(b"", self.limit)
        protocol.recv(self.limit).reply(content)
        return request.get(self.limit)

    def exchange_by_hand(self, protocol: Any, sock: Socket, content: bytes) -> bytes:
        sock.send_all(b"\x12\x34\x56\x78question", self.limit)
        request = protocol.recv(self.limit)
        assert request.content == b"question"
        request.reply(content)
        answer = sock.recv(self.limit)
        assert answer[:4] == b"\x12\x34\x56\x78"
        return answer[4:]

    def calls(self, protocol: Rep) -> Mapping[str, Call]:
        return {"recv": lambda timeout: protocol.recv(timeout)}


class PushChecks(ProtocolChecks):
    """The checks of Push."""

    lacks = ("recv",)
    waits = ("send",)

    def make(self, options: OptionValues | None = None) -> ProtocolBase:
        return Push(options)

    def make_peer(self, options: OptionValues | None = None) -> ProtocolBase:
        return Pull(options)

    def exchange(self, protocol: Push, peer: Pull, content: bytes) -> bytes:
        protocol.send(content, self.limit)
        return peer.recv(self.limit)

    def exchange_by_hand(self, protocol: Any, sock: Socket, content: bytes) -> bytes:
        protocol.send(content, self.limit)
        return sock.recv(self.limit)

    def calls(self, protocol: Any) -> Mapping[str, Call]:
        return {"send": lambda timeout: protocol.send(b"", timeout)}

    def test_garbage_is_counted_and_logged_once_and_talk_goes_on(self) -> None:
        """A Push receives nothing: its socket counts what comes."""
        with self.connected() as (protocol, peer), Socket() as stranger:
            stranger.dial(next(iter(protocol.socket.listeners)).address)
            stranger.send(b"anything", self.limit)
            wait_until(lambda: protocol.counters.drops.get("no_recv") == 1, self.limit)
            stranger.close(0)
            wait_until(lambda: len(protocol.pipes) == 1, self.limit)
            self.check_exchange(protocol, peer)


class PullChecks(PushChecks):
    """The checks of Pull."""

    lacks = ("send",)
    waits = ("recv",)

    def make(self, options: OptionValues | None = None) -> ProtocolBase:
        return Pull(options)

    def make_peer(self, options: OptionValues | None = None) -> ProtocolBase:
        return Push(options)

    def exchange(self, protocol: Any, peer: Any, content: bytes) -> bytes:
        return super().exchange(peer, protocol, content)

    def exchange_by_hand(self, protocol: Any, sock: Socket, content: bytes) -> bytes:
        sock.send(content, self.limit)
        return bytes(protocol.recv(self.limit))

    def calls(self, protocol: Any) -> Mapping[str, Call]:
        return {"recv": lambda timeout: protocol.recv(timeout)}

    def test_garbage_is_counted_and_logged_once_and_talk_goes_on(self) -> None:
        ProtocolChecks.test_garbage_is_counted_and_logged_once_and_talk_goes_on(self)


class BusChecks(ProtocolChecks):
    """The checks of Bus."""

    waits = ("recv",)

    def make(self, options: OptionValues | None = None) -> Bus:
        return Bus(options)

    make_peer = make

    def exchange(self, protocol: Bus, peer: Bus, content: bytes) -> bytes:
        protocol.send(content)
        peer.send(peer.recv(self.limit))
        return protocol.recv(self.limit)

    def exchange_by_hand(self, protocol: Any, sock: Socket, content: bytes) -> bytes:
        protocol.send(content, self.limit)
        sock.send_all(sock.recv(self.limit), self.limit)
        return bytes(protocol.recv(self.limit))

    def calls(self, protocol: Bus) -> Mapping[str, Call]:
        return {
            "recv": lambda timeout: protocol.recv(timeout),
            "send": lambda timeout: protocol.send(b"", timeout),
        }


class PairChecks(ProtocolChecks):
    """The checks of Pair."""

    waits = ("recv", "send")

    def make(self, options: OptionValues | None = None) -> Pair:
        return Pair(options)

    make_peer = make

    def exchange(self, protocol: Pair, peer: Pair, content: bytes) -> bytes:
        protocol.send(content, self.limit)
        return peer.recv(self.limit)

    def exchange_by_hand(self, protocol: Any, sock: Socket, content: bytes) -> bytes:
        protocol.send(content, self.limit)
        sock.send_all(sock.recv(self.limit), self.limit)
        return bytes(protocol.recv(self.limit))

    def calls(self, protocol: Pair) -> Mapping[str, Call]:
        return {
            "recv": lambda timeout: protocol.recv(timeout),
            "send": lambda timeout: protocol.send(b"", timeout),
        }

    def test_garbage_is_counted_and_logged_once_and_talk_goes_on(self) -> None:
        """A stranger is refused while there is a peer, so here the stranger is the peer."""
        with nothing_left(), self.make() as protocol, Socket() as stranger, Warnings() as log:
            stranger.dial(protocol.listen(self.make_address()).address)
            for number in range(3):
                stranger.send_msg(self.garbage[0], self.limit)
                stranger.send(b"%d" % number, self.limit)
            assert [protocol.recv(self.limit) for _ in range(3)] == [b"0", b"1", b"2"]
            assert protocol.counters.drops == {"garbage": 3}
            wait_until(lambda: bool(log.warnings), self.limit)
            assert len(log.warnings) == 1, f"logged {len(log.warnings)} times: {log.warnings}"


class PubChecks(ProtocolChecks):
    """The checks of Pub."""

    lacks: ClassVar[tuple[str, ...]] = ("send", "recv")
    garbage = (
        Message(content=b"\0\1apublished"),
        Message(flags=CONTROL),
        Message(flags=CONTROL, content=b"\1a..b"),
        Message(flags=CONTROL, content=b"\2a"),
    )

    def make(self, options: OptionValues | None = None) -> ProtocolBase:
        return Pub(options)

    def make_peer(self, options: OptionValues | None = None) -> ProtocolBase:
        return Sub(options)

    def exchange(self, protocol: Any, peer: Any, content: bytes) -> bytes:
        peer.subscribe("topic.>", self.limit)
        protocol.publish("topic.of.it", content)
        topic, arrived = peer.recv(self.limit)
        assert topic == "topic.of.it", f"it arrived under the topic {topic}"
        return bytes(arrived)

    def exchange_by_hand(self, protocol: Any, sock: Socket, content: bytes) -> bytes:
        sock.send_msg(Message(flags=CONTROL | TO_ALL, content=b"\1topic.>"), self.limit)
        protocol.wait_subscribers("topic.of.it", timeout=self.limit)
        protocol.publish("topic.of.it", content)
        message = next(message for message in sock if not message.flags & CONTROL)
        assert message.content[:13] == b"\0\x0btopic.of.it"
        return message.content[13:]

    def calls(self, protocol: Any) -> Mapping[str, Call]:
        return {"publish": lambda timeout: protocol.publish("topic", b"", timeout)}


class SubChecks(PubChecks):
    """The checks of Sub."""

    lacks = ("send",)
    waits = ("recv",)
    garbage = (
        Message(content=b"\0"),
        Message(content=b"\0\0empty"),
        Message(content=b"\1\0too short"),
        Message(flags=CONTROL, content=b"\1a"),
    )

    def make(self, options: OptionValues | None = None) -> ProtocolBase:
        return Sub(options)

    def make_peer(self, options: OptionValues | None = None) -> ProtocolBase:
        return Pub(options)

    def exchange(self, protocol: Any, peer: Any, content: bytes) -> bytes:
        return super().exchange(peer, protocol, content)

    def exchange_by_hand(self, protocol: Any, sock: Socket, content: bytes) -> bytes:
        protocol.subscribe("topic")
        assert any(message.content == b"\1topic" for message in sock)
        sock.send_all(b"\0\5topic" + content)
        topic, arrived = protocol.recv(self.limit)
        assert topic == "topic"
        return bytes(arrived)

    def calls(self, protocol: Any) -> Mapping[str, Call]:
        return {
            "recv": lambda timeout: protocol.recv(timeout),
            "subscribe": lambda timeout: protocol.subscribe("topic", timeout),
            "unsubscribe": lambda timeout: protocol.unsubscribe("topic"),
        }


class StreamChecks(ProtocolChecks):
    """The checks of Stream."""

    lacks = ("send", "recv")
    waits = ("connect", "accept")
    garbage = (*ProtocolChecks.garbage, Message(content=b"data"), Message(flags=CONTROL, content=b"\0"))

    def make(self, options: OptionValues | None = None) -> Stream:
        return Stream(options)

    make_peer = make

    def exchange(self, protocol: Stream, peer: Stream, content: bytes) -> bytes:
        with protocol.connect(self.limit) as one, peer.accept(self.limit) as other:
            other.settimeout(self.limit)
            one.sendall(content)
            one.shutdown(SHUT_WR)
            with other.makefile("rb") as file:
                return bytes(file.read())

    def exchange_by_hand(self, protocol: Stream, sock: Socket, content: bytes) -> bytes:
        end = b"\0\0\1\0"
        sock.send_msg(Message(flags=CONTROL, source=end, content=b"\0"), self.limit)
        with protocol.accept(self.limit) as connection:
            answer = sock.recv_msg(self.limit)
            assert answer.flags & CONTROL and answer.content == b"\1"
            data = Message(flags=TO_DEST, source=end, destination=answer.source, content=content)
            sock.send_msg(data, self.limit)
            connection.settimeout(self.limit)
            return bytes(connection.recv(len(content)))

    def calls(self, protocol: Stream) -> Mapping[str, Call]:
        return {
            "connect": lambda timeout: protocol.connect(timeout),
            "accept": lambda timeout: protocol.accept(timeout),
        }


class SurveyorChecks(ProtocolChecks):
    """The checks of Surveyor."""

    lacks = ("send", "recv")
    garbage = ReqChecks.garbage

    def make(self, options: OptionValues | None = None) -> Surveyor:
        return Surveyor(options)

    def make_peer(self, options: OptionValues | None = None) -> Respondent:
        respondent = Respondent(bytes, options, concurrency=2)
        respondent.start()
        return respondent

    def exchange(self, protocol: Surveyor, peer: Respondent, content: bytes) -> bytes:
        return next(protocol.survey(content, self.limit))

    def exchange_by_hand(self, protocol: Surveyor, sock: Socket, content: bytes) -> bytes:
        survey = protocol.survey(b"question", self.limit)
        asked = sock.recv_msg(self.limit)
        assert asked.content[4:] == b"question"
        sock.send_to(asked.source, asked.content[:4] + content, self.limit)
        return next(survey)

    def calls(self, protocol: Surveyor) -> Mapping[str, Call]:
        return {"survey": lambda timeout: protocol.survey(b"", 1)}


class RespondentChecks(ProtocolChecks):
    """The checks of Respondent."""

    lacks = ("send",)
    waits = ("recv",)
    garbage = ReqChecks.garbage

    def make(self, options: OptionValues | None = None) -> Respondent:
        return Respondent(None, options)

    def make_peer(self, options: OptionValues | None = None) -> Surveyor:
        return Surveyor(options)

    def exchange(self, protocol: Respondent, peer: Surveyor, content: bytes) -> bytes:
        survey = peer.survey(b"", self.limit)
        protocol.recv(self.limit).reply(content)
        return next(survey)

    exchange_by_hand = RepChecks.exchange_by_hand

    def calls(self, protocol: Respondent) -> Mapping[str, Call]:
        return {"recv": lambda timeout: protocol.recv(timeout)}
