"""What one sends, all neighbours get, once, and nobody else."""

from __future__ import annotations

from itertools import combinations

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import Timeout
from gmultisocket.protocol import Bus
from gmultisocket.testing import wait_until
from gmultisocket.wire import TO_ALL
from tests.protocol.net import Net

LONG = 20.0


def test_in_a_mesh_of_five_everyone_gets_each_message_once(direct: Net) -> None:
    members = [Bus() for _ in range(5)]
    addresses = [member.listen(direct.address()).address for member in members]
    for (_, listening), (dialing, _) in combinations(list(zip(members, addresses, strict=True)), 2):
        dialing.dial(listening)
    for member in members:
        member.wait_pipes(4, LONG)
    for number, member in enumerate(members):
        assert member.send(b"from %d" % number) == 4
    for number, member in enumerate(members):
        expected = sorted(b"from %d" % other for other in range(5) if other != number)
        assert sorted(member.recv(LONG) for _ in range(4)) == expected
        with pytest.raises(Timeout):
            member.recv(0.01)
    for member in members:
        member.close()


def test_nothing_is_forwarded(direct: Net) -> None:
    with Bus() as left, Bus() as middle, Bus() as right:
        direct.connect(middle, left, right)
        assert left.send(b"to the middle") == 1
        assert middle.recv(LONG) == b"to the middle"
        right.send(b"another")
        assert middle.recv(LONG) == b"another"
        for bus in (left, right):
            with pytest.raises(Timeout):
                bus.recv(0.01)


def test_members_on_both_sides_of_switches_hear_each_other(net: Net) -> None:
    with Bus() as hub, Bus() as one, Bus() as two:
        net.connect(hub, one, two)
        hub.send(b"down")
        assert (one.recv(LONG), two.recv(LONG)) == (b"down", b"down")
        one.send(b"up")
        two.send(b"up")
        assert [hub.recv(LONG) for _ in range(2)] == [b"up", b"up"]


def test_a_bus_speaks_the_wire_as_written_by_hand(net: Net) -> None:
    with Bus() as bus, Socket() as by_hand:
        net.connect(bus, by_hand)
        bus.send(b"news")
        message = by_hand.recv_msg(LONG)
        assert (message.flags, message.content) == (TO_ALL, b"news")
        by_hand.send_all(b"more news")
        assert bus.recv(LONG) == b"more news"


def test_a_neighbour_that_does_not_keep_up_misses_messages_and_the_others_do_not(direct: Net) -> None:
    with Bus() as bus, Bus() as reader, Bus({"socket.recv_queue_size": 1}) as stuck:
        direct.connect(bus, reader, stuck)
        reading = gevent.spawn(list, reader)
        sent = 0
        while not bus.counters.drops.get("overflow"):
            bus.send(b"%d " % sent + bytes(10_000))
            sent += 1
            wait_until(lambda sent=sent: reader.counters.messages_received == sent, LONG)  # type: ignore[misc]
        assert bus.counters.drops == {"overflow": 1}
        reader.close()
        assert len(reading.get(timeout=LONG)) == sent
        stuck.close(0)
        bus.close(0)


def test_with_block_the_sender_waits_instead(direct: Net) -> None:
    with Bus({"socket.send_overflow": "block"}) as bus, Bus({"socket.recv_queue_size": 1}) as stuck:
        direct.connect(bus, stuck)
        with pytest.raises(Timeout):
            while True:
                bus.send(bytes(100_000), 0.05)
        stuck.close(0)
        bus.close(0)
