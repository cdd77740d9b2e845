"""Checks that every protocol passes, for any roles and any wire format."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import gevent
from gevent.threadpool import ThreadPool

from ..core.connecting.events import PipeEvent
from ..core.socket import Socket
from ..errors import (
    BadOptionValue,
    BrokenPath,
    Closed,
    ForkedSocketError,
    MisplacedOption,
    NotSupported,
    Timeout,
    UnknownOption,
    WrongThread,
)
from ..options import describe
from ..protocol import ProtocolBase
from ..switch import Switch
from ..wire import CONTROL, SEND_TYPE_MASK, TO_ALL, TO_DEST, TO_ONE, Message, pack_id
from ._bench import attempt, finish, greenlets_started, nothing_left
from ._fakes import FakeStream, FakeTransport
from ._fork import in_forked_child
from ._protocolsetup import QUICK, Call, ProtocolSetup, outcome_of
from ._wait import wait_until

__all__ = ["ProtocolChecks", "Warnings"]

#: So often is each call made while the peer does not read.
_CALLS = 100
#: So many messages a stranger sends.
_STRANGE = 300


class ProtocolChecks(ProtocolSetup):
    """Checks of what any protocol must do. Subclass it, define the methods below, and let a test runner collect it.

    With pytest::

        class TestChat(ProtocolChecks):
            address = "tcp://127.0.0.1:0"

            def make(self, options=None):
                return Chat(options)

            make_peer = make

            def exchange(self, protocol, peer, content):
                protocol.say(content)
                peer.say(peer.hear(self.limit))
                return protocol.hear(self.limit)

            def exchange_by_hand(self, protocol, sock, content):
                protocol.say(content)
                return sock.recv(self.limit)

            def calls(self, protocol):
                return {
                    "hear": lambda timeout: protocol.hear(timeout),
                    "say": lambda timeout: protocol.say(b""),
                }

            waits = ("hear",)

    Each check is a method ``test_...``. It takes no argument, cleans up, and raises ``AssertionError`` with what went
    wrong. Override a check that cannot hold for a protocol, and say why.

    Attributes:
        address: the address to listen at, used by many checks. Override :meth:`make_address` if each needs its own.
        waits: the names of those :meth:`calls` that block while nobody is connected.
        lacks: methods of ``ProtocolBase`` that this protocol does not have.
        garbage: messages that no honest peer sends.
        limit: the longest that any one step may take, in seconds.
    """

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

    def test_a_plain_socket_that_speaks_its_bytes_is_a_peer(self) -> None:
        with nothing_left(), self.make(QUICK) as protocol, Socket() as sock:
            sock.dial(protocol.listen(self.make_address()).address)
            protocol.wait_pipes(1, self.limit)
            work = gevent.spawn(self.exchange_by_hand, protocol, sock, b"content")
            arrived = finish(work, self.limit, "the exchange with a plain Socket did not end")
            assert arrived == b"content", f"sent b'content', and {arrived[:50]!r} arrived"

    def test_it_talks_through_a_switch(self) -> None:
        with nothing_left(), self.make(QUICK) as protocol, self.make_peer(QUICK) as peer:
            with Socket() as back, Socket() as front, Switch(back, front):
                back.dial(protocol.listen(self.make_address()).address)
                protocol.wait_pipes(1, self.limit)
                peer.dial(front.listen(f"inproc://checks-{id(front)}").address)
                front.wait_pipes(1, self.limit)
                self.check_exchange(protocol, peer)

    # Timeouts and cancellation

    def test_a_wait_ends_with_its_timeout_and_spoils_nothing(self) -> None:
        with nothing_left(), self.make() as protocol, self.make_peer() as peer:
            for name in self.waits:
                for timeout in (0, 0.01):
                    outcome = finish(gevent.spawn(outcome_of, self.calls(protocol)[name], timeout), self.limit, name)
                    assert isinstance(outcome, Timeout), f"{name} for {timeout} s ended with {outcome!r}"
            peer.dial(protocol.listen(self.make_address()).address)
            self.wait_connected(protocol, peer)
            self.check_exchange(protocol, peer)

    def test_a_wait_can_be_killed_or_timed_out_from_outside_and_spoils_nothing(self) -> None:
        with nothing_left(), self.make() as protocol, self.make_peer() as peer:
            for name in self.waits:
                self.blocked(protocol, name).kill()
                outside = gevent.Timeout(0.01)
                outcome = finish(gevent.spawn(outcome_of, self.calls(protocol)[name], None, outside), self.limit, name)
                assert outcome is outside, f"{name} took a gevent.Timeout of the caller's, and ended with {outcome!r}"
            peer.dial(protocol.listen(self.make_address()).address)
            self.wait_connected(protocol, peer)
            self.check_exchange(protocol, peer)

    # Methods that it does not have, and garbage

    def test_what_it_lacks_is_an_error_that_says_so(self) -> None:
        with self.make() as protocol:
            lacking: Mapping[str, Call] = {
                "send": lambda timeout: protocol.send(b"", timeout),
                "recv": lambda timeout: protocol.recv(timeout),
            }
            for name in self.lacks:
                outcome = outcome_of(lacking[name], 0)
                assert isinstance(outcome, NotSupported), f"{name} ended with {outcome!r}"
                assert type(protocol).__name__ in str(outcome), f"the error does not name the protocol: {outcome}"

    def test_garbage_is_counted_and_logged_once_and_talk_goes_on(self) -> None:
        with self.connected() as (protocol, peer), Socket() as stranger, Warnings() as log:
            stranger.dial(next(iter(protocol.socket.listeners)).address)
            protocol.wait_pipes(2, self.limit)
            for _ in range(3):
                for message in self.garbage:
                    stranger.send_msg(message, self.limit)
            stranger.close()
            wait_until(lambda: len(protocol.pipes) == 1, self.limit)
            # A protocol may drop garbage when it arrives or when it is received: after an exchange both have happened.
            self.check_exchange(protocol, peer)
            assert protocol.counters.drops.get("garbage") == 3 * len(self.garbage)
            wait_until(lambda: bool(log.warnings), self.limit)
            assert len(log.warnings) == 1, f"logged {len(log.warnings)} times: {log.warnings}"

    def test_no_bytes_from_a_peer_do_harm(self) -> None:
        given: dict[str, Any] = {**QUICK, "socket.recv_queue_size": _STRANGE}
        log = Warnings("gmultisocket", logging.ERROR)
        with nothing_left(), log, greenlets_started() as started, self.make(given) as protocol:
            address = protocol.listen(self.make_address()).address
            with Socket(QUICK) as stranger:
                stranger.dial(address)
                for message in _random_messages(_STRANGE):
                    # It may close the stranger's pipe, which then comes back.
                    stranger.wait_pipes(1, self.limit)
                    protocol.wait_pipes(1, self.limit)
                    if message.flags & SEND_TYPE_MASK == TO_DEST:
                        message = message.replace(destination=pack_id(next(iter(stranger.pipes))))
                    try:
                        stranger.send_msg(message, self.limit)
                    except BrokenPath:
                        continue
            wait_until(lambda: not protocol.pipes, self.limit, "the stranger's pipe to close")
            self._take_what_came(protocol)
            with self.make_peer(QUICK) as peer:
                peer.dial(address)
                self.wait_connected(protocol, peer)
                self.check_exchange(protocol, peer)
        assert not log.warnings, f"logged as errors: {log.warnings}"
        for outcome in [attempt(greenlet.get) for greenlet in started]:
            assert not isinstance(outcome, Exception), f"a greenlet ended with {outcome!r}"

    def _take_what_came(self, protocol: ProtocolBase) -> None:
        """Call what waits until there is nothing more to receive."""
        for name in self.waits:
            while not isinstance(taken := outcome_of(self.calls(protocol)[name], 0), Timeout):
                assert not isinstance(taken, BaseException), f"{name} ended with {taken!r}"
                if hasattr(taken, "close"):
                    taken.close()

    # Peers that do not read

    def test_a_peer_that_does_not_read_holds_up_nothing(self) -> None:
        stream = FakeStream()
        stream.block()
        given: dict[str, Any] = {"socket.send_queue_size": 4, "socket.send_stop_timeout": 0.01}
        with nothing_left(), FakeTransport([stream]) as fake, self.make(given) as protocol:
            protocol.dial(fake.address)
            for name, call in self.calls(protocol).items():
                for _ in range(_CALLS):
                    finish(gevent.spawn(outcome_of, call, 0), self.limit, f"{name} with a timeout of 0 did not return")
            unsent = protocol._unsent()
            assert unsent < _CALLS, f"{unsent} messages wait for a peer that reads nothing: where does that end?"
            finish(gevent.spawn(protocol.close), self.limit, "close() waits for a peer that reads nothing")

    # Options

    def test_options_are_those_of_its_socket(self) -> None:
        # Go's spelling of a name, and a wrong name: type checkers know neither.
        given: dict[str, Any] = {"socket.send_queue_size": 3, "Socket.RecvQueueSize": 5}
        wrong: dict[str, Any] = {"socket.no_such": 1}
        with self.make(given) as protocol:
            assert protocol.options.get("socket.send_queue_size") == 3
            assert protocol.socket.get_option("socket.recv_queue_size") == 5
        outcome = self._made(wrong)
        assert isinstance(outcome, UnknownOption), f"an unknown option ended with {outcome!r}"

    def test_options_that_it_depends_on_cannot_be_changed(self) -> None:
        with self.make() as protocol:
            fixed = protocol.fixed
        for name, value in fixed.items():
            assert isinstance(value, (bool, str, int))
            other = {bool: not value, int: 7, str: "drop_newest" if value == "block" else "wait"}[type(value)]
            refused: dict[str, Any] = {name: other}
            made = self._made(refused)
            assert isinstance(made, BadOptionValue), f"{name}={other} ended with {made!r}"
            given: dict[str, Any] = {name: value}
            with self.make(given) as protocol:
                changed = outcome_of(lambda t, p=protocol, n=name, o=other: p.options.set(n, o), None)  # type: ignore[misc]
                assert isinstance(changed, BadOptionValue) and protocol.options.get(name) == value

    def test_options_that_it_does_not_read_are_refused_and_its_own_are_refused_elsewhere(self) -> None:
        with self.make() as protocol:
            families = protocol.families
        others = {option: option.default for option in describe() if option.name.startswith("protocol.")}
        own = {option: others.pop(option) for option in [*others] if option.name.startswith(_starts(families))}
        outcome = self._made(dict([others.popitem()]))
        assert isinstance(outcome, MisplacedOption), f"another protocol's option ended with {outcome!r}"
        for option, default in own.items():
            with self.make({option: default}) as protocol:
                assert protocol.options.get(option) == default
            outcome = outcome_of(lambda timeout, own={option: default}: Socket(own), None)  # type: ignore[misc]
            assert isinstance(outcome, MisplacedOption), f"{option} of a Socket ended with {outcome!r}"

    def _made(self, options: dict[Any, Any]) -> object:
        """Return what comes of an attempt to make an object with some options. It is closed."""
        outcome = outcome_of(lambda timeout: self.make(options), None)
        if isinstance(outcome, ProtocolBase):
            outcome.close()
        return outcome

    # Numbers and names

    def test_its_numbers_can_be_read_in_any_thread(self) -> None:
        with self.connected() as (protocol, peer):
            self.check_exchange(protocol, peer)
            pool = ThreadPool(1)
            try:
                numbers = pool.apply(protocol.stats)
            finally:
                pool.kill()
            own = {name: number for name, number in numbers.items() if name not in peer.socket.stats()}
            assert numbers["kind"] == type(protocol).__name__
            assert all(type(number) is int for number in own.values()), f"not all of these are numbers: {own}"
            assert numbers["pipes"] == len(protocol.pipes), "its own stats hide a number of the socket"

    def test_its_attributes_hide_none_of_the_librarys(self) -> None:
        with self.make() as protocol:
            hidden = {name for name in vars(protocol) if hasattr(ProtocolBase, name)} - {"_outbox"}
            assert not hidden, f"{type(protocol).__name__} sets attributes of ProtocolBase: {', '.join(sorted(hidden))}"

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
            outcome = finish(gevent.spawn(outcome_of, call, None), self.limit, f"{name} did not return")
            assert isinstance(outcome, Closed), f"{name} ended with {outcome!r}"

    def test_close_ends_every_wait(self) -> None:
        for name in self.waits:
            with nothing_left(), self.make() as protocol:
                waiting = [self.blocked(protocol, name) for _ in range(3)]
                try:
                    protocol.close()
                    for greenlet in waiting:
                        outcome = finish(greenlet, self.limit, f"{name} still waits after close()")
                        assert isinstance(outcome, Closed), f"{name} ended with {outcome!r}"
                finally:
                    gevent.killall(waiting)

    def test_a_pipe_callback_may_close_it(self) -> None:
        with nothing_left(), self.make() as protocol, self.make_peer() as peer:
            protocol.on_pipe(lambda event: protocol.close(0))
            peer.dial(protocol.listen(self.make_address()).address)
            wait_until(lambda: protocol.closed, self.limit, "close() in a callback did not return")

    def test_nothing_runs_before_it_is_connected(self) -> None:
        with nothing_left():
            protocol = self.make()
        protocol.close()

    # Threads and processes

    def test_from_another_thread_every_call_says_so(self) -> None:
        with self.make() as protocol:
            calls = {
                **self.calls(protocol),
                "dial": lambda timeout: protocol.dial(self.make_address()),
                "listen": lambda timeout: protocol.listen(self.make_address()),
                "close": lambda timeout: protocol.close(),
            }
            pool = ThreadPool(1)
            try:
                for name, call in calls.items():
                    outcome = pool.apply(outcome_of, (call, 0))
                    assert isinstance(outcome, WrongThread), f"{name} ended with {outcome!r}"
            finally:
                pool.kill()
            assert not protocol.closed

    def test_a_forked_child_can_neither_use_nor_disturb_it(self) -> None:
        with self.connected() as (protocol, peer):

            def child(report: int) -> None:
                for name, call in self.calls(protocol).items():
                    outcome = outcome_of(call, 0)
                    assert isinstance(outcome, ForkedSocketError), f"{name} ended with {outcome!r}"
                assert protocol.close() == 0

            in_forked_child(child, self.limit)
            self.check_exchange(protocol, peer)


def _starts(families: tuple[str, ...]) -> tuple[str, ...]:
    """Return how the names of the options of some families begin."""
    return tuple(f"{family}." for family in families)


def _random_messages(count: int) -> Iterator[Message]:
    """Yield messages that look like those of protocols: many begin with a small byte, which is often a kind."""
    rng = random.Random(count)
    for _ in range(count):
        flags = rng.choice((TO_ONE, TO_ALL, TO_DEST)) | rng.choice((0, CONTROL, CONTROL, 0x40, 0xC0))
        start = rng.choice((b"", bytes([rng.randrange(12)])))
        yield Message(flags=flags, content=start + rng.randbytes(rng.choice((0, 1, 2, 3, 4, 8, 12, 40))))


class Warnings(logging.Handler):
    """Collects what is logged in the body of a ``with`` statement.

    Args:
        name: of the logger.
        level: what is below it is not collected.

    Attributes:
        warnings: the texts.
    """

    def __init__(self, name: str = "gmultisocket.protocol", level: int = logging.WARNING) -> None:
        super().__init__(level)
        self.warnings: list[str] = []
        self._logger = logging.getLogger(name)

    def __enter__(self) -> Warnings:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())
