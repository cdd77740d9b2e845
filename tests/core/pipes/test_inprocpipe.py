"""Pipes inside the process: messages change hands whole, by the rules of the wire."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from gmultisocket import Message, Socket
from gmultisocket.errors import ConnectionRefused, Timeout
from gmultisocket.testing import wait_until
from gmultisocket.wire import TO_ALL, TO_DEST, pack_id

QUICK = {"connector.dialer.min_reconnect_time": 0.001, "connector.dialer.max_reconnect_time": 0.01}


def test_a_content_is_handed_over_and_not_copied() -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("inproc://same").address)
        content = b"the very same object"
        client.send(content)
        assert server.recv(timeout=5) is content


def test_the_receiving_rules_of_the_wire_apply() -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("inproc://rules").address)
        (near,), (far,) = client.pipes.values(), server.pipes.values()
        origin = pack_id(7)
        client.send_msg(Message(TO_DEST, ttl=5, source=origin, destination=near.path + pack_id(9), content=b"x"))
        assert server.recv_msg(timeout=5) == Message(TO_DEST, 4, far.path + origin, pack_id(9), b"x", far.id)


def test_what_was_sent_before_the_listener_accepted_arrives_in_order() -> None:
    accept = Event()
    with Socket() as server, Socket({"socket.send_queue_size": 3}) as client:
        server.set_negotiator(lambda negotiation: accept.wait())
        client.dial(server.listen("inproc://early").address)
        client.send(b"one")
        client.send_all(b"two")
        waiting = [gevent.spawn(client.send, b"three"), gevent.spawn(client.send, b"four")]
        gevent.sleep(0)
        assert [sender.ready() for sender in waiting] == [True, False]
        accept.set()
        assert [server.recv(timeout=5) for _ in range(4)] == [b"one", b"two", b"three", b"four"]
        gevent.joinall(waiting, raise_error=True)


def test_a_message_that_the_peer_refuses_closes_the_pipe_and_costs_nobody_else_anything() -> None:
    """As over a connection, where the peer hangs up: what was queued behind it goes by the next pipe."""
    accept = Event()
    with Socket({"connector.pipe.max_recv_content_length": 10}) as server, Socket(QUICK) as client:
        server.set_negotiator(lambda negotiation: accept.wait())
        client.dial(server.listen("inproc://refuse").address)
        for content in (b"first", bytes(11), b"second", b"third"):
            client.send(content)
        client.send_all(b"to all is lost with its pipe")
        (refused,) = client.pipes.values()
        accept.set()
        assert server.recv(timeout=5) == b"first"
        messages = [server.recv_msg(timeout=5) for _ in range(2)]
        assert [message.content for message in messages] == [b"second", b"third"]
        assert refused.closed and "11 bytes" in refused.reason
        # The way back is by the pipe that is open now.
        server.send_to(messages[0].source, b"reply")
        assert client.recv(timeout=5) == b"reply"
        assert client.counters.drops == {"refused": 1, "disconnect": 1}
        assert client.counters.messages_sent == server.counters.messages_received == 3


def test_a_message_over_the_peers_limit_is_refused_also_when_it_is_sent_later() -> None:
    with Socket({"connector.pipe.max_recv_content_length": 10}) as server, Socket(QUICK) as client:
        client.dial(server.listen("inproc://later").address)
        server.wait_pipes(timeout=5)
        (pipe,) = client.pipes.values()
        client.send(bytes(11))
        assert pipe.closed and client.counters.drops == {"refused": 1}
        client.send(b"good", timeout=5)
        assert server.recv(timeout=5) == b"good"


def test_both_ends_close_together() -> None:
    with Socket() as server, Socket({"connector.dialer.reconnect": False}) as client:
        client.dial(server.listen("inproc://ends").address)
        (near,), (far,) = client.pipes.values(), server.pipes.values()
        near.close("enough")
        assert far.closed
        assert (near.reason, far.reason) == ("enough", "the peer closed the connection")


def test_an_inproc_peer_that_closes_is_noticed_by_the_other_end() -> None:
    with Socket() as client, Socket({"socket.recv_queue_size": 1}) as server:
        server.listen("inproc://noticed")
        client.dial("inproc://noticed", {"connector.dialer.reconnect": False})
        for number in range(60):
            client.send(b"%d" % number, timeout=5)
        server.close()
        assert not client.pipes
        assert client.send_all(b"nobody") == 0
        with pytest.raises(Timeout):
            client.send(b"nobody", timeout=0)


def test_a_name_is_free_again_when_its_listener_is_closed() -> None:
    with Socket() as server, Socket() as client:
        for _ in range(3):
            server.listen("inproc://again")
            client.dial("inproc://again", {"connector.dialer.reconnect": False})
            server.stop_listen("inproc://again")
            with pytest.raises(ConnectionRefused):
                client.dial("inproc://again")


def test_many_clients_need_no_greenlet_each() -> None:
    with Socket() as server, Socket({"socket.recv_queue_size": 1000}) as clients:
        where = server.listen("inproc://many").address
        for _ in range(500):
            clients.dial(where)
        server.wait_pipes(500, timeout=5)
        assert server.send_all(b"news") == 500
        assert clients.queued == 500
        assert not any(hasattr(pipe, "_reader") for pipe in [*server.pipes.values(), *clients.pipes.values()])


def test_to_all_messages_are_counted_where_they_are_sent_and_where_they_arrive() -> None:
    with Socket() as server, Socket() as one, Socket() as other:
        where = server.listen("inproc://count").address
        one.dial(where)
        other.dial(where)
        server.wait_pipes(2, timeout=5)
        for _ in range(10):
            server.send_msg(Message(TO_ALL, content=b"12345"))
        wait_until(lambda: one.queued == other.queued == 10)
        assert (server.counters.messages_sent, server.counters.bytes_sent) == (20, 100)
        assert (one.counters.messages_received, one.counters.bytes_received) == (10, 50)


@pytest.mark.parametrize("count", [5, 30], ids=["one waits", "many wait"])
def test_messages_that_had_to_wait_are_counted_by_their_bytes_when_they_are_delivered(count: int) -> None:
    with Socket({"socket.recv_queue_size": 4}) as server, Socket({"socket.send_queue_size": 64}) as client:
        client.dial(server.listen("inproc://waiting").address)
        for number in range(count):
            client.send(bytes(number + 1))
        # Part of the queue at a time, and then the rest of it.
        assert [len(server.recv(timeout=5)) for _ in range(count)] == [number + 1 for number in range(count)]
        assert (client.counters.messages_sent, client.counters.bytes_sent) == (count, sum(range(count + 1)))
