"""Checks of the present values of topics, at engines."""

from __future__ import annotations

from contextlib import ExitStack

import gevent

from ..backplane import Backplane
from ..errors import NotSupported
from ..protocol import Sub
from ._enginebench import EngineBench, drain
from ._wait import wait_until

__all__ = ["ValueChecks"]


class ValueChecks(EngineBench):
    """Checks of present values. Of an engine that keeps none, they check that it says so."""

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
            script.unretain("state.a")

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
            one.unretain("state.b")

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
