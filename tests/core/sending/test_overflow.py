"""The overflow policies against a model: every message offered is delivered, waits, or is counted as dropped."""

from __future__ import annotations

import itertools
from collections import deque

import gevent
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gmultisocket import Pipe, Socket
from gmultisocket.errors import Timeout
from gmultisocket.testing import wait_until

_names = itertools.count()


class Model:
    """A sender, the queue of its one pipe, and the queue of the receiver: what the documentation says they do."""

    def __init__(self, policy: str, send_limit: int, recv_limit: int) -> None:
        self.policy = policy
        self.send_limit = send_limit
        self.recv_limit = recv_limit
        self.waiting: deque[int] = deque()
        self.arrived: deque[int] = deque()
        self.dropped: list[int] = []

    def offer(self, number: int) -> bool:
        """Return whether the message was accepted."""
        if not self.waiting and len(self.arrived) < self.recv_limit:
            self.arrived.append(number)
            return True
        if len(self.waiting) >= self.send_limit:
            if self.policy == "drop_oldest":
                while self.waiting and len(self.waiting) >= self.send_limit:
                    self.dropped.append(self.waiting.popleft())
            if len(self.waiting) >= self.send_limit:
                if self.policy != "block":
                    self.dropped.append(number)
                return False
        self.waiting.append(number)
        return True

    def take(self) -> int | None:
        if not self.arrived:
            return None
        number = self.arrived.popleft()
        # A queue that has been full takes messages again when it is down to half.
        if len(self.arrived) <= self.recv_limit // 2:
            self.refill()
        return number

    def refill(self) -> None:
        while self.waiting and len(self.arrived) < self.recv_limit:
            self.arrived.append(self.waiting.popleft())


class Overflow(RuleBasedStateMachine):
    """Offers, receives and changes the limits at random, in process, where the way holds an exact number."""

    @initialize(
        policy=st.sampled_from(["block", "drop_newest", "drop_oldest"]),
        send_limit=st.integers(1, 4),
        recv_limit=st.integers(1, 4),
    )
    def connect(self, policy: str, send_limit: int, recv_limit: int) -> None:
        self.model = Model(policy, send_limit, recv_limit)
        self.sender = Socket({"socket.send_overflow": policy, "socket.send_queue_size": send_limit})
        self.receiver = Socket({"socket.recv_queue_size": recv_limit})
        self.receiver.dial(self.sender.listen(f"inproc://overflow-{next(_names)}").address)
        self.sender.wait_pipes(timeout=5)
        self.pipe: Pipe = next(iter(self.sender.pipes.values()))
        self.offered = self.received = self.refused = 0

    def settle(self) -> None:
        for _ in range(4):
            gevent.sleep(0)

    @rule(way=st.sampled_from(["send", "send_all", "send_to"]))
    def offer(self, way: str) -> None:
        number = self.offered
        self.offered += 1
        content = b"%d" % number
        accepted = self.model.offer(number)
        timed_out = False
        try:
            if way == "send_to":
                self.sender.send_to(self.pipe.path, content, timeout=0)
            else:
                getattr(self.sender, way)(content, timeout=0)
        except Timeout:
            timed_out = True
            self.refused += 1
            if way == "send_all":
                # To the pipe that has not got it, the message is lost.
                self.model.dropped.append(number)
                self.refused -= 1
        assert timed_out == (self.model.policy == "block" and not accepted)
        self.settle()

    @rule()
    def receive(self) -> None:
        expected = self.model.take()
        try:
            number: int | None = int(self.receiver.recv(timeout=0))
            self.received += 1
        except Timeout:
            number = None
        assert number == expected
        self.settle()

    @rule(limit=st.integers(1, 5))
    def change_send_limit(self, limit: int) -> None:
        self.model.send_limit = limit
        self.sender.set_option("socket.send_queue_size", limit)
        self.settle()

    @rule(limit=st.integers(1, 5))
    def change_recv_limit(self, limit: int) -> None:
        self.model.recv_limit = limit
        self.receiver.set_option("socket.recv_queue_size", limit)
        self.model.refill()
        self.settle()

    @invariant()
    def the_queues_hold_what_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.receiver.queued == len(self.model.arrived)
        assert self.pipe.queued == len(self.model.waiting)

    @invariant()
    def every_message_is_somewhere(self) -> None:
        if not hasattr(self, "model"):
            return
        dropped = sum(self.sender.counters.drops.values())
        assert dropped == len(self.model.dropped)
        assert self.offered == self.received + self.receiver.queued + self.pipe.queued + dropped + self.refused

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        rest = list(self.model.arrived) + list(self.model.waiting)
        try:
            assert [int(self.receiver.recv(timeout=5)) for _ in rest] == rest
        finally:
            self.sender.close(linger=0)
            self.receiver.close(linger=0)


Overflow.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestOverflow = Overflow.TestCase


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_accepted_and_dropped_make_offered_also_over_a_connection(address: str, policy: str) -> None:
    with (
        Socket({"socket.send_overflow": policy, "socket.send_queue_size": 8}) as sender,
        Socket({"socket.recv_queue_size": 4}) as receiver,
    ):
        receiver.dial(sender.listen(address).address)
        sender.wait_pipes(timeout=5)
        (pipe,) = sender.pipes.values()
        for number in range(400):
            content = b"%d " % number + bytes(40_000)
            match number % 3:
                case 0:
                    sender.send(content)
                case 1:
                    sender.send_all(content)
                case 2:
                    sender.send_to(pipe.path, content)
            if number % 7 == 0:
                gevent.sleep(0)
        dropped = sender.counters.drops["overflow"]
        assert dropped > 0
        received = [int(receiver.recv(timeout=5).split()[0]) for _ in range(400 - dropped)]
        assert received == sorted(set(received))
        wait_until(lambda: not pipe.queued)
        assert sender.counters.messages_sent == len(received)
        assert receiver.queued == 0


def test_disconnect_counts_what_was_lost_with_the_pipe(address: str) -> None:
    options = {"socket.send_overflow": "disconnect", "socket.send_queue_size": 8}
    with Socket(options) as sender, Socket({"socket.recv_queue_size": 4}) as receiver:
        receiver.dial(sender.listen(address).address, {"connector.dialer.reconnect": False})
        sender.wait_pipes(timeout=5)
        (pipe,) = sender.pipes.values()
        offered = 0
        while not pipe.closed:
            sender.send_all(b"%d " % offered + bytes(40_000))
            offered += 1
        drops = sender.counters.drops
        assert drops["overflow"] == 1
        assert pipe.counters.messages_sent + drops["disconnect"] + drops["overflow"] == offered
