"""Checks of the history of topics, at engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent

from ..backplane import Backplane
from ..backplane.engine import MAX_HISTORY
from ..errors import EngineRefused
from ..protocol import Sub
from ._enginebench import EngineBench, drain
from ._wait import wait_until

__all__ = ["HistoryChecks"]


class HistoryChecks(EngineBench):
    """Checks of topics with history. Of an engine that keeps none, they check that it says so."""

    @contextmanager
    def _pubs(self, count: int, options: dict[str, Any] | None = None) -> Iterator[tuple[list[Backplane], list[str]]]:
        """Make planes with history, and a Pub of each. Gives the planes, and the addresses of the Pubs.

        Without history, nothing is given, and it is checked that the engine says so.
        """
        if not self.history:
            try:
                with self.make(options, ("h.>",)) as plane:
                    plane.connect(self.limit)
            except EngineRefused:
                yield [], []
                return
            raise AssertionError("the engine keeps no history, and takes a pattern for it")
        with self.planes(count, {"plane.acknowledge_timeout": self.limit, **(options or {})}, self.history) as planes:
            yield planes, [plane.pub().listen("tcp://127.0.0.1:0").address for plane in planes]

    @contextmanager
    def _sub(self, address: str, gaps: list[str] | None = None, recover_timeout: float = 60.0) -> Iterator[Sub]:
        """Make a Sub that recovers, and is told of gaps."""
        with Sub({"connector.dialer.reconnect": False, "protocol.pubsub.recover_timeout": recover_timeout}) as sub:
            sub.on_gap(lambda gap: gaps.append(gap.reason) if gaps is not None else None)
            sub.dial(address)
            yield sub

    def _leave(self, sub: Sub) -> None:
        """Close the connection of a Sub. Blocks until the Sub knows it."""
        for pipe in [*sub.pipes.values()]:
            pipe.close()
        wait_until(lambda: not sub.pipes, self.limit)

    def test_a_sub_that_comes_back_to_another_plane_gets_the_rest_in_order_and_once(self) -> None:
        with self._pubs(3) as (planes, addresses):
            if not planes:
                return
            gaps: list[str] = []
            with self._sub(addresses[0], gaps) as sub:
                sub.subscribe("h.back.>", self.limit, recover=True)
                number = 0
                got: list[int] = []
                for turn in range(6):
                    for _ in range(20):
                        planes[number % 3].publish(f"h.back.{number % 4}", b"%d" % number)
                        number += 1
                        # One publisher after the other, so that the order is known.
                        self.wait_confirmed(planes[(number - 1) % 3])
                    while turn % 2 == 0 and len(got) < number:
                        got.append(int(sub.recv(self.limit)[1]))
                    if turn % 2 == 0:
                        self._leave(sub)
                    else:
                        sub.dial(addresses[turn % 3])
                        while len(got) < number:
                            got.append(int(sub.recv(self.limit)[1]))
                assert got == [*range(number)]
                assert gaps == []

    def test_nothing_is_missing_or_doubled_while_a_sub_goes_from_plane_to_plane(self) -> None:
        with self._pubs(2) as (planes, addresses):
            if not planes:
                return
            number = 500
            gaps: list[str] = []
            got: list[int] = []
            with self._sub(addresses[0], gaps) as sub:
                sub.subscribe("h.hop.*", self.limit, recover=True)
                publisher = gevent.spawn(self._publish_history, planes[0], number)

                def receive() -> None:
                    while len(got) < number:
                        got.append(int(sub.recv(self.limit)[1]))

                receiver = gevent.spawn(receive)
                turn = 0
                while not publisher.ready():
                    self._leave(sub)
                    turn += 1
                    sub.dial(addresses[turn % 2])
                    gevent.sleep(0.05)
                receiver.get(timeout=self.limit)
                assert got == [*range(number)]
                assert gaps == []
                assert turn > 2

    @staticmethod
    def _publish_history(plane: Backplane, number: int) -> None:
        for each in range(number):
            plane.publish(f"h.hop.{each % 3}", b"%d" % each)
            if each % 5 == 0:
                gevent.sleep(0.002)

    def test_a_new_subscriber_gets_values_and_no_history(self) -> None:
        with self._pubs(2) as (planes, addresses):
            if not planes:
                return
            one, other = planes
            one.publish("h.new.a", b"1")
            one.publish("h.new.b", b"2", retain=True)
            one.publish("h.new.a", b"3")
            one.publish("new.value", b"4", retain=True)
            self.wait_confirmed(one)
            with self._sub(addresses[1]) as sub, Sub() as plain:
                plain.dial(addresses[1])
                for each in (sub, plain):
                    each.subscribe("h.new.>", self.limit)
                    assert each.recv(self.limit) == ("h.new.b", b"2")
                    each.subscribe("new.value", self.limit)
                    assert each.recv(self.limit) == ("new.value", b"4")
                mine = self.subscribe(one, "h.new.*")
                theirs = self.subscribe(other, "h.new.*")
                assert drain(mine) == drain(theirs) == [("h.new.b", b"2")]
                one.publish("h.new.a", b"5")
                for each in (sub, plain):
                    assert each.recv(self.limit) == ("h.new.a", b"5")
                for subscription in (mine, theirs):
                    assert subscription.recv(self.limit) == ("h.new.a", b"5")
                    assert not subscription.waiting
            for topic in ("h.new.b", "new.value"):
                one.unretain(topic)

    def test_a_plane_without_history_publishes_to_those_with_it(self) -> None:
        with self._pubs(2) as (planes, addresses), ExitStack() as stack:
            if not planes:
                return
            script = stack.enter_context(self.make())
            here = self.subscribe(script, "h.script")
            gaps: list[str] = []
            sub = stack.enter_context(self._sub(addresses[0], gaps))
            sub.subscribe("h.script", self.limit, recover=True)
            script.publish("h.script", b"1")
            assert sub.recv(self.limit) == ("h.script", b"1")
            self._leave(sub)
            script.publish("h.script", b"2")
            # Nothing promises an order of what two processes publish at the same time.
            self.wait_confirmed(script)
            planes[0].publish("h.script", b"3")
            assert [here.recv(self.limit)[1] for _ in range(3)] == [b"1", b"2", b"3"]
            sub.dial(addresses[1])
            assert [sub.recv(self.limit)[1] for _ in range(2)] == [b"2", b"3"]
            assert gaps == []

    def test_what_the_history_has_no_longer_is_a_gap_for_its_own_topic_only(self) -> None:
        with self._pubs(2) as (planes, addresses), ExitStack() as stack:
            if not planes:
                return
            one, other = planes
            topics = ("h.quiet", "h.loud")
            gaps: list[list[str]] = [[], []]
            subs = [stack.enter_context(self._sub(addresses[0], each)) for each in gaps]
            for sub, topic in zip(subs, topics, strict=True):
                sub.subscribe(topic, self.limit, recover=True)
                one.publish(topic, b"first")
                assert sub.recv(self.limit) == (topic, b"first")
                self._leave(sub)
            number = MAX_HISTORY + 200
            for each in range(number):
                other.publish("h.loud", b"%d" % each)
                if each % 500 == 0:
                    self.wait_confirmed(other)
            self.wait_confirmed(other)
            one.publish("h.quiet", b"last")
            self.wait_confirmed(one)
            for sub, topic, content in zip(subs, topics, (b"last", b"%d" % (number - 1)), strict=True):
                sub.dial(addresses[1])
                got = sub.recv(self.limit)
                while got[1] != content:
                    assert got[0] == topic
                    got = sub.recv(self.limit)
            assert gaps[0] == [] or not self.exact_gaps, "of this topic nothing is missing"
            wait_until(lambda: gaps[1], self.limit, "a gap is reported")

    def test_while_the_server_is_away_an_asking_is_answered_with_a_gap(self) -> None:
        if self.server is None:
            return
        with self._pubs(2, {"plane.acknowledge_timeout": 0.1}) as (planes, addresses):
            if not planes:
                return
            one, other = planes
            gaps: list[str] = []
            with self._sub(addresses[0], gaps, 0.3) as sub:
                sub.subscribe("h.away", self.limit, recover=True)
                one.publish("h.away", b"1")
                assert sub.recv(self.limit) == ("h.away", b"1")
                self.server.kill()
                wait_until(lambda: not one.healthy and not other.healthy, self.limit)
                self._leave(sub)
                receiver = gevent.spawn(lambda: {sub.recv(4 * self.limit)[1] for _ in range(2)})
                sub.dial(addresses[1])
                one.publish("h.away", b"2")
                other.publish("h.away", b"3")
                wait_until(lambda: gaps, self.limit, "the sub is told that something may be missing")
                self.server.start()
                for plane in planes:
                    plane.connect(self.limit)
                    self.wait_confirmed(plane)
                got = receiver.get(timeout=self.limit)
                assert got == {b"2", b"3"}, "a publication that was confirmed is missing"
