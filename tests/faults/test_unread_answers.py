"""Peers that ask and do not read the answers: a server that answers one peer after the other goes on for the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import gevent
import pytest

from gmultisocket import Pipe, Socket
from gmultisocket.errors import BrokenPath, Timeout
from gmultisocket.testing import wait_until

#: Larger than what the kernel's buffers of a connection on the loopback hold, after some answers.
ANSWER = bytes(100_000)
DOES_NOT_READ = {"socket.recv_queue_size": 1}
SLOW = "it does not read what is sent to it (socket.send_to_patience)"


@contextmanager
def server(options: dict[str, object] | None = None) -> Iterator[Socket]:
    """A server as the pages show it: it answers everybody, one after the other."""
    with Socket(options) as sock:

        def serve() -> None:
            for message in sock:
                with suppress(BrokenPath):
                    sock.send_to(message.source, ANSWER)

        greenlet = gevent.spawn(serve)
        try:
            yield sock
        finally:
            greenlet.kill()


def ask_and_not_read(address: str, stack: ExitStack) -> Socket:
    """Return a peer that has asked for far more than it takes."""
    peer = stack.enter_context(Socket({**DOES_NOT_READ, "connector.dialer.reconnect": False}))
    peer.dial(address)
    with suppress(Timeout):
        for _ in range(200):
            peer.send(b"more", timeout=0.1)
    return peer


def test_peers_that_ask_and_do_not_read_do_not_stop_a_server_for_others(address: str, transport: str) -> None:
    if transport == "inproc":
        pytest.skip("a peer in the same process is part of the program")
    with server() as sock, ExitStack() as stack:
        where = sock.listen(address).address
        reasons: list[str] = []
        sock.on_pipe(lambda event: reasons.append(event.reason) if event.kind == "remove" else None)
        for _ in range(5):
            ask_and_not_read(where, stack)
        with Socket() as honest:
            honest.dial(where)
            for _ in range(20):
                honest.send(b"please")
                assert honest.recv(timeout=20) == ANSWER
            wait_until(lambda: reasons.count(SLOW) == 5, timeout=20)
            assert len(sock.pipes) == 1
        assert sock.counters.drops["disconnect"]


def closed_for_slowness(pipe: Pipe) -> bool:
    return pipe.closed and pipe.reason == SLOW


def test_with_a_patience_of_0_a_server_waits_for_ever_as_the_go_code_does() -> None:
    with server({"socket.send_to_patience": 0.0}) as sock, ExitStack() as stack:
        slow = ask_and_not_read(sock.listen("tcp://127.0.0.1:0").address, stack)
        (pipe,) = sock.pipes.values()
        wait_until(lambda: pipe.full)
        with gevent.Timeout(2, False):
            wait_until(lambda: pipe.closed, timeout=5)
        assert not pipe.closed
        # It goes on where it was once the peer reads.
        for _ in range(100):
            assert slow.recv(timeout=5) == ANSWER


def test_a_call_with_a_timeout_obeys_that_alone() -> None:
    with Socket({"socket.send_to_patience": 0.01}) as sock, ExitStack() as stack:
        slow = stack.enter_context(Socket(DOES_NOT_READ))
        slow.dial(sock.listen("tcp://127.0.0.1:0").address)
        slow.send(b"me")
        source = sock.recv_msg(timeout=5).source
        with pytest.raises(Timeout):
            while True:
                sock.send_to(source, ANSWER, timeout=0.2)
        (pipe,) = sock.pipes.values()
        assert not pipe.closed and pipe.full
        with pytest.raises(BrokenPath):
            sock.send_to(source, ANSWER)
        assert closed_for_slowness(pipe)


def test_a_peer_that_reads_again_in_time_keeps_its_pipe_and_misses_nothing() -> None:
    with Socket({"socket.send_to_patience": 30.0}) as sock, ExitStack() as stack:
        slow = stack.enter_context(Socket(DOES_NOT_READ))
        slow.dial(sock.listen("tcp://127.0.0.1:0").address)
        slow.send(b"me")
        source = sock.recv_msg(timeout=5).source
        sender = gevent.spawn(lambda: [sock.send_to(source, b"%d" % number + ANSWER) for number in range(200)])
        (pipe,) = sock.pipes.values()
        wait_until(lambda: pipe.full)
        assert [int(slow.recv(timeout=5).rstrip(b"\0")) for _ in range(200)] == list(range(200))
        sender.get()
        assert not pipe.closed


def test_a_peer_of_the_same_process_is_waited_for() -> None:
    with Socket({"socket.send_to_patience": 0.01}) as sock, Socket(DOES_NOT_READ) as slow:
        slow.dial(sock.listen("inproc://waits").address)
        slow.send(b"me")
        source = sock.recv_msg(timeout=5).source
        sender = gevent.spawn(lambda: [sock.send_to(source, b"%d" % number) for number in range(200)])
        (pipe,) = sock.pipes.values()
        wait_until(lambda: pipe.full)
        with gevent.Timeout(0.5, False):
            sender.join()
        assert [int(slow.recv(timeout=5)) for _ in range(200)] == list(range(200))
        assert not pipe.closed
