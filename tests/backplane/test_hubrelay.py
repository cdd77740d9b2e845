"""The hub's short way: it must do what the long way does, publication for publication and count for count."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Pipe
from gmultisocket.backplane.hubrelay import HubRelay
from gmultisocket.backplane.hubserver import HubServer
from gmultisocket.backplane.hubwire import CONFIRM, RETAIN, confirm, length, stamp
from gmultisocket.core.pipes import scheduler
from gmultisocket.protocol.history import everything_since
from gmultisocket.protocol.pubsubwire import SUBSCRIBE, SUBSCRIBED, UNSUBSCRIBE
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.wire import CONTROL, INTERNAL, SEND_TYPE_MASK, TO_ALL, TO_ONE
from tests.core.streams import CountingStream, frame

ONCE = {"connector.dialer.reconnect": False}
#: Seconds: for many messages, on a machine with much else to do.
LONG = 30.0
ORIGIN = b"a client"


def publication(topic: str, number: int, size: int = 0) -> bytes:
    """Return the content of a publication."""
    encoded = topic.encode()
    return length.pack(len(encoded)) + encoded + stamp.pack(ORIGIN, number) + bytes(size)


def fields(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yield the flags, the ttl, the lengths of the paths, and the content of each frame."""
    position = 0
    while position < len(data):
        flags, ttl, hops, distance, size = struct.unpack_from(">BBBBI", data, position)
        start = position + 8 + 4 * (hops + distance)
        position = start + size
        assert position <= len(data), "it ends in the middle of a frame"
        yield flags, ttl, hops, distance, data[start:position]


class Hub:
    """A hub whose clients are fakes.

    Attributes:
        server: the hub.
        streams: of the clients.
        pipes: of the clients.
    """

    def __init__(self, stack: ExitStack, streams: Sequence[FakeStream], options: dict[str, Any], short: bool) -> None:
        options = {"connector.pipe.heartbeat_interval": 0.0, **options}
        self.server = stack.enter_context(HubServer(options, history=["k.>"]))
        if not short:
            self.server._relay.close()
        self.streams = list(streams)
        fake = stack.enter_context(FakeTransport(self.streams))
        self.pipes = [self._dial(fake.address) for _ in self.streams]

    def _dial(self, address: str) -> Pipe:
        pipe = self.server.dial(address, ONCE).pipe
        assert pipe is not None
        return pipe

    def subscribe(self, client: int, *patterns: str) -> None:
        """Subscribe a client, and wait until that is in effect."""
        before = len(self.sent(client, SUBSCRIBED))
        self.streams[client].feed(*(frame(SUBSCRIBE + each.encode(), CONTROL | TO_ALL) for each in patterns))
        wait_until(lambda: len(self.sent(client, SUBSCRIBED)) == before + len(patterns), LONG)

    def sent(self, client: int, kind: bytes = b"") -> list[bytes]:
        """Return the contents of the control messages of a kind that a client got, without it of its publications."""
        found = [(flags & ~SEND_TYPE_MASK, content) for flags, *_, content in fields(bytes(self.streams[client].sent))]
        return [each for flags, each in found if (flags == CONTROL and each[:1] == kind if kind else not flags)]

    def numbers(self, client: int) -> list[int]:
        """Return the numbers of the publications that a client got."""
        return [stamp.unpack_from(each, 2 + length.unpack_from(each)[0])[1] for each in self.sent(client)]

    def confirmed(self, client: int) -> int:
        """Return how many publications were confirmed to a client."""
        return sum(confirm.unpack(each)[1] for each in self.sent(client, CONFIRM))

    @property
    def done(self) -> int:
        """How many publications were taken or dropped."""
        return self.server.taken + self.server.counters.drops.get("garbage", 0)

    def state(self) -> dict[str, object]:
        """Return everything that both ways must do alike. How many confirm messages there are is left to each."""
        publications = [
            [each for each in fields(bytes(stream.sent)) if each[4][:1] in (b"\0", RETAIN)] for stream in self.streams
        ]
        return {
            "publications": publications,
            "confirmed": [self.confirmed(client) for client in range(len(self.streams))],
            "taken": self.server.taken,
            "passed on": self.server.passed_on,
            "kept": everything_since(self.server._history, "k.>", 0),
            "drops": self.server.counters.drops,
            "read": [pipe.counters.messages_received for pipe in self.pipes],
            "closed": [pipe.closed for pipe in self.pipes],
        }


