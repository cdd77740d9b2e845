"""Work that is handed out: to whom, how much, and what is lost with a puller."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import NotSupported, Timeout
from gmultisocket.protocol import Pull, Push
from gmultisocket.testing import wait_until
from tests import addresses
from tests.faults.process import spawn_script
from tests.protocol.net import Net

LONG = 20.0
#: A puller that does no more than ten pieces of work.
PULLS_TEN = """
import sys
from gmultisocket.protocol import Pull
pull = Pull()
pull.dial(sys.argv[1])
took = [int(pull.recv(20).split(b" ")[0]) for _ in range(10)]
assert took == list(range(10))
print("took 0 to 9", flush=True)
sys.stdin.read()
"""
#: Buffers that hold a few messages of 10,000 bytes.
SMALL = {
    "socket.send_queue_size": 1,
    "socket.recv_queue_size": 1,
    "transport.tcp.write_buffer": 10_000,
    "transport.tcp.read_buffer": 10_000,
}


def test_everything_that_is_pushed_is_pulled_once(net: Net) -> None:
    with Push() as push, Pull() as one, Pull() as two, Pull() as three:
        net.connect(push, one, two, three)
        pullers = [gevent.spawn(list, pull) for pull in (one, two, three)]
        contents = [b"%d" % number for number in range(300)]
        for content in contents:
            push.send(content, LONG)
        wait_until(lambda: sum(pull.counters.messages_received for pull in (one, two, three)) == 300, LONG)
        for pull in (one, two, three):
            pull.close()
        shares = [puller.get(timeout=LONG) for puller in pullers]
        assert sorted(sum(shares, [])) == sorted(contents)
        assert all(shares), "somebody was left out"
        assert all(share == sorted(share, key=int) for share in shares), "in order over one pipe"


def test_many_may_push_to_one(net: Net) -> None:
    with Pull() as pull, Push() as one, Push() as two:
        net.connect(pull, one, two)
        pulling = gevent.spawn(lambda: [int(pull.recv(LONG)) for _ in range(200)])
        for push in (one, two):
            for number in range(100):
                push.send(b"%d" % number, LONG)
        assert sorted(pulling.get(timeout=LONG)) == sorted([*range(100)] * 2)


def test_a_push_and_a_pull_speak_the_wire_as_written_by_hand(net: Net) -> None:
    with Push() as push, Socket() as by_hand:
        net.connect(push, by_hand)
        push.send(b"work", LONG)
        message = by_hand.recv_msg(LONG)
        assert (message.flags, message.content) == (0, b"work")
    with Pull() as pull, Socket() as by_hand:
        net.connect(pull, by_hand)
        by_hand.send(b"work", LONG)
        assert pull.recv(LONG) == b"work"


def test_pullers_of_different_speed_share_by_ability(direct: Net) -> None:
    """The fastest takes all that the others have no hands for; the one that never takes keeps its buffers full."""
    taken = {"fast": 0, "slow": 0}
    with Push(SMALL) as push, Pull(SMALL) as fast, Pull(SMALL) as slow, Pull(SMALL) as asleep:
        direct.connect(push, fast, slow, asleep)

        def work(pull: Pull, name: str, rests: int) -> None:
            for _ in pull:
                taken[name] += 1
                for _ in range(rests):
                    gevent.sleep(0.001)

        workers = [gevent.spawn(work, fast, "fast", 0), gevent.spawn(work, slow, "slow", 5)]
        for _ in range(1000):
            push.send(bytes(10_000), LONG)
        held = 1000 - sum(taken.values())
        assert held < 200, "what is in the buffers of the three"
        assert taken["fast"] > 4 * taken["slow"] > 0
        for pull in (fast, slow, asleep):
            pull.close(0)
        gevent.joinall(workers, raise_error=True)
        push.close(0)


@pytest.mark.parametrize("transport", ["ipc", "tcp", "ws"])
def test_a_puller_that_is_killed_loses_at_most_what_was_on_its_wire(transport: str, tmp_path: Path) -> None:
    with Push() as push, Pull() as other:
        address = push.listen(addresses.TRANSPORTS[transport](tmp_path)).address
        with spawn_script(PULLS_TEN, address) as doomed:
            for sent in range(10):
                push.send(b"%d " % sent + bytes(100_000), LONG)
            assert doomed.stdout.readline() == b"took 0 to 9\n"
            with pytest.raises(Timeout):
                while True:
                    sent += 1
                    push.send(b"%d " % sent + bytes(100_000), 0.1)
            (pipe,) = push.pipes.values()
            queued = pipe.queued
            doomed.kill()
            wait_until(lambda: not push.pipes)
        other.dial(address)
        got = [int(other.recv(LONG).split(b" ")[0])]
        while got[-1] < sent - 1:
            got.append(int(other.recv(LONG).split(b" ")[0]))
        # All that were queued come, in order, but for the one of which a part had left.
        assert got == list(range(sent - len(got), sent))
        assert len(got) >= queued - 1 >= 63


def test_work_waits_for_a_puller(direct: Net) -> None:
    with Push() as push, Pull() as pull:
        sending = gevent.spawn(push.send, b"patient", LONG)
        gevent.sleep(0)
        direct.connect(push, pull)
        assert pull.recv(LONG) == b"patient"
        sending.get(timeout=LONG)


def test_iteration_over_a_closed_pull_gives_what_had_come(direct: Net) -> None:
    with Push() as push, Pull() as pull:
        direct.connect(push, pull)
        for number in range(10):
            push.send(b"%d" % number, LONG)
        wait_until(lambda: pull.socket.queued == 10)
        pull.close()
        assert list(pull) == [b"%d" % number for number in range(10)]


def test_the_sockets_themselves_refuse_the_wrong_direction() -> None:
    with Push() as push, Pull() as pull:
        with pytest.raises(NotSupported):
            push.socket.recv(0)
        with pytest.raises(NotSupported):
            pull.socket.send(b"", 0)
