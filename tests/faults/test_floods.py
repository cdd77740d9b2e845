"""One peer that floods a socket with what costs it little: between two looks of the loop at its sockets a bounded
number of frames is dealt with, so that no other peer and no timer has to wait. ``benchmarks/floods.py`` measures the
times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent import ssl as gssl

from gmultisocket import Socket
from gmultisocket.core.pipes.bytespipe import BATCH
from gmultisocket.core.pipes.framedpipe import FramedPipe
from gmultisocket.loop import yielding
from gmultisocket.protocol import Pub
from gmultisocket.testing import wait_until
from gmultisocket.transport.wsframes import FrameCodec
from gmultisocket.wire import CONTROL, INTERNAL, TO_ALL
from tests import certificates
from tests.faults.peers import frame
from tests.looks import Looks
from tests.transport import wspeers

#: Frames of one flood. All of them are here before the first is read.
COUNT = 8000

PING = frame(b"\x01", INTERNAL, ttl=1)
TOGGLE = frame(b"\x01a.b", CONTROL | TO_ALL) + frame(b"\x00a.b", CONTROL | TO_ALL)
GARBAGE = frame(b"\x09none", CONTROL | TO_ALL)


def packets(data: bytes, unit: bytes) -> bytes:
    """Return the units of a flood as WebSocket messages."""
    return wspeers.frame(2, unit) * (len(data) // len(unit))


@contextmanager
def flooder(address: str) -> Iterator[Callable[[bytes], None]]:
    """Connect to a listener; gives what sends bytes as they are."""
    if address.startswith("ws"):
        with wspeers.upgraded(address) as peer:
            yield peer.send
        return
    kind, where = address.split("://")
    if kind == "ipc":
        sock: Any = gsocket.socket(gsocket.AF_UNIX)
        sock.connect(where)
    else:
        host, _, port = where.rpartition(":")
        sock = gsocket.create_connection((host, int(port)))
    if kind == "tls+tcp":
        context = gssl.SSLContext(gssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = gssl.CERT_NONE
        sock = context.wrap_socket(sock)
    with sock:
        yield sock.sendall


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[Counter[int]]:
    """Count the calls of a method by the look of the loop that they come after. Greenlets yield at every occasion."""
    monkeypatch.setattr(yielding, "MAX_TURN", 0.0)
    calls: Counter[int] = Counter()
    method = getattr(owner, name)
    with Looks() as looks:

        def counted(*arguments: Any) -> Any:
            calls[looks.count] += 1
            return method(*arguments)

        monkeypatch.setattr(owner, name, counted)
        yield calls


@pytest.fixture(params=["tcp", "tls", "ipc", "ws"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address at which a plain peer can connect."""
    query = certificates.listen_query(tmp_path)
    return {
        "tcp": "tcp://127.0.0.1:0",
        "tls": f"tls+tcp://127.0.0.1:0?{query}",
        "ipc": f"ipc://{tmp_path}/flood",
        "ws": "ws://127.0.0.1:0",
    }[request.param]


def test_pings(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Socket() as sock, counting(monkeypatch, FramedPipe, "_internal") as calls:
        address = sock.listen(remote).address
        with flooder(address) as send:
            flood = PING * COUNT
            sender = gevent.spawn(send, packets(flood, PING) if address.startswith("ws") else flood)
            wait_until(lambda: sum(calls.values()) == COUNT, timeout=30)
            sender.get()
    assert max(calls.values()) <= 2 * BATCH


@pytest.mark.parametrize("kind", ["pongs", "fragments"])
def test_frames_of_a_websocket_that_are_no_messages(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    middle = wspeers.frame(10) if kind == "pongs" else wspeers.frame(0, fin=False)
    flood = wspeers.frame(2, frame(b"x"), fin=False) + middle * COUNT + wspeers.frame(0)
    with Socket() as sock, counting(monkeypatch, FrameCodec, "_take_frame") as calls:
        with flooder(sock.listen("ws://127.0.0.1:0").address) as send:
            sender = gevent.spawn(send, flood)
            assert sock.recv(timeout=30) == b"x"
            sender.get()
    assert sum(calls.values()) >= COUNT
    assert max(calls.values()) <= 1100


@pytest.mark.parametrize("unit", [TOGGLE, GARBAGE], ids=["toggles", "garbage"])
def test_messages_that_a_protocol_looks_at(unit: bytes, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pub() as pub, counting(monkeypatch, pub.socket._connector.receiver, "filter") as calls:
        address = pub.listen(remote).address
        with flooder(address) as send:
            one = frame(b"\x01a.b", CONTROL | TO_ALL)
            flood = unit * (COUNT * len(one) // len(unit))
            data = flood
            if address.startswith("ws"):
                size = len(unit) // 2 if unit == TOGGLE else len(unit)
                data = b"".join(wspeers.frame(2, unit[start : start + size]) for start in range(0, len(unit), size))
                data *= len(flood) // len(unit)
            count = (len(flood) // len(unit)) * (2 if unit == TOGGLE else 1)
            sender = gevent.spawn(send, data)
            wait_until(lambda: sum(calls.values()) >= count, timeout=30)
            sender.get()
    assert max(calls.values()) <= 2 * BATCH
