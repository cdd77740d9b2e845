"""The promise of Pub and Sub, over real sockets: whatever happens on the way, nothing is missing in silence.

What a Sub hands out is in order and without duplicates for each history and topic, and whatever is missing between two
publications is told before the second one. :class:`~tests.protocol.pubsubmodel.Judge` holds that, as for the model.

Four publishers: two serve the same history, one is started again now and then, one is of the old kind (0x00 to 0x02).
Three subscribers: two Subs, and one of the old kind. Their connections are cut, and their queues overflow.

``GMULTISOCKET_PROMISE_EXAMPLES`` is the number of examples for each net; the default takes a few seconds in all.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from contextlib import suppress
from typing import Any

import gevent
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from gmultisocket import Socket, Switch
from gmultisocket.errors import BrokenPath, Closed, Timeout
from gmultisocket.protocol import Gap, Pub, Sub
from gmultisocket.protocol import recovery as recovery_module
from gmultisocket.protocol.positions import Positions
from gmultisocket.protocol.pubsubwire import Positioned, Replay
from gmultisocket.protocol.subscriptions import matches
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, TO_DEST, Message

from .pubsubmodel import Judge, ModelHistory
from .pubsubvectors import publication

EXAMPLES = int(os.environ.get("GMULTISOCKET_PROMISE_EXAMPLES", "3"))
STEPS = int(os.environ.get("GMULTISOCKET_PROMISE_STEPS", "60"))

TOPICS = ["a.x", "a.y", "b", "plain"]
PATTERNS = ["a.>", "a.x", "*.x", ">", "b", "plain"]
#: So large that the kernel's buffers hold few of them.
PADDING = bytes(3000)
QUICK: dict[str, Any] = {
    "connector.dialer.min_reconnect_time": 0.001,
    "connector.dialer.max_reconnect_time": 0.01,
    "socket.send_queue_size": 4,
    "socket.recv_queue_size": 2,
    "socket.send_to_patience": 0.2,
    "transport.tcp.read_buffer": 4096,
    "transport.tcp.write_buffer": 4096,
    "protocol.pubsub.refresh_interval": 0.05,
    "protocol.pubsub.recover_timeout": 0.05,
    # Copies for old subscribers go to the dead ones too, as long as these count, and fill the short queues.
    "protocol.pubsub.expiry": 0.3,
}
#: Of a socket without a protocol.
QUICK_SOCKET = {name: value for name, value in QUICK.items() if not name.startswith("protocol.")}


class SpyPositions(Positions):
    """Remembers of each publication that is handed out whether others before it were told, or came too early.

    None stands for one without a position.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads: dict[tuple[bytes, int], Replay] = {}
        self.arrivals: deque[tuple[bytes, bool | None]] = deque()

    def answer(self, source: bytes, replay: Replay) -> list[Gap]:
        self.heads.setdefault((source, replay.id), replay)
        return super().answer(source, replay)

    def take(self, source: bytes, message: Positioned, topic: str) -> tuple[bool, Gap | None]:
        wanted, gap = super().take(source, message, topic)
        if wanted:
            head = self.heads.get((source, message.id))
            told = head is not None and (head.gap or head.first_meeting) and message.offset <= head.offset
            self.arrivals.append((message.publication, told))
        return wanted, gap


class SpyRecovery(recovery_module.Recovery):
    __slots__ = ()

    def is_early(self, message: Message, topic: str) -> bool:
        early = super().is_early(message, topic)
        if not early and self._core.has_room:
            assert isinstance(self._positions, SpyPositions)
            self._positions.arrivals.append((message.content, None))
        return early


