"""Checks that every engine of a Backplane passes, with its real server.

:class:`EngineChecks` is a test class to subclass. :class:`ServerProcess` is a server that the checks start, stop, kill
and pause.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gevent
from gevent.threadpool import ThreadPool

from ..backplane import Backplane, PlaneEvent, Subscription
from ..errors import BadTopic, Closed, ConnectionFailed, NotSupported, PublicationTooLong, WrongThread
from ..protocol import Sub
from ._bench import nothing_left
from ._fork import in_forked_child
from ._wait import wait_until

if TYPE_CHECKING:
    from typing import Self

__all__ = ["EngineChecks", "ServerProcess", "check_sum"]

#: So that nothing in a check has to wait long.
_QUICK: dict[str, Any] = {"plane.linger": 0.05, "plane.hold": 0.1}


class ServerProcess:
    """A server in a process of its own.

    Args:
        command: starts it, in the foreground.
        is_ready: returns whether it serves. Must not block long.
        limit: seconds that it may take to start or to end.
        log: a file for what it prints since its last start; None for nowhere.
    """

    def __init__(
        self, command: Sequence[str], is_ready: Callable[[], bool], limit: float = 10.0, log: Path | None = None
    ) -> None:
        self._command = [*command]
        self._is_ready = is_ready
        self._limit = limit
        self._log = log
        self._process: Any = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process, 0 if there is none."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, and block until it serves."""
        # The functions of the standard library, patched or not: nothing here needs the loop.
        with open(self._log or os.devnull, "wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(self._starting, self._limit, f"{self._command[0]} serves")
        except BaseException:
            self.kill()
            raise

    def _starting(self) -> bool:
        status = self._process.poll()
        assert status is None, f"{self._command} ended with status {status}: {self.log()[-2000:]}"
        return self._is_ready()

    def log(self) -> str:
        """Return what it has printed since its last start."""
        return "" if self._log is None else self._log.read_text(errors="replace")

    def stop(self) -> None:
        """End it as an administrator does. Blocks until it has ended. May be repeated."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, and block until it has ended."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop its process, as if its machine stood still. Blocks until it does."""
        os.kill(self.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what="the server stands still")

    def resume(self) -> None:
        """Let a stopped process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: process.poll() is not None, self._limit, "the server has ended")


def check_sum(plane: Backplane) -> None:
    """Check that no publication of a plane is missing in its counters."""
    counters = plane.counters
    known = counters.confirmed + sum(counters.dropped.values()) + counters.unconfirmed + counters.buffered
    assert counters.sent == known, f"{counters.sent} were sent, and {known} are accounted for: {counters}"


def drain(subscription: Subscription) -> list[tuple[str, bytes]]:
    """Return what waits at a subscription."""
    return [subscription.recv(0) for _ in range(subscription.waiting)]


def wait_waiting(subscription: Subscription, number: int, limit: float) -> None:
    """Wait until so many publications wait at a subscription."""
    wait_until(lambda: subscription.waiting >= number, limit, f"{number} publications wait at {subscription}")


class _Bench:
    """What all checks of engines use. The attributes are described at :class:`EngineChecks`."""

    server: ServerProcess | None = None
    url: str = ""
    options: ClassVar[dict[str, Any]] = {}
    limit: ClassVar[float] = 15.0
    patterns: ClassVar[int] = 2000

    def make(self, options: dict[str, Any] | None = None) -> Backplane:
        """Return a new plane."""
        return Backplane(self.url, {**_QUICK, **self.options, **(options or {})})

    @contextmanager
    def planes(self, count: int, options: dict[str, Any] | None = None) -> Iterator[list[Backplane]]:
        """Make planes, and wait until each is connected. Afterwards check their sums, and that nothing is left."""
        with nothing_left(self.limit):
            with ExitStack() as stack:
                made = [stack.enter_context(self.make(options)) for _ in range(count)]
                for plane in made:
                    plane.connect(self.limit)
                yield made
            for plane in made:
                check_sum(plane)

    def subscribe(self, plane: Backplane, pattern: str, **arguments: Any) -> Subscription:
        """Subscribe, and wait until the server knows."""
        return plane.subscribe(pattern, self.limit, **arguments)

    def wait_confirmed(self, plane: Backplane) -> None:
        """Wait until the server has everything."""
        plane.flush(self.limit)
        check_sum(plane)


class _PublicationChecks(_Bench):
    """Checks of publications, patterns, Pubs and present values."""

    # Publications

    def test_a_publication_reaches_every_plane_that_wants_it_once(self) -> None:
        with self.planes(3) as (one, other, third):
            mine, near, far = (self.subscribe(plane, "orders.>") for plane in (one, one, other))
            elsewhere = self.subscribe(third, "invoices.>")
            one.publish("orders.eu", b"1")
            one.publish("invoices.eu", b"2")
            assert far.recv(self.limit) == ("orders.eu", b"1")
            assert drain(mine) == drain(near) == [("orders.eu", b"1")]
            assert elsewhere.recv(self.limit) == ("invoices.eu", b"2")
            self.wait_confirmed(one)
            assert not far.waiting
            assert other.counters.received == third.counters.received == 1, "a plane got what it does not want"
            assert one.counters.confirmed == 2

    def test_publications_come_in_order_and_all_are_confirmed(self) -> None:
        number = 5000
        with self.planes(2) as (one, other):
            subscription = self.subscribe(other, "n.>", queue_size=number)
            for each in range(number):
                one.publish(f"n.{each % 7}", b"%d" % each)
            assert [subscription.recv(self.limit)[1] for _ in range(number)] == [b"%d" % each for each in range(number)]
            self.wait_confirmed(one)
            assert one.counters.confirmed == number
            assert other.counters.duplicates == 0

    def test_patterns_that_overlap_get_a_publication_once(self) -> None:
        with self.planes(2) as (one, other):
            wide, one_token, literal, crossed = (
                self.subscribe(other, pattern) for pattern in ("a.>", "a.*", "a.b", "*.b")
            )
            for _ in range(20):
                one.publish("a.b", b"")
            for subscription in (wide, one_token, literal, crossed):
                wait_waiting(subscription, 20, self.limit)
            one.publish("a.b", b"last")
            for subscription in (wide, one_token, literal, crossed):
                wait_waiting(subscription, 21, self.limit)
                assert drain(subscription) == [("a.b", b"")] * 20 + [("a.b", b"last")]

    def test_topics_are_what_they_were_whatever_is_in_them(self) -> None:
        odd = ["a b", "a\tb", "a\r\nPUB b 1\r\nx", "\r\n", "100%", "%41", "a?c", "[ab]", "\\", "/a/b", "$SYS.a", ":1",
               "é.ü", "\u2028", "\x7f", "\0", "'", '"a"', "{x}", "a" * 1000, ".".join("x" * 60)]  # fmt: skip
        with self.planes(2) as (one, other):
            everything = self.subscribe(other, ">", queue_size=10_000)
            alone = [self.subscribe(other, topic) for topic in odd]
            for topic in odd:
                one.publish(topic, topic.encode())
            got = [everything.recv(self.limit) for _ in odd]
            assert got == [(topic, topic.encode()) for topic in odd]
            for topic, subscription in zip(odd, alone, strict=True):
                assert drain(subscription) == [(topic, topic.encode())], f"at the subscription of {topic!r}"

    def test_what_is_no_topic_is_refused_and_nothing_is_sent(self) -> None:
        with self.planes(1) as (plane,):
            for topic in ("", "a..b", "a.*", "a.>", "\udc80", "x" * 70_000, "$plane.all"):
                try:
                    plane.publish(topic, b"")
                except BadTopic:
                    continue
                raise AssertionError(f"{topic[:40]!r} was published")
            assert plane.counters.sent == 0

    def test_contents_of_any_size_arrive_and_one_that_is_too_long_is_refused(self) -> None:
        with self.planes(2) as (one, other):
            subscription = self.subscribe(other, "t")
            for size in (0, 1, 1000, 100_000):
                content = os.urandom(size)
                one.publish("t", content)
                assert subscription.recv(self.limit) == ("t", content)
            limit = one._use().engine.max_content
            if limit:
                one.publish("t", bytes(limit))
                assert subscription.recv(self.limit) == ("t", bytes(limit))
                try:
                    one.publish("t", bytes(limit + 1))
                except PublicationTooLong as error:
                    assert (error.size, error.limit) == (limit + 1, limit)
                else:
                    raise AssertionError("a content over the limit was published")
            one.publish("t", b"last")
            assert subscription.recv(self.limit) == ("t", b"last")

    # Patterns

    def test_many_patterns_are_subscribed_and_left(self) -> None:
        with self.planes(2) as (one, other):
            subscriptions = [other.subscribe(f"t.{number}.x") for number in range(self.patterns)]
            other.connect(self.limit)
            for number in range(0, self.patterns, 97):
                one.publish(f"t.{number}.x", b"%d" % number)
                assert subscriptions[number].recv(self.limit)[1] == b"%d" % number
            for subscription in subscriptions[1:]:
                subscription.close()
            wait_until(lambda: other.patterns == ("t.0.x",), self.limit)
            one.publish("t.1.x", b"")
            one.publish("t.0.x", b"last")
            assert subscriptions[0].recv(self.limit)[1] == b"last"
            before = other.counters.received
            one.publish("t.1.x", b"")
            one.publish("t.0.x", b"")
            assert subscriptions[0].recv(self.limit)[1] == b""
            assert other.counters.received == before + 1, "what nobody wants any more still comes"

    def test_nothing_is_lost_or_doubled_while_patterns_change(self) -> None:
        number = 3000
        with self.planes(2) as (one, other):
            kept = self.subscribe(other, "t.a", queue_size=number)
            publisher = gevent.spawn(self._publish_slowly, one, number)
            while not publisher.ready():
                wide = other.subscribe("t.*")
                gevent.sleep(0.01)
                wider = other.subscribe(">")
                wide.close()
                gevent.sleep(0.07)
                wider.close()
                gevent.sleep(0.07)
            got = [kept.recv(self.limit)[1] for _ in range(number)]
            assert got == [b"%d" % each for each in range(number)]
            assert not kept.waiting

    @staticmethod
    def _publish_slowly(plane: Backplane, number: int) -> None:
        for each in range(number):
            plane.publish("t.a", b"%d" % each)
            if each % 5 == 0:
                gevent.sleep(0.001)

    # Pubs

    def test_subscribers_of_pubs_get_what_any_plane_publishes_once(self) -> None:
        with self.planes(3) as (one, other, script):
            pubs = [plane.pub() for plane in (one, other)]
            subs = []
            with ExitStack() as stack:
                for pub in pubs:
                    address = pub.listen("tcp://127.0.0.1:0").address
                    for _ in range(2):
                        sub = stack.enter_context(Sub())
                        sub.dial(address)
                        sub.subscribe("news.>", self.limit)
                        subs.append(sub)
                script.publish("news.a", b"1")
                assert pubs[0].publish("news.b", b"2") == 2
                for sub in subs:
                    got = [sub.recv(self.limit) for _ in range(2)]
                    assert sorted(got) == [("news.a", b"1"), ("news.b", b"2")]
                other.publish("news.c", b"3")
                for sub in subs:
                    assert sub.recv(self.limit) == ("news.c", b"3")

    def test_presence_counts_the_subscribers_of_all_planes(self) -> None:
        with self.planes(3) as (one, other, script), ExitStack() as stack:
            for number, plane in enumerate((one, other), 1):
                address = plane.pub(presence_names=lambda sub: str(sub.pipe.id)).listen("tcp://127.0.0.1:0").address
                for _ in range(number):
                    sub = stack.enter_context(Sub())
                    sub.dial(address)
                    sub.subscribe("room.1", self.limit)
            for plane in (one, other, script):
                presence = plane.presence("room.*", 2.0)
                assert presence.subscribers == 3
                assert presence.names is not None and len(presence.names) == 3
                assert presence.complete
            assert script.presence("hall", 0.5).subscribers == 0

    def test_a_plane_disconnects_and_revokes_at_all_planes(self) -> None:
        with self.planes(2) as (one, other), Sub() as sub:
            pub = one.pub()
            # Such a peer has an identity: its process.
            sub.dial(pub.listen(f"ipc://@gmultisocket-checks-{os.getpid()}").address)
            sub.subscribe("a", self.limit)
            refused: list[str] = []
            sub.on_refused(lambda refusal: refused.append(refusal.reason))
            pipe = next(iter(pub.pipes.values()))
            wait_until(lambda: one.healthy, self.limit)
            other.revoke({"pid": 1}, "a")
            other.revoke({"pid": os.getpid()}, "a", "no more")
            wait_until(lambda: refused, self.limit)
            assert refused == ["no more"]
            other.disconnect({"pid": os.getpid(), "uid": os.getuid()})
            wait_until(lambda: pipe.closed, self.limit)

    # Present values

    def test_a_retained_publication_reaches_every_later_subscription_of_any_plane(self) -> None:
        with self.planes(3) as (one, other, script):
            if script._use().engine.no_values:
                try:
                    script.publish("state.a", b"", retain=True)
                except NotSupported:
                    return
                raise AssertionError("the engine keeps no values, and took one")
            for content in (b"old", b"new"):
                script.publish("state.a", content, retain=True)
            self.wait_confirmed(script)
            first = self.subscribe(one, "state.>")
            assert drain(first) == [("state.a", b"new")]
            second = self.subscribe(one, "state.a")
            assert drain(second) == [("state.a", b"new")]
            assert not first.waiting, "a value came twice"
            with ExitStack() as stack:
                address = other.pub().listen("tcp://127.0.0.1:0").address
                subs = [stack.enter_context(Sub()) for _ in range(2)]
                for sub in subs:
                    sub.dial(address)
                    sub.subscribe("state.*", self.limit)
                    assert sub.recv(self.limit) == ("state.a", b"new")
                one.publish("state.a", b"newer", retain=True)
                for sub in subs:
                    assert sub.recv(self.limit) == ("state.a", b"newer")
                for subscription in (first, second):
                    assert subscription.recv(self.limit) == ("state.a", b"newer")
                    assert not subscription.waiting, "a value came twice"
                late = stack.enter_context(Sub())
                late.dial(address)
                late.subscribe("state.a", self.limit)
                assert late.recv(self.limit) == ("state.a", b"newer")
            own = self.subscribe(script, "state.a")
            assert drain(own) == [("state.a", b"newer")]

    def test_a_value_is_forgotten_with_the_interest_in_it(self) -> None:
        with self.planes(2) as (one, other):
            if one._use().engine.no_values:
                return
            one.publish("state.b", b"1", retain=True)
            self.wait_confirmed(one)
            subscription = self.subscribe(other, "state.b")
            assert drain(subscription) == [("state.b", b"1")]
            subscription.close()
            wait_until(lambda: not other.patterns, self.limit)
            one.publish("state.b", b"2", retain=True)
            self.wait_confirmed(one)
            assert drain(self.subscribe(other, "state.b")) == [("state.b", b"2")]

    def test_a_value_that_is_unretained_reaches_nobody_any_more(self) -> None:
        with self.planes(2) as (one, other), Sub() as early, Sub() as late:
            if one._use().engine.no_values:
                try:
                    one.unretain("gone.c")
                except NotSupported:
                    return
                raise AssertionError("the engine keeps no values, and forgot one")
            for topic in ("gone.c", "gone.d"):
                one.publish(topic, topic.encode(), retain=True)
            self.wait_confirmed(one)
            pub = other.pub()
            address = pub.listen("tcp://127.0.0.1:0").address
            early.dial(address)
            early.subscribe("gone.>", self.limit)
            assert sorted(early.recv(self.limit)[0] for _ in range(2)) == ["gone.c", "gone.d"]
            assert pub.unretain("gone.c"), "the value is known here"
            self.wait_confirmed(other)
            # The engine's word has come back when this has.
            other.publish("gone.end", b"", retain=True)
            assert early.recv(self.limit) == ("gone.end", b"")
            late.dial(address)
            late.subscribe("gone.>", self.limit)
            assert sorted(late.recv(self.limit)[0] for _ in range(2)) == ["gone.d", "gone.end"]
            assert drain(self.subscribe(one, "gone.c")) == []
            for topic in ("gone.d", "gone.end"):
                one.unretain(topic)
            one.unretain("gone.never")
            self.wait_confirmed(one)
            assert one.counters.confirmed == one.counters.sent == 5

    def test_a_value_never_comes_after_a_newer_one_of_its_topic(self) -> None:
        number = 300
        with self.planes(2, {"plane.linger": 0.0}) as (one, other):
            if one._use().engine.no_values:
                return
            publisher = gevent.spawn(self._retain_slowly, one, number)
            rounds = 0
            while not publisher.ready():
                subscription = self.subscribe(other, ("v.*", "v.a", "*.a", ">")[rounds % 4])
                gevent.sleep(0.002)
                got = [int(content) for topic, content in drain(subscription) if topic == "v.a"]
                assert got == sorted(set(got)), f"the values came as {got}"
                subscription.close()
                rounds += 1
            assert drain(self.subscribe(other, "v.a")) == [("v.a", b"%d" % (number - 1))]
            one.unretain("v.a")

    @staticmethod
    def _retain_slowly(plane: Backplane, number: int) -> None:
        for each in range(number):
            plane.publish("v.a", b"%d" % each, retain=True)
            plane.publish("v.b", b"plain")
            gevent.sleep(0.001)
        plane.flush()

    def test_many_values_come_to_patterns_that_match_them_and_to_no_others(self) -> None:
        number = 1500
        with self.planes(2) as (one, other):
            if one._use().engine.no_values:
                return
            for each in range(number):
                one.publish(f"many.{each % 3}.{each}.x", b"%d" % each, retain=True)
            one.publish("many", b"short", retain=True)
            self.wait_confirmed(one)
            everything = self.subscribe(other, "many.>", queue_size=number)
            third = self.subscribe(other, "many.1.*.x", queue_size=number)
            short = self.subscribe(other, "many.*")
            literal = self.subscribe(other, "many")
            assert sorted(int(content) for _, content in drain(everything)) == [*range(number)]
            assert sorted(int(content) for _, content in drain(third)) == [*range(1, number, 3)]
            assert (drain(short), drain(literal)) == ([], [("many", b"short")])
            for each in range(number):
                one.unretain(f"many.{each % 3}.{each}.x")
            one.unretain("many")
            self.wait_confirmed(one)
            assert drain(self.subscribe(one, "many.>")) == drain(everything) == []


class _LifeChecks(_Bench):
    """Checks of planes that begin and end, and of servers that die."""

    # Life

    def test_a_plane_that_closes_at_once_has_sent_everything(self) -> None:
        with self.planes(1) as (other,):
            subscription = self.subscribe(other, "t")
            with self.make() as plane:
                plane.publish("t", b"1")
            assert subscription.recv(self.limit) == ("t", b"1")
            assert plane.counters.confirmed == plane.counters.sent == 1
            for call in (lambda: plane.publish("t", b""), lambda: plane.subscribe("t"), plane.pub, plane.connect):
                try:
                    call()
                except Closed:
                    continue
                raise AssertionError("a closed plane can be used")

    def test_other_threads_publish_by_a_handle_only(self) -> None:
        with self.planes(2) as (one, other):
            subscription = self.subscribe(other, "t")
            pool = ThreadPool(1)
            try:
                with one.threadsafe() as handle:
                    pool.spawn(handle.publish, "t", b"1").get()
                    assert subscription.recv(self.limit) == ("t", b"1")
                try:
                    pool.spawn(one.publish, "t", b"2").get()
                except WrongThread:
                    pass
                else:
                    raise AssertionError("another thread could publish")
            finally:
                pool.kill()

    def test_a_forked_child_has_a_connection_of_its_own(self) -> None:
        with self.planes(2) as (one, other):
            subscription = self.subscribe(other, "t")

            def child(report: int) -> None:
                # The planes of the parent: one is used, the other is not. Its loop is a new one.
                gevent.get_hub().destroy(destroy_loop=True)
                with one:
                    one.publish("t", b"of the child")

            if self.server is not None:
                in_forked_child(child, self.limit)
                assert subscription.recv(self.limit) == ("t", b"of the child")
            one.publish("t", b"of the parent")
            assert subscription.recv(self.limit) == ("t", b"of the parent")

    # The server dies

    def test_while_the_server_is_away_nobody_gets_a_value_and_all_get_it_when_it_is_back(self) -> None:
        if self.server is None:
            return
        with self.planes(2, {"plane.acknowledge_timeout": 0.1}) as (one, other), Sub() as sub:
            if one._use().engine.no_values:
                return
            early = self.subscribe(other, "w")
            one.publish("w", b"old", retain=True)
            assert early.recv(self.limit) == ("w", b"old")
            sub.dial(other.pub().listen("tcp://127.0.0.1:0").address)
            self.server.kill()
            wait_until(lambda: not one.healthy and not other.healthy, self.limit)
            sub.subscribe("w", self.limit)
            late = other.subscribe("w")
            assert not late.waiting, "an old value came"
            one.publish("w", b"new", retain=True)
            other.publish("w", b"plain")
            assert sub.recv(self.limit) == ("w", b"plain"), "an old value came"
            assert late.recv(self.limit) == ("w", b"plain")
            self.server.start()
            for plane in (one, other):
                plane.connect(self.limit)
            self.wait_confirmed(one)
            got = [sub.recv(self.limit)[1]]
            while got[-1] != b"new":
                got.append(sub.recv(self.limit)[1])
            assert got in ([b"new"], [b"old", b"new"]), "what a server keeps over its end comes first"
            assert drain(self.subscribe(one, "w"))[-1] == ("w", b"new")
            one.unretain("w")

    def test_a_server_that_is_killed_and_comes_back_is_one_down_one_gap_and_one_up(self) -> None:
        if self.server is None:
            return
        # The subscriber has to be back before the hold ends: what is confirmed before that reaches nobody.
        with self.planes(2, {"plane.hold": 2.5}) as (one, other):
            subscription = self.subscribe(other, "t", queue_size=10_000)
            events: list[PlaneEvent] = []
            other.on_event(events.append)
            publisher = gevent.spawn(self._publish_numbers, one, 1.5)
            gevent.sleep(0.3)
            self.server.kill()
            wait_until(lambda: not other.healthy and not one.healthy, self.limit)
            gevent.sleep(0.3)
            self.server.start()
            other.connect(self.limit)
            one.connect(self.limit)
            sent = publisher.get(timeout=self.limit)
            self.wait_confirmed(one)
            wait_until(lambda: len(events) >= 3, self.limit)
            one.publish("t", b"last")
            got = [subscription.recv(self.limit)[1]]
            while got[-1] != b"last":
                got.append(subscription.recv(self.limit)[1])
            numbers = [int(each) for each in got[:-1]]
            assert numbers == sorted(set(numbers)), "duplicates, or the wrong order"
            lost = set(range(sent)) - set(numbers)
            assert len(lost) <= one.counters.unconfirmed, f"{len(lost)} are missing: {one.counters}"
            assert [event.kind for event in events] == ["down", "gap", "up"]
            assert other.counters.gaps == 1
            check_sum(one)

    @staticmethod
    def _publish_numbers(plane: Backplane, seconds: float) -> int:
        number = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            plane.publish("t", b"%d" % number)
            number += 1
            gevent.sleep(0.001)
        return number

    def test_a_server_that_stands_still_is_noticed_and_nobody_waits_for_it(self) -> None:
        if self.server is None:
            return
        with self.planes(2) as (one, other):
            subscription = self.subscribe(other, "t", queue_size=10_000)
            here = one.subscribe("t", queue_size=10_000)
            pauses: list[float] = []
            ticker = gevent.spawn(_tick, pauses)
            self.server.pause()
            try:
                publisher = gevent.spawn(self._publish_numbers, one, 1.0)
                wait_until(lambda: all(repr(plane).endswith("down>") for plane in (one, other)), self.limit)
                sent = publisher.get(timeout=self.limit)
                assert here.waiting == sent, "a local subscriber has to wait for the server"
            finally:
                self.server.resume()
            for plane in (one, other):
                plane.connect(self.limit)
            self.wait_confirmed(one)
            one.publish("t", b"last")
            got = [subscription.recv(self.limit)[1]]
            while got[-1] != b"last":
                got.append(subscription.recv(self.limit)[1])
            assert len(got) == len(set(got)), "duplicates"
            assert sent - (len(got) - 1) <= one.counters.unconfirmed
            ticker.kill()
            assert pauses, "the ticking greenlet never ran"

    def test_what_is_published_before_there_is_a_server_waits_for_it(self) -> None:
        if self.server is None:
            return
        self.server.kill()
        try:
            with self.make() as one, self.make() as other:
                subscription = other.subscribe("t")
                one.publish("t", b"early")
                try:
                    one.connect(0.3)
                except ConnectionFailed as error:
                    assert str(error)
                else:
                    raise AssertionError("it is connected to nothing")
                self.server.start()
                other.connect(self.limit)
                one.connect(self.limit)
                self.wait_confirmed(one)
                one.publish("t", b"late")
                while subscription.recv(self.limit) != ("t", b"late"):
                    pass
        finally:
            if not self.server.pid:
                self.server.start()

    def test_while_the_server_is_away_the_buffer_is_bounded_and_every_drop_is_counted(self) -> None:
        if self.server is None:
            return
        with self.planes(2, {"plane.buffer_messages": 10}) as (one, other):
            subscription = self.subscribe(other, "t")
            self.server.kill()
            wait_until(lambda: not one.healthy, self.limit)
            for number in range(30):
                one.publish("t", b"%d" % number)
            assert one.counters.buffered == 10
            assert dict(one.counters.dropped) == {"overflow": 20}
            self.server.start()
            other.connect(self.limit)
            one.connect(self.limit)
            self.wait_confirmed(one)
            if subscription.waiting:
                assert drain(subscription) == [("t", b"%d" % number) for number in range(20, 30)]


class EngineChecks(_PublicationChecks, _LifeChecks):
    """Checks of what any engine must do. Subclass it, and let a test runner collect it.

    Each check is a method ``test_...``. It takes no argument, cleans up, and raises ``AssertionError`` with what went
    wrong. Each plane of a check stands for a process.

    Attributes:
        server: the server, which runs when a check begins, and which every check leaves running. None for an engine
            without one: then the checks in which it dies are passed over.
        url: of the engine.
        options: for every plane.
        limit: the longest that any one step may take, in seconds.
        patterns: how many patterns a plane has in the check of many.
    """


def _tick(pauses: list[float]) -> None:
    """Record the pauses of the loop (a greenlet)."""
    while True:
        before = time.monotonic()
        gevent.sleep(0.01)
        pauses.append(time.monotonic() - before)
