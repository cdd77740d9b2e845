"""Checks that every protocol passes, and the ones of those in ``gmultisocket.protocol``.

:class:`ProtocolChecks` holds for anything that is built upon :class:`~gmultisocket.protocol.Protocol`; the
classes under it say how two ends of one protocol are made and talk. What a protocol promises beyond that is for its own
tests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import gevent

from ..core.events import PipeEvent
from ..core.socket import Socket
from ..errors import BadOptionValue, Closed, MultiSocketError, NotSupported, Timeout, UnknownOption, WrongThread
from ..options import OptionValues
from ..protocol import Bus, Pair, Protocol, Pub, Pull, Push, Rep, Req, Respondent, Sub, Surveyor
from ..wire import CONTROL, Message
from ._bench import finish, nothing_left
from ._wait import wait_until

__all__ = [
    "BusChecks",
    "PairChecks",
    "ProtocolChecks",
    "PubChecks",
    "PullChecks",
    "PushChecks",
    "RepChecks",
    "ReqChecks",
    "RespondentChecks",
    "SubChecks",
    "SurveyorChecks",
]

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
Call = Callable[[float | None], object]

#: So that a lost pipe is back before anybody gets impatient.
_QUICK = {"connector.dialer.min_reconnect_time": 0.001, "connector.dialer.max_reconnect_time": 0.02}


class ProtocolChecks:
    """What any protocol must do. Subclass it, say what to check, and have a test runner find the methods.

    With pytest that is all::

        class TestChat(ProtocolChecks):
            address = "tcp://127.0.0.1:0"

            def make(self, options=None):
                return Chat(options)

            make_peer = make

            def exchange(self, protocol, peer, content):
                protocol.say(content)
                return peer.hear(self.limit)

            def calls(self, protocol):
                return {"hear": lambda timeout: protocol.hear(timeout), "say": lambda timeout: protocol.say(b"")}

            waits = ("hear",)

    Each check is a method ``test_...``, takes no argument, cleans up, and raises ``AssertionError`` with what went
    wrong. One that does not hold for a protocol, for a reason, is overridden and says so.

    Attributes:
        address: where to listen, again and again. Override :meth:`make_address` where it takes more than that.
        waits: those of :meth:`calls` that block while nobody is connected.
        lacks: methods of ``Protocol`` that this one has no use for.
        garbage: messages that no honest peer sends.
        limit: the longest that any one step may take, in seconds.
    """

    address: ClassVar[str] = ""
    waits: ClassVar[tuple[str, ...]] = ()
    lacks: ClassVar[tuple[str, ...]] = ()
    garbage: ClassVar[tuple[Message, ...]] = (Message(flags=CONTROL, content=b"who are you?"),)
    limit: ClassVar[float] = 10.0

    def make_address(self) -> str:
        """Return an address to listen at; by default ``address``."""
        assert self.address, f"{type(self).__name__} must set 'address' or override make_address()"
        return self.address

    # What a subclass says

    def make(self, options: OptionValues | None = None) -> Protocol:
        """Return the protocol that is checked."""
        raise NotImplementedError

    def make_peer(self, options: OptionValues | None = None) -> Protocol:
        """Return what it talks to."""
        raise NotImplementedError

    def exchange(self, protocol: Any, peer: Any, content: bytes) -> bytes:
        """Send a content from one to the other, by whatever the protocol does, and return what arrived.

        When several do so at once they may get each other's.
        """
        raise NotImplementedError

    def calls(self, protocol: Any) -> Mapping[str, Call]:
        """Return the protocol's calls by name, each taking a timeout, which it may ignore if it never blocks."""
        raise NotImplementedError

    # What checks are made of

    @contextmanager
    def connected(self) -> Iterator[tuple[Any, Any]]:
        """Make both ends, connect them, and see afterwards that nothing is left of them."""
        with nothing_left(), self.make(_QUICK) as protocol, self.make_peer(_QUICK) as peer:
            peer.dial(protocol.listen(self.make_address()).address)
            self.wait_connected(protocol, peer)
            yield protocol, peer

    def wait_connected(self, *protocols: Protocol) -> None:
        """Block until each has a peer."""
        for protocol in protocols:
            protocol.wait_pipes(1, self.limit)

    def check_exchange(self, protocol: Protocol, peer: Protocol, content: bytes = b"content") -> None:
        """Check that one content arrives, in time."""
        work = gevent.spawn(self.exchange, protocol, peer, content)
        arrived = finish(work, self.limit, "the exchange did not end")
        assert arrived == content, f"sent {content[:50]!r}, and {arrived[:50]!r} arrived"

    def blocked(self, protocol: Protocol, name: str, timeout: float | None = None) -> gevent.Greenlet[..., Any]:
        """Return a greenlet that is in one of the calls, and waits there."""
        greenlet = gevent.spawn(_outcome, self.calls(protocol)[name], timeout)
        gevent.sleep(0)
        assert not greenlet.ready(), f"{name} did not wait but ended with {greenlet.value!r}"
        return greenlet

    # Talking

    def test_contents_of_any_size_arrive(self) -> None:
        with self.connected() as (protocol, peer):
            for size in (0, 1, 1000, 100_000):
                self.check_exchange(protocol, peer, bytes(range(256)) * (size // 256) + bytes(size % 256))

    def test_any_bytes_like_object_can_be_sent_and_text_cannot(self) -> None:
        with self.connected() as (protocol, peer):
            contents: tuple[Any, ...] = (bytearray(b"bytes"), memoryview(b"bytes"))
            for content in contents:
                work = gevent.spawn(self.exchange, protocol, peer, content)
                assert finish(work, self.limit, "the exchange did not end") == b"bytes"
            try:
                self.exchange(protocol, peer, "text")  # type: ignore[arg-type]
            except TypeError:
                pass
            else:
                raise AssertionError("text was sent: as what?")
            self.check_exchange(protocol, peer)

    def test_many_greenlets_may_talk_at_once(self) -> None:
        contents = [b"%d" % number for number in range(50)]
        with self.connected() as (protocol, peer):
            talks = [gevent.spawn(self.exchange, protocol, peer, content) for content in contents]
            arrived = [finish(talk, self.limit, "an exchange did not end") for talk in talks]
            assert sorted(arrived) == sorted(contents), f"{set(contents) - set(arrived)} did not arrive"

    def test_a_lost_pipe_is_replaced_and_talk_goes_on(self) -> None:
        with self.connected() as (protocol, peer):
            for end in (protocol, peer):
                self.check_exchange(protocol, peer)
                lost = set(protocol.pipes)
                end.socket.close_pipe(next(iter(end.pipes)))
                wait_until(lambda lost=lost: protocol.pipes and not lost & set(protocol.pipes), self.limit)  # type: ignore[misc]
                self.wait_connected(peer)
            self.check_exchange(protocol, peer)

    def test_pipes_are_told_of_as_they_come_and_go(self) -> None:
        events: list[PipeEvent] = []
        with nothing_left(), self.make() as protocol, self.make_peer() as peer:
            end_watch = protocol.on_pipe(events.append)
            peer.dial(protocol.listen(self.make_address()).address)
            wait_until(lambda: [event.kind for event in events] == ["add"], self.limit)
            assert events[0].pipe is next(iter(protocol.pipes.values()))
            peer.close(0)
            wait_until(lambda: [event.kind for event in events] == ["add", "remove"], self.limit)
            end_watch()

    # Timeouts and cancellation

    def test_a_wait_ends_with_its_timeout_and_spoils_nothing(self) -> None:
        with nothing_left(), self.make() as protocol, self.make_peer() as peer:
            for name in self.waits:
                for timeout in (0, 0.01):
                    outcome = finish(gevent.spawn(_outcome, self.calls(protocol)[name], timeout), self.limit, name)
                    assert isinstance(outcome, Timeout), f"{name} for {timeout} s ended with {outcome!r}"
            peer.dial(protocol.listen(self.make_address()).address)
            self.wait_connected(protocol, peer)
            self.check_exchange(protocol, peer)

    def test_a_wait_can_be_killed_or_timed_out_from_outside_and_spoils_nothing(self) -> None:
        with nothing_left(), self.make() as protocol, self.make_peer() as peer:
            for name in self.waits:
                self.blocked(protocol, name).kill()
                outside = gevent.Timeout(0.01)
                outcome = finish(gevent.spawn(_outcome, self.calls(protocol)[name], None, outside), self.limit, name)
                assert outcome is outside, f"{name} took a gevent.Timeout of the caller's, and ended with {outcome!r}"
            peer.dial(protocol.listen(self.make_address()).address)
            self.wait_connected(protocol, peer)
            self.check_exchange(protocol, peer)

    # What it does not do

    def test_what_it_lacks_is_an_error_that_says_so(self) -> None:
        with self.make() as protocol:
            lacking: Mapping[str, Call] = {
                "send": lambda timeout: protocol.send(b"", timeout),
                "recv": lambda timeout: protocol.recv(timeout),
            }
            for name in self.lacks:
                outcome = _outcome(lacking[name], 0)
                assert isinstance(outcome, NotSupported), f"{name} ended with {outcome!r}"
                assert type(protocol).__name__ in str(outcome), f"the error does not name the protocol: {outcome}"

    def test_garbage_is_counted_and_logged_once_and_talk_goes_on(self) -> None:
        with self.connected() as (protocol, peer), Socket() as stranger, _Log() as log:
            stranger.dial(next(iter(protocol.socket.listeners)).address)
            for _ in range(3):
                for message in self.garbage:
                    stranger.send_msg(message, self.limit)
            count = 3 * len(self.garbage)
            wait_until(lambda: protocol.counters.drops.get("garbage") == count, self.limit, f"{count} dropped")
            assert len(log.warnings) == 1, f"logged {len(log.warnings)} times: {log.warnings}"
            stranger.close(0)
            wait_until(lambda: len(protocol.pipes) == 1, self.limit)
            self.check_exchange(protocol, peer)

    # Options

    def test_options_are_those_of_its_socket(self) -> None:
        with self.make({"socket.send_queue_size": 3, "Socket.RecvQueueSize": 5}) as protocol:
            assert protocol.options.get("socket.send_queue_size") == 3
            assert protocol.socket.get_option("socket.recv_queue_size") == 5
        outcome = _outcome(lambda timeout: self.make({"socket.no_such": 1}), None)
        assert isinstance(outcome, UnknownOption), f"an unknown option ended with {outcome!r}"

    def test_options_that_it_depends_on_cannot_be_changed(self) -> None:
        with self.make() as protocol:
            fixed = protocol.fixed
        for name, value in fixed.items():
            assert isinstance(value, (bool, str, int))
            other = {bool: not value, int: 7, str: "drop_newest" if value == "block" else "wait"}[type(value)]
            made = _outcome(lambda timeout, name=name, other=other: self.make({name: other}), None)  # type: ignore[misc]
            assert isinstance(made, BadOptionValue), f"{name}={other} ended with {made!r}"
            with self.make({name: value}) as protocol:
                changed = _outcome(lambda t, p=protocol, n=name, o=other: p.options.set(n, o), None)  # type: ignore[misc]
                assert isinstance(changed, BadOptionValue) and protocol.options.get(name) == value

    # Closing

    def test_closing_twice_or_at_the_same_time_is_harmless(self) -> None:
        with self.connected() as (protocol, peer):
            self.check_exchange(protocol, peer)
            assert not protocol.closed
            closers = [gevent.spawn(protocol.close) for _ in range(3)]
            for closer in closers:
                assert finish(closer, self.limit, "close() did not return") == 0, "close() lost what had arrived"
            assert protocol.closed and not protocol.pipes
            assert protocol.close() == 0

    def test_after_close_every_call_says_closed(self) -> None:
        protocol = self.make()
        protocol.close()
        calls = {
            **self.calls(protocol),
            "dial": lambda timeout: protocol.dial(self.make_address()),
            "listen": lambda timeout: protocol.listen(self.make_address()),
            "wait_pipes": lambda timeout: protocol.wait_pipes(1, timeout),
        }
        for name, call in calls.items():
            outcome = finish(gevent.spawn(_outcome, call, None), self.limit, f"{name} did not return")
            assert isinstance(outcome, Closed), f"{name} ended with {outcome!r}"

    def test_close_ends_every_wait(self) -> None:
        for name in self.waits:
            with nothing_left(), self.make() as protocol:
                waiting = [self.blocked(protocol, name) for _ in range(3)]
                protocol.close()
                for greenlet in waiting:
                    outcome = finish(greenlet, self.limit, f"{name} still waits after close()")
                    assert isinstance(outcome, Closed), f"{name} ended with {outcome!r}"

    def test_a_pipe_callback_may_close_it(self) -> None:
        with nothing_left(), self.make() as protocol, self.make_peer() as peer:
            protocol.on_pipe(lambda event: protocol.close(0))
            peer.dial(protocol.listen(self.make_address()).address)
            wait_until(lambda: protocol.closed, self.limit, "close() in a callback did not return")

    def test_nothing_runs_before_it_is_connected(self) -> None:
        with nothing_left():
            protocol = self.make()
        protocol.close()

    # Threads

    def test_from_another_thread_every_call_says_so(self) -> None:
        with self.make() as protocol:
            calls = {
                **self.calls(protocol),
                "dial": lambda timeout: protocol.dial(self.make_address()),
                "listen": lambda timeout: protocol.listen(self.make_address()),
                "close": lambda timeout: protocol.close(),
            }
            for name, call in calls.items():
                outcome = gevent.get_hub().threadpool.apply(_outcome, (call, 0))
                assert isinstance(outcome, WrongThread), f"{name} ended with {outcome!r}"
            assert not protocol.closed
        gevent.get_hub().threadpool.kill()


def _outcome(call: Call, timeout: float | None, outside: gevent.Timeout | None = None) -> object:
    """Return what a call returns or raises, a ``gevent.Timeout`` of its caller's included."""
    try:
        if outside is None:
            return call(timeout)
        with outside:
            return call(timeout)
    except (MultiSocketError, gevent.Timeout) as error:
        return error


class _Log(logging.Handler):
    """What protocols warn of, meanwhile."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []
        self._logger = logging.getLogger("gmultisocket.protocol")

    def __enter__(self) -> _Log:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())


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
        question = protocol.recv(self.limit)
        question.reply(content)
        return request.get(self.limit)

    def calls(self, protocol: Rep) -> Mapping[str, Call]:
        return {"recv": lambda timeout: protocol.recv(timeout)}


class PushChecks(ProtocolChecks):
    """The checks of Push."""

    lacks = ("recv",)
    waits = ("send",)

    def make(self, options: OptionValues | None = None) -> Protocol:
        return Push(options)

    def make_peer(self, options: OptionValues | None = None) -> Protocol:
        return Pull(options)

    def exchange(self, protocol: Push, peer: Pull, content: bytes) -> bytes:
        protocol.send(content, self.limit)
        return peer.recv(self.limit)

    def calls(self, protocol: Any) -> Mapping[str, Call]:
        return {"send": lambda timeout: protocol.send(b"", timeout)}

    def test_garbage_is_counted_and_logged_once_and_talk_goes_on(self) -> None:
        """A Push takes nothing: whatever comes is counted by its socket."""
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

    def make(self, options: OptionValues | None = None) -> Protocol:
        return Pull(options)

    def make_peer(self, options: OptionValues | None = None) -> Protocol:
        return Push(options)

    def exchange(self, protocol: Any, peer: Any, content: bytes) -> bytes:
        return super().exchange(peer, protocol, content)

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
        return peer.recv(self.limit)

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

    def calls(self, protocol: Pair) -> Mapping[str, Call]:
        return {
            "recv": lambda timeout: protocol.recv(timeout),
            "send": lambda timeout: protocol.send(b"", timeout),
        }

    def test_garbage_is_counted_and_logged_once_and_talk_goes_on(self) -> None:
        """A stranger is not let in while there is a peer: here it is the peer."""
        with nothing_left(), self.make() as protocol, Socket() as stranger, _Log() as log:
            stranger.dial(protocol.listen(self.make_address()).address)
            for number in range(3):
                stranger.send_msg(self.garbage[0], self.limit)
                stranger.send(b"%d" % number, self.limit)
            assert [protocol.recv(self.limit) for _ in range(3)] == [b"0", b"1", b"2"]
            assert protocol.counters.drops == {"garbage": 3}
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

    def make(self, options: OptionValues | None = None) -> Protocol:
        return Pub(options)

    def make_peer(self, options: OptionValues | None = None) -> Protocol:
        return Sub(options)

    def exchange(self, protocol: Any, peer: Any, content: bytes) -> bytes:
        peer.subscribe("topic.>", self.limit)
        protocol.publish("topic.of.it", content)
        topic, arrived = peer.recv(self.limit)
        assert topic == "topic.of.it", f"it arrived under the topic {topic}"
        return bytes(arrived)

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

    def make(self, options: OptionValues | None = None) -> Protocol:
        return Sub(options)

    def make_peer(self, options: OptionValues | None = None) -> Protocol:
        return Pub(options)

    def exchange(self, protocol: Any, peer: Any, content: bytes) -> bytes:
        return super().exchange(peer, protocol, content)

    def calls(self, protocol: Any) -> Mapping[str, Call]:
        return {
            "recv": lambda timeout: protocol.recv(timeout),
            "subscribe": lambda timeout: protocol.subscribe("topic", timeout),
            "unsubscribe": lambda timeout: protocol.unsubscribe("topic"),
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

    def calls(self, protocol: Respondent) -> Mapping[str, Call]:
        return {"recv": lambda timeout: protocol.recv(timeout)}