class Listener:
    """A Sub, and the judge of what it hands out."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sub = Sub(QUICK)
        self.judge = Judge()
        self.sub.on_gap(self.judge.gap)
        recovery = self.sub._recovery
        assert recovery is not None
        assert isinstance(recovery._positions, SpyPositions)
        self.positions = recovery._positions
        #: By publisher and topic, for publications without a position: the last number.
        self.last: dict[tuple[int, str], int] = {}
        #: By publisher and topic: the last number.
        self.newest: dict[tuple[int, str], int] = {}

    def receive(self, count: int) -> bool:
        """Receive what is there, but no more than so many publications. Return whether there was one."""
        found = False
        for _ in range(count):
            try:
                topic, content = self.sub.recv(0)
            except Timeout:
                return found
            found = True
            which, number = struct.unpack_from(">IQ", content)
            # The two that share a history count as one.
            key = (max(which, 1), topic)
            self.newest[key] = max(number, self.newest.get(key, 0))
            kept = self.world.kept.get(content)
            if kept is None:
                assert number > self.last.get((which, topic), 0), f"{topic}: {number} comes late, or again"
                self.last[which, topic] = number
                continue
            history, offset = kept
            arrived, told = b"", None
            while arrived != publication(topic, content):
                arrived, told = self.positions.arrivals.popleft()
            if told is None:
                # Behind a switch, it comes without a position before its publisher has answered. Or a 0x05 was dropped
                # there, and the 0x01 behind it was not: then the publisher takes this for an old Sub.
                assert self.world.switches
                self.judge.last.pop((history.epoch, topic), None)
            else:
                self.judge.message(history, offset, topic, told)
        return found

    def drain(self) -> None:
        while self.receive(100) or self.sub.socket.queued:
            pass

    def subscribe(self, pattern: str, recover: bool, retained: bool) -> None:
        if pattern not in self.sub.patterns:
            # What is in the queue came before the subscription, and may come again for it.
            self.drain()
            for epoch, topic in self.judge.last:
                if matches(pattern, topic):
                    self.judge.subscribed((epoch, topic))
        self.sub.subscribe(pattern, recover=recover, retained=retained)

    def unsubscribe(self, pattern: str) -> None:
        # What is in the queue would be skipped, or come after the next subscription.
        self.drain()
        self.sub.unsubscribe(pattern)
        for epoch, topic in self.judge.last:
            if not any(matches(other, topic) and self.positions.knows(other, epoch) for other in self.sub.patterns):
                self.judge.unsubscribed((epoch, topic))


class OldSub:
    """A subscriber that knows only 0x00 to 0x02, and wants everything."""

    def __init__(self) -> None:
        self.socket = Socket({**QUICK_SOCKET, "socket.recv_queue_size": 64})
        self.socket.on_pipe(lambda event: event.kind == "added" and self.subscribe())
        #: By the path of the publisher and the topic.
        self.last: dict[tuple[bytes, str], int] = {}

    def subscribe(self) -> None:
        # It repeats itself, as old ones do: so the publishers forget it when it has gone.
        with suppress(Timeout, Closed):
            for _ in range(3):
                self.socket.send_msg(Message(CONTROL | TO_ALL, content=b"\x01>"), timeout=0.05)

    def receive(self) -> None:
        if self.socket.pipes:
            self.subscribe()
        while self.socket.queued:
            message = self.socket.recv_msg(0)
            if message.flags & CONTROL:
                continue
            (length,) = struct.unpack_from(">H", message.content)
            topic = message.content[2 : 2 + length].decode()
            _, number = struct.unpack_from(">IQ", message.content, 2 + length)
            key = (message.source, topic)
            # Retained values come again after a reconnect, and as they were published.
            if number <= self.last.get(key, 0):
                assert message.flags == TO_DEST, f"{topic}: {number} comes late, or again"
            self.last[key] = max(number, self.last.get(key, 0))


class OldPub:
    """A publisher that knows only 0x00 to 0x02."""

    def __init__(self, address: str) -> None:
        self.socket = Socket({**QUICK_SOCKET, "socket.send_overflow": "drop_newest"})
        self.address = self.socket.listen(address).address
        self.reader = gevent.spawn(self.read)

    def read(self) -> None:
        for message in self.socket:
            if message.content[:1] == b"\x01":
                answer = b"\x02" + message.content[1:]
                with suppress(BrokenPath, Timeout, Closed):
                    self.socket.send_msg(
                        Message(CONTROL | TO_DEST, destination=message.source, content=answer), timeout=0.05
                    )

    def publish(self, topic: str, content: bytes) -> None:
        self.socket.send_all(publication(topic, content))


class World:
    """The publishers, the subscribers, and what is between them."""

    def __init__(self, transport: str, switches: int) -> None:
        #: By content: the history and the offset.
        self.kept: dict[bytes, tuple[ModelHistory, int]] = {}
        self.count = 0
        self.transport = transport
        shared = ModelHistory("a.>", max_entries=6)
        self.pubs = [self.make_pub(history, f"{transport}://127.0.0.1:0") for history in (shared, shared)]
        self.pubs.append(self.make_pub(self.other_history(), f"{transport}://127.0.0.1:0"))
        self.old_pub = OldPub(f"{transport}://127.0.0.1:0")
        addresses = [str(listener.address) for pub in self.pubs for listener in pub.socket.listeners]
        self.addresses = addresses
        self.listeners = [Listener(self), Listener(self)]
        self.old_sub = OldSub()
        self.switches: list[Switch] = []
        ends = [*addresses, str(self.old_pub.address)]
        for _ in range(switches):
            # A switch closes a pipe that stays full when something comes along a path: not all the time, here.
            queues = {"socket.send_queue_size": 64, "socket.recv_queue_size": 16, "socket.send_to_patience": 2.0}
            back, front = Socket({**QUICK_SOCKET, **queues}), Socket({**QUICK_SOCKET, **queues})
            for address in ends:
                back.dial(address)
            ends = [str(front.listen(f"{transport}://127.0.0.1:0").address)]
            self.switches.append(Switch(back, front))
            self.switches[-1].start()
        for end in (*(each.sub for each in self.listeners), self.old_sub.socket):
            for address in ends:
                end.dial(address)

    @staticmethod
    def other_history() -> ModelHistory:
        return ModelHistory("a.x", "b", max_entries=3, max_retained=1)

    @staticmethod
    def make_pub(history: ModelHistory, address: str) -> Pub:
        pub = Pub({**QUICK, "protocol.pubsub.replay_bytes": 40_000}, history=history)
        pub.listen(address)
        return pub

    def history(self, which: int) -> ModelHistory:
        history = self.pubs[which]._keeper.history
        assert isinstance(history, ModelHistory)
        return history

    def publish(self, which: int, topic: str, retain: bool = False) -> int:
        self.count += 1
        content = struct.pack(">IQ", which, self.count) + PADDING
        if which == 3:
            self.old_pub.publish(topic, content)
            return self.count
        history = self.history(which)
        before = len(history.truth)
        self.pubs[which].publish(topic, content, retain=retain)
        if len(history.truth) > before:
            entry = history.truth[-1]
            self.kept[content] = (history, entry.offset)
            if which < 2:
                self.pubs[1 - which].publish_entry(entry)
        return self.count

    def cut(self, which: int) -> None:
        sockets = [
            *(pub.socket for pub in self.pubs), *(each.sub.socket for each in self.listeners), self.old_pub.socket,
            *(end for switch in self.switches for end in (switch.back, switch.front)),
        ]  # fmt: skip
        for pipe in [*sockets[which % len(sockets)].pipes.values()]:
            pipe.close()

    def restart(self) -> None:
        self.pubs[2].close(0)
        self.pubs[2] = self.make_pub(self.other_history(), self.addresses[2])

    def settle(self) -> None:
        """Publish until everybody has everything that is published last: nobody is ignored for ever."""
        begin = self.count
        for each in self.listeners:
            each.subscribe(">", True, True)

        def arrived() -> bool:
            for each in self.listeners:
                each.drain()
            self.old_sub.receive()
            for which in (1, 2, 3):
                for topic in TOPICS:
                    if any(each.newest.get((which, topic), 0) <= begin for each in self.listeners):
                        # One at a time: the queues are short.
                        self.publish(which, topic)
                        return False
            return True

        wait_until(arrived, 20)

    def close(self) -> None:
        for each in self.listeners:
            each.sub.close(0)
        for switch in self.switches:
            switch.back.close(0)
            switch.front.close(0)
            switch.stop()
        for pub in self.pubs:
            pub.close(0)
        self.old_sub.socket.close(0)
        self.old_pub.socket.close(0)
        self.old_pub.reader.join()


class Promise(RuleBasedStateMachine):
    transport = ""
    between = 0

    @initialize()
    def begin(self) -> None:
        self.world = World(self.transport, self.between)

    @rule(which=st.integers(0, 3), topic=st.sampled_from(TOPICS), retain=st.booleans())
    def publish(self, which: int, topic: str, retain: bool) -> None:
        self.world.publish(which, topic, retain)

    @rule(which=st.integers(0, 3), topic=st.sampled_from(TOPICS), count=st.integers(2, 20))
    def publish_many(self, which: int, topic: str, count: int) -> None:
        for _ in range(count):
            self.world.publish(which, topic)

    @rule(topic=st.sampled_from(TOPICS))
    def unretain(self, topic: str) -> None:
        self.world.pubs[2].unretain(topic)

    @rule(
        which=st.integers(0, 1), pattern=st.sampled_from(PATTERNS), recover=st.booleans(), retained=st.booleans(),
        waits=st.booleans(),
    )  # fmt: skip
    def subscribe(self, which: int, pattern: str, recover: bool, retained: bool, waits: bool) -> None:
        each = self.world.listeners[which]
        each.subscribe(pattern, recover, retained)
        if waits:
            each.drain()
            gevent.idle()

    @rule(which=st.integers(0, 1), pattern=st.sampled_from(PATTERNS))
    def unsubscribe(self, which: int, pattern: str) -> None:
        if pattern in self.world.listeners[which].sub.patterns:
            self.world.listeners[which].unsubscribe(pattern)

    @rule(which=st.integers(0, 1), count=st.integers(1, 30))
    def receive(self, which: int, count: int) -> None:
        for _ in range(count):
            self.world.listeners[which].receive(1)
            gevent.idle()
        self.world.old_sub.receive()

    @rule(which=st.integers(0, 11))
    def cut(self, which: int) -> None:
        self.world.cut(which)

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @rule(turns=st.integers(1, 10))
    def pass_time(self, turns: int) -> None:
        for _ in range(turns):
            gevent.idle()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.settle()
            finally:
                self.world.close()


@pytest.mark.parametrize("switches", [0, 1, 3])
@pytest.mark.parametrize("transport", ["tcp", "ws"])
def test_the_promise_holds_whatever_happens(transport: str, switches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "Positions", SpyPositions)
    monkeypatch.setattr(recovery_module, "Recovery", SpyRecovery)

    class Here(Promise):
        pass

    Here.transport, Here.between = transport, switches
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    # Real sockets do not do twice the same, so a failure cannot be made smaller.
    phases = [Phase.explicit, Phase.generate]
    limits = {"max_examples": EXAMPLES, "stateful_step_count": STEPS, "deadline": None}
    run_state_machine_as_test(Here, settings=settings(suppress_health_check=checks, phases=phases, **limits))  # type: ignore