@contextmanager
def clients(*streams: FakeStream, options: dict[str, Any] | None = None, short: bool = True) -> Iterator[Hub]:
    with ExitStack() as stack:
        yield Hub(stack, streams, options or {}, short)


#: What it is, the topic, the content's size, and how often.
Spec = tuple[str, str, int, int]

specs = st.tuples(
    st.sampled_from(["plain"] * 6 + ["retain", "garbage", "path", "to all", "other ttl"]),
    st.sampled_from(["a.b", "a.c", "b", "k.a", "nobody's", "a..b", "ü", "*"]),
    st.sampled_from([0, 1, 64, 64, 64, 300, 5000, 40_000]),
    st.sampled_from([1, 1, 2, 5, 30, 100]),
)


def build(spec: Spec, numbers: Iterator[int]) -> list[bytes]:
    """Return the frames of a spec."""
    kind, topic, size, count = spec
    made = []
    for _ in range(count):
        content = publication(topic, next(numbers), size)
        made.append(
            {
                "plain": frame(content),
                "retain": frame(RETAIN + content, CONTROL),
                "garbage": frame(content[: len(topic) + 10]),
                "path": frame(content, source=b"\0\0\0\7"),
                "to all": frame(content, TO_ALL),
                "other ttl": frame(content, ttl=200),
            }[kind]
        )
    return made


def run(
    script: Sequence[tuple[int, Sequence[Spec], int]],
    options: dict[str, Any],
    blocked: bool,
    takes: Sequence[int],
    short: bool,
) -> dict[str, object]:
    """Feed a script, wait until all of it went through, and return what came of it."""
    with clients(FakeStream(), FakeStream(), FakeStream(), options=options, short=short) as hub:
        hub.subscribe(0, "a.>")
        hub.subscribe(1, "a.b", "b")
        hub.subscribe(2, ">")
        if blocked:
            hub.streams[2].block()
        hub.streams[2]._takes.extend(takes)
        numbers = iter(range(10**6))
        fed = 0

        def is_through() -> bool:
            return hub.done == fed

        for client, some, piece in script:
            frames = [each for spec in some for each in build(spec, numbers)]
            data = b"".join(frames)
            hub.streams[client].feed(*(data[start : start + piece] for start in range(0, len(data), piece)))
            fed += len(frames)
            # Nothing promises the order of what two clients send at the same time.
            wait_until(is_through, LONG)
        hub.streams[2].unblock()
        wait_until(lambda: not any(pipe.queued for pipe in hub.pipes) and not hub.server._unconfirmed, LONG)
        gevent.sleep(0)
        return hub.state()


@settings(max_examples=60, deadline=None)
@given(
    script=st.lists(
        st.tuples(
            st.integers(0, 1),
            st.lists(specs, max_size=5),
            st.sampled_from([1000, 4096, 65_536, 65_536, 7]),
        ),
        max_size=5,
    ).filter(
        # In pieces of 7 bytes only what is short.
        lambda script: all(piece > 7 or sum(each[2] * each[3] for each in some) < 3000 for _, some, piece in script)
    ),
    policy=st.sampled_from(["disconnect", "drop_newest", "drop_oldest"]),
    limit=st.sampled_from([1, 5, 64, 1000]),
    blocked=st.booleans(),
    takes=st.lists(st.sampled_from([0, 1, 7, 12, 72, 100, 1000, 10_000]), max_size=40),
)
def test_both_ways_send_the_same_to_each_client_and_count_the_same(
    script: list[tuple[int, list[Spec], int]], policy: str, limit: int, blocked: bool, takes: list[int]
) -> None:
    options = {"socket.send_overflow": policy, "socket.send_queue_size": limit}
    outcomes = [run(script, options, blocked, takes if limit == 1000 else (), short) for short in (True, False)]
    assert outcomes[0] == outcomes[1]


