"""Checks that every engine of a Backplane passes, with its real server.

:class:`EngineChecks` is a test class to subclass. :class:`ServerProcess` is a server that the checks start, stop, kill
and pause.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Any

import gevent
from gevent.threadpool import ThreadPool

from ..backplane import Backplane, PlaneEvent
from ..errors import BadTopic, Closed, ConnectionFailed, PublicationTooLong, WrongThread
from ..protocol import Sub
from ._enginebench import EngineBench, ServerProcess, check_sum, drain, wait_waiting
from ._enginehistory import HistoryChecks
from ._enginevalues import ValueChecks
from ._fork import in_forked_child
from ._wait import wait_until

__all__ = ["EngineChecks", "ServerProcess", "check_sum"]


class _PublicationChecks(EngineBench):
    """Checks of publications, patterns and Pubs."""

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

    def test_a_plane_disconnects_websocket_peers_of_all_planes_with_a_code(self) -> None:
        with self.planes(2) as (one, other), Sub() as sub, Sub() as ann:
            users = iter(("bob", "ann"))
            options: Any = {"transport.ws.listener.authorize": lambda request: {"user": next(users, "later")}}
            pub = one.pub()
            address = pub.listen("ws://127.0.0.1:0/", options).address
            reasons: list[str] = []
            ann.on_pipe(lambda event: reasons.append(event.reason) if event.kind == "remove" else None)
            for each in (sub, ann):
                each.dial(address)
                each.subscribe("a", self.limit)
            wait_until(lambda: one.healthy, self.limit)
            for code in (1000, 3999, 5000, "4401", True):
                try:
                    other.disconnect({"user": "ann"}, code=code)  # type: ignore[arg-type]
                except ValueError:
                    continue
                raise AssertionError(f"{code!r} was taken for a code")
            other.disconnect({"user": "ann"}, "log in again", code=4401)
            wait_until(lambda: reasons, self.limit)
            assert "4401" in reasons[0] and "log in again" in reasons[0], reasons
            assert [pipe.identity["user"] for pipe in pub.pipes.values()][0] == "bob"


class _LifeChecks(EngineBench):
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


class EngineChecks(_PublicationChecks, ValueChecks, HistoryChecks, _LifeChecks):
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
        history: the patterns whose history the server keeps: ``("h.>",)``. Empty for an engine that keeps none.
        exact_gaps: whether the history knows of each topic what it has lost. If not, it may tell a gap where nothing is
            missing.
    """


def _tick(pauses: list[float]) -> None:
    """Record the pauses of the loop (a greenlet)."""
    while True:
        before = time.monotonic()
        gevent.sleep(0.01)
        pauses.append(time.monotonic() - before)
