"""Messages to a destination: how long they may be."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import MessageTooLong
from gmultisocket.protocol import Rep, Req
from gmultisocket.wire import TO_DEST, Message

LONG = 10.0
RAISED = {"connector.pipe.max_recv_content_length": 1 << 20}
BIG = bytes(500_000)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "ws://127.0.0.1:0/", "inproc://raised"])
def test_a_pipe_may_be_sent_as_long_a_reply_as_it_may_receive(address: str) -> None:
    with Socket() as server, Socket(RAISED) as client:
        client.dial(server.listen(address, RAISED).address)
        client.send(BIG)
        asked = server.recv_msg(timeout=LONG)
        server.send_to(asked.source, asked.content)
        server.send_msg(Message(TO_DEST, destination=asked.source, content=BIG))
        assert [client.recv(timeout=LONG) for _ in range(2)] == [BIG, BIG]
        with pytest.raises(MessageTooLong, match="over the limit of 1048576 bytes") as caught:
            server.send_to(asked.source, bytes((1 << 20) + 1))
        assert caught.value.limit == 1 << 20


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_rep_may_reply_what_its_listener_may_receive(kind: type) -> None:
    with Rep(kind) as rep, Req(RAISED) as req:
        req.dial(rep.listen("tcp://127.0.0.1:0", RAISED).address)
        serving = gevent.spawn(rep.serve_forever)
        assert req.request(BIG, timeout=LONG) == BIG
        rep.close()
        serving.join()


@pytest.mark.parametrize("call", ["send", "send_all"])
def test_a_message_to_one_or_all_keeps_to_the_limit_of_the_socket(call: str) -> None:
    with Socket() as server, Socket(RAISED) as client:
        client.dial(server.listen("tcp://127.0.0.1:0", RAISED).address)
        server.wait_pipes(1, timeout=LONG)
        with pytest.raises(MessageTooLong) as caught:
            getattr(server, call)(BIG)
        text = str(caught.value)
        assert "socket.max_send_content_length here" in text
        assert "connector.pipe.max_recv_content_length at the peer" in text


@pytest.mark.parametrize(
    ("socket_options", "listener_options", "limit"),
    [
        ({"socket.max_send_content_length": 1000}, RAISED, 1000),
        ({}, {"connector.pipe.max_recv_content_length": 10}, 131072),
        ({}, {"connector.pipe.max_recv_content_length": 0}, 2**32 - 1),
    ],
)
def test_the_limit_of_a_path(socket_options: Any, listener_options: Any, limit: int) -> None:
    with Socket(socket_options) as server, Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0", listener_options).address)
        client.send(b"hello")
        source = server.recv_msg(timeout=LONG).source
        core = server._for_protocol()
        if limit <= 131072:
            core.check_content(bytes(limit), source)
            with pytest.raises(MessageTooLong):
                core.check_content(bytes(limit + 1), source)
        else:
            core.check_content(BIG, source)