# What takes the short way, and what it costs


def test_what_a_client_wants_of_a_read_is_written_to_it_at_once() -> None:
    streams = FakeStream(), CountingStream(), CountingStream()
    with clients(*streams) as hub:
        hub.subscribe(1, "a.>")
        hub.subscribe(2, "a.b")
        for stream in streams[1:]:
            stream.sizes.clear()
        data = b"".join(frame(publication(("a.b", "a.c")[number % 2], number, number % 5)) for number in range(200))
        hub.streams[0].feed(data)
        wait_until(lambda: hub.server.taken == 200)
        assert hub.numbers(1) == list(range(200))
        assert hub.numbers(2) == list(range(0, 200, 2))
        assert streams[1].sizes == [len(data)]
        assert len(streams[2].sizes) == 1
        wait_until(lambda: hub.confirmed(0) == 200)
        assert hub.server.passed_on == 300
        assert hub.server.counters.drops == {}


def test_what_is_kept_of_a_read_is_handed_over_together(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = HubRelay.forward, []

    def counting(relay: HubRelay, *arguments: Any) -> tuple[int, int, int]:
        calls.append(forward(relay, *arguments))
        return calls[-1]

    monkeypatch.setattr(HubRelay, "forward", counting)
    topics = ["k.a", "k.b", "k.a", "not kept", "k.a"] * 10
    contents = [publication(topic, number) for number, topic in enumerate(topics)]
    with ExitStack() as stack:
        hub = Hub(stack, [FakeStream(), FakeStream()], {}, short=True)
        hub.subscribe(0, ">")
        calls.clear()
        hub.streams[1].feed(b"".join(map(frame, contents)))
        wait_until(lambda: hub.done == 50)
        assert hub.numbers(0) == [*range(50)]
        assert [(passed, special) for _, passed, special in calls] == [(0, 3), (1, 0), *[(0, 4), (1, 0)] * 9, (0, 1)]


def test_a_client_gets_nothing_of_its_own_and_nothing_that_it_does_not_want() -> None:
    with clients(FakeStream(), FakeStream()) as hub:
        hub.subscribe(0, ">")
        hub.subscribe(1, "b")
        hub.streams[0].feed(frame(publication("a", 1)) * 10)
        wait_until(lambda: hub.confirmed(0) == 10)
        assert hub.server.passed_on == 0
        assert hub.numbers(0) == hub.numbers(1) == []


def test_a_subscription_takes_effect_between_two_publications_of_a_read() -> None:
    with clients(FakeStream(), FakeStream()) as hub:
        hub.subscribe(0, "t")
        ask, leave = (frame(kind + b"t", CONTROL | TO_ALL) for kind in (SUBSCRIBE, UNSUBSCRIBE))
        hub.streams[1].feed(frame(publication("t", 1)) + ask)
        wait_until(lambda: len(hub.sent(1, SUBSCRIBED)) == 1)
        hub.streams[0].feed(frame(publication("t", 2)))
        wait_until(lambda: hub.numbers(1) == [2])
        hub.streams[1].feed(frame(publication("t", 3)) + leave + frame(publication("t", 4)))
        wait_until(lambda: hub.numbers(0) == [1, 3, 4])
        hub.streams[0].feed(frame(publication("t", 5)))
        wait_until(lambda: hub.confirmed(0) == 2)
        assert hub.numbers(1) == [2]


@pytest.mark.parametrize("odd", ["retain", "long", "path"])
def test_nothing_of_a_client_overtakes_what_takes_the_long_way(odd: str) -> None:
    with clients(FakeStream(), FakeStream()) as hub:
        hub.subscribe(1, "t")
        numbers = iter(range(10_000))
        frames = []
        for _ in range(50):
            frames += build(("plain", "t", 8, 3), numbers)
            frames += build((odd.replace("long", "plain"), "t", 40_000 if odd == "long" else 8, 1), numbers)
        hub.streams[0].feed(b"".join(frames))
        wait_until(lambda: hub.confirmed(0) == 200)
        found = [
            stamp.unpack_from(content, start + 3)[1]
            for flags, *_, content in fields(bytes(hub.streams[1].sent))
            if (start := int(content[:1] == RETAIN)) or not flags & ~SEND_TYPE_MASK
        ]
        assert found == list(range(200))


def test_a_client_that_cannot_be_written_to_costs_the_others_nothing() -> None:
    broken = FakeStream()
    with clients(FakeStream(), broken, FakeStream()) as hub:
        hub.subscribe(1, ">")
        hub.subscribe(2, ">")
        broken._takes.append(ConnectionResetError())
        hub.streams[0].feed(b"".join(frame(publication("t", number)) for number in range(300)))
        wait_until(lambda: hub.confirmed(0) == 300)
        assert hub.numbers(2) == list(range(300))
        assert hub.numbers(1) == []
        broken.feed(b"")
        wait_until(lambda: hub.pipes[1].closed)
        # No pipe that has closed is kept.
        assert not hub.server._relay._topics
        assert not hub.server._relay._targets
        hub.streams[0].feed(frame(publication("t", 300)))
        wait_until(lambda: hub.numbers(2) == list(range(301)))


def test_a_client_that_does_not_read_is_cut_off_when_its_queue_is_full() -> None:
    with clients(FakeStream(), FakeStream(), FakeStream(), options={"socket.send_queue_size": 50}) as hub:
        hub.subscribe(1, ">")
        hub.subscribe(2, ">")
        hub.streams[1].block()
        hub.streams[0].feed(b"".join(frame(publication("t", number)) for number in range(1000)))
        wait_until(lambda: hub.confirmed(0) == 1000)
        assert hub.pipes[1].closed
        assert hub.numbers(2) == list(range(1000))
        assert hub.server.passed_on == 1050


def test_with_the_policy_block_a_full_client_holds_up_publishers_and_loses_nothing() -> None:
    options = {"socket.send_overflow": "block", "socket.send_queue_size": 10}
    with clients(FakeStream(), FakeStream(), options=options) as hub:
        hub.subscribe(1, ">")
        hub.streams[1].block()
        hub.streams[0].feed(b"".join(frame(publication("t", number)) for number in range(3000)))
        wait_until(lambda: hub.pipes[1].full)
        gevent.sleep(0)
        assert hub.server.taken < 3000
        hub.streams[1].unblock()
        wait_until(lambda: hub.confirmed(0) == 3000, LONG)
        assert hub.numbers(1) == list(range(3000))


def test_others_run_while_a_read_goes_to_many_clients() -> None:
    streams = [FakeStream() for _ in range(60)]
    with clients(*streams, options={"socket.yield_messages": 500}) as hub:
        for client in range(1, 60):
            hub.subscribe(client, ">")
        reached: list[int] = []

        def watch() -> None:
            while not reached or reached[-1] < 59:
                reached.append(sum(bool(hub.numbers(client)) for client in range(1, 60)))
                gevent.sleep(0)

        watching = gevent.spawn(watch)
        gevent.sleep(0)
        hub.streams[0].feed(frame(publication("t", 1)) * 100)
        watching.get(timeout=LONG)
        wait_until(lambda: hub.confirmed(0) == 100)
        # 500 messages are 5 clients.
        assert len(set(reached)) >= 10
        assert hub.server.passed_on == 5900


class Watching(FakeStream):
    """The stream of a client; when a confirmation is written, it notes what the hub has not written yet.

    Args:
        watching: how many clients watch: the first ones.

    Attributes:
        waiting: at each confirmation, the messages in the queues of the other clients.
    """

    __slots__ = ("_watching", "hub", "waiting")

    hub: Hub

    def __init__(self, watching: int = 2) -> None:
        super().__init__()
        self._watching = watching
        self.waiting: list[int] = []

    def send(self, data: bytes | memoryview, /) -> int:
        if any(flags & CONTROL and content[:1] == CONFIRM for flags, *_, content in fields(bytes(data))):
            self.waiting.append(sum(pipe.queued for pipe in self.hub.pipes[self._watching :]))
        return super().send(data)


def test_what_is_confirmed_has_been_written() -> None:
    first, second = Watching(), Watching()
    with clients(first, second, FakeStream()) as hub:
        first.hub = second.hub = hub
        hub.subscribe(2, "t")
        for number in range(100):
            # In one turn. Nobody wants the one that comes first; of the others, all but one are queued.
            first.feed(frame(publication("nobody's", number)))
            second.feed(*(frame(publication("t", number * 10 + each)) for each in range(10)))
            wait_until(lambda number=number: hub.confirmed(1) == (number + 1) * 10)
        wait_until(lambda: hub.confirmed(0) == 100)
        assert second.waiting
        assert not any(first.waiting + second.waiting)


@pytest.mark.parametrize("topic", ["t", "k.a"])
def test_what_is_confirmed_has_been_written_if_that_takes_several_turns(
    topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loop looks at everything else after each client.
    monkeypatch.setattr(scheduler, "MAX_TURN", -1.0)
    publishers = [Watching(5) for _ in range(5)]
    with clients(*publishers, *(FakeStream() for _ in range(5))) as hub:
        for publisher in publishers:
            publisher.hub = hub
        for client in range(5, 10):
            hub.subscribe(client, topic)
        for number in range(20):
            for place, publisher in enumerate(publishers):
                publisher.feed(frame(publication(topic, number * 5 + place)))
            wait_until(lambda number=number: all(hub.confirmed(client) == number + 1 for client in range(5)), LONG)
        for publisher in publishers:
            assert publisher.waiting and not any(publisher.waiting)


def test_internal_messages_are_answered_between_publications() -> None:
    with clients(FakeStream(), FakeStream()) as hub:
        hub.subscribe(1, "t")
        ping = frame(b"\1x", INTERNAL | TO_ONE)
        hub.streams[0].feed(frame(publication("t", 1)) + ping + frame(publication("t", 2)))
        wait_until(lambda: hub.numbers(1) == [1, 2])
        pongs = [content for flags, *_, content in fields(bytes(hub.streams[0].sent)) if flags & INTERNAL]
        assert pongs == [b"\2x"]


def test_what_a_lost_connection_brings_late_replaces_and_follows_nothing_newer() -> None:
    late, present, reader = FakeStream(), FakeStream(), FakeStream()
    with clients(late, present, reader) as hub:
        hub.subscribe(2, "k.a", "value")
        present.feed(
            frame(publication("k.a", 7), TO_ALL),
            frame(RETAIN + publication("value", 8), CONTROL | TO_ALL),
        )
        wait_until(lambda: hub.server.taken == 2, LONG)
        late.feed(
            frame(publication("k.a", 5), TO_ALL),
            frame(RETAIN + publication("value", 6), CONTROL | TO_ALL),
        )
        wait_until(lambda: hub.server.taken == 4 and hub.confirmed(0) == 2, LONG)
        present.feed(frame(publication("k.a", 9), TO_ALL))
        wait_until(lambda: hub.numbers(2) == [7, 9], LONG)
        entries, _ = hub.server._history.fetch(">")
        kept = [stamp.unpack_from(entry.content)[1] for entry in entries]
        assert sorted(kept) == [7, 8, 9]
        assert hub.server.counters.drops == {"late": 2}
