"""A message whose paths are as long as the wire can say: the next socket would have to refuse it, and its pipe."""

from __future__ import annotations

from struct import pack

import pytest
from gevent import socket as gsocket

from gmultisocket import Socket, Switch
from gmultisocket.errors import MessageDropped
from gmultisocket.testing import wait_until
from gmultisocket.wire import MAX_IDS, TO_ALL, TO_DEST, TO_ONE, Message


@pytest.mark.parametrize(("hops", "distance"), [(254, 0), (100, 154), (0, 254)])
def test_a_switch_drops_a_message_that_its_next_peer_would_close_the_pipe_for(hops: int, distance: int) -> None:
    with Socket() as back, Socket() as front, Socket() as server, Switch(back, front) as switch:
        server.dial(back.listen("tcp://127.0.0.1:0").address)
        port = int(front.listen("tcp://127.0.0.1:0").address.rpartition(":")[2])
        with gsocket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(pack(">BBBBI", TO_ONE, 9, hops, distance, 0) + b"path" * (hops + distance))
            client.sendall(pack(">BBBBI", TO_ONE, 9, 0, 0, 4) + b"good")
            assert server.recv(timeout=5) == b"good"
        assert switch.drops == {"hops": 1}
        wait_until(lambda: not front.pipes)
        assert len(server.pipes) == 1


@pytest.mark.parametrize(
    ("flags", "hops", "distance"),
    [(TO_ONE, MAX_IDS, 0), (TO_ALL, 100, 155), (TO_ONE, 200, 200), (TO_DEST, MAX_IDS, 1), (TO_DEST, 100, 156)],
)
def test_a_message_with_too_many_ids_is_not_sent(flags: int, hops: int, distance: int) -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        ids = next(iter(client.pipes.values())).path * MAX_IDS
        with pytest.raises(MessageDropped) as caught:
            client.send_msg(Message(flags=flags, source=ids[: 4 * hops], destination=ids[: 4 * distance]))
        assert caught.value.reason == "hops"
        client.send(b"good")
        assert server.recv(timeout=5) == b"good"


@pytest.mark.parametrize(("flags", "hops", "distance"), [(TO_ONE, 254, 0), (TO_ALL, 100, 154), (TO_DEST, 100, 155)])
def test_the_longest_paths_arrive(flags: int, hops: int, distance: int) -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        ids = next(iter(client.pipes.values())).path * MAX_IDS
        client.send_msg(Message(flags=flags, source=ids[: 4 * hops], destination=ids[: 4 * distance]))
        message = server.recv_msg(timeout=5)
        assert (message.hops, message.distance) == (hops + 1, distance - (flags == TO_DEST))
