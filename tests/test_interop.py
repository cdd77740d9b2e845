"""Bytes that the Go code made, over a real connection: what arrives from them, and what goes back."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from gevent import socket as gsocket

from gmultisocket import Socket
from gmultisocket.wire import TO_ALL, TO_DEST, TO_ONE, pack_id
from tests.cases import every_case

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())

#: Frames for a user: Go's own decoder took them, and they are no internal messages.
ROWS = {
    f"row {number}": row
    for number, row in enumerate(VECTORS["decode"])
    if "error" not in row and not row["flags"] & 0x14
}


def path(ids: list[int]) -> bytes:
    return b"".join(map(pack_id, ids))


def read(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = peer.recv(size - len(data))
        assert piece, f"the stream ended after {data!r}"
        data += piece
    return data


def test_a_frame_of_the_go_code_arrives_over_tcp_and_the_reply_finds_back() -> None:
    with every_case() as case:
        for name, row in ROWS.items():
            with case(name):
                check_row(row)


def check_row(row: dict[str, Any]) -> None:
    frame = bytes.fromhex(row["frame_hex"])
    with Socket({"connector.pipe.max_recv_content_length": 0}) as server:
        port = int(server.listen("tcp://127.0.0.1:0").address.rpartition(":")[2])
        with gsocket.create_connection(("127.0.0.1", port)) as peer:
            peer.settimeout(10)
            peer.sendall(frame)
            message = server.recv_msg(timeout=10)

            (pipe_id,) = server.pipes
            assert message.content == bytes.fromhex(row["content_hex"])
            assert message.source == path([pipe_id, *row["source"][1:]])
            assert message.destination == path(row["destination"])
            assert (message.flags, message.ttl, message.hops) == (row["flags"], row["ttl"], row["hops"])

            server.send_to(message.source, b"reply")
            ids = row["hops"]
            header = bytes([TO_DEST, 16, 0, ids]) + (5).to_bytes(4, "big")
            assert read(peer, len(header) + 4 * ids + 5) == header + message.source + b"reply"


def test_what_a_socket_sends_is_what_the_wire_says() -> None:
    with Socket() as server:
        port = int(server.listen("tcp://127.0.0.1:0").address.rpartition(":")[2])
        with gsocket.create_connection(("127.0.0.1", port)) as peer:
            peer.settimeout(10)
            server.wait_pipes(1, timeout=10)
            server.send(b"one")
            server.send_all(b"all!")
            expected = bytes([TO_ONE, 16, 0, 0, 0, 0, 0, 3]) + b"one" + bytes([TO_ALL, 16, 0, 0, 0, 0, 0, 4]) + b"all!"
            assert read(peer, len(expected)) == expected
