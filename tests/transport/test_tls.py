"""tls+tcp: what TLS does on a connection, and around one. Certificates and their errors: ``test_tlscontext.py``."""

from __future__ import annotations

import ast
import errno
import os
import random
import re
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent import ssl as gssl

from gmultisocket import Socket
from gmultisocket.errors import ConnectionFailed, MultiSocketError, TLSError
from gmultisocket.testing import Bench, StreamTransportChecks, wait_until
from gmultisocket.testing._bench import attempt, fill, finish, never_switches
from gmultisocket.transport import tls, tlscontext
from gmultisocket.transport.tls import TLSConnection
from gmultisocket.wire import TO_ALL, TO_ONE
from tests.certificates import authority, dial_options, listen_options


class TestTls(StreamTransportChecks):
    address = "tls+tcp://127.0.0.1:0"
    bad_addresses = ("tls+tcp://127.0.0.1", "tls+tcp://:80", "tls+tcp://127.0.0.1:65536", "tls+tcp://::1:80")
    dial_options = dial_options()
    listen_options = listen_options()
    # A TLS goodbye ends both directions for many peers.
    half_close = False


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextmanager
def connected(**options: Any) -> Iterator[tuple[TLSConnection, TLSConnection]]:
    """Connect a dialer and a listener, and give their connections."""
    with Bench("tls+tcp://127.0.0.1:0", dial_options() | options, listen_options() | options, 10.0) as bench:
        one, other = bench.connect_streams()
        assert isinstance(one, TLSConnection) and isinstance(other, TLSConnection)
        yield one, other


@contextmanager
def plain_tls_peer(address: str) -> Iterator[ssl.SSLSocket]:
    """Connect to a listener with gevent's own TLS socket, which tells a goodbye from a mere end."""
    sock = gsocket.create_connection(("127.0.0.1", port_of(address)), timeout=10)
    context = gssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    with context.wrap_socket(sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as peer:
        yield peer


# What is used of gevent that its manual does not promise


def test_gevent_still_has_the_names_that_are_used_here() -> None:
    why = "gevent has changed: gmultisocket.transport.tls cannot work without this name"
    with connected() as (one, _):
        for name in ("read", "write", "shutdown"):
            assert callable(getattr(one._sock._sslobj, name, None)), f"_sslobj.{name}: {why}"
        assert one._sock._sock.gettimeout() == 0.0, f"the C socket must never wait: {why}"
        one.close()
        assert one._sock._sslobj is None, f"close() lets go of OpenSSL's side: {why}"


def test_no_other_names_of_gevents_own_are_used() -> None:
    used = set()
    for module in (tls, tlscontext):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
                if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                    used.add(node.attr)
    assert used == {"_sslobj", "_read_event", "_write_event"}


# Sending


def test_a_record_that_was_begun_is_finished_without_its_sender() -> None:
    """The kernel takes a part of a record; nothing more is sent; the peer still gets the whole of it."""
    with connected() as (one, other):
        sent = 0
        while not one._unfinished:
            sent += one.send(bytes(1000))
        assert other.read_exactly(sent) == bytes(sent)
        assert one._unfinished is None
        wait_until(lambda: one.unacknowledged() == 0)


def test_what_is_refused_while_a_record_is_unfinished_may_be_something_else_the_next_time() -> None:
    with connected() as (one, other):
        taken = fill(one)
        with pytest.raises(BlockingIOError):
            one.send(b"a" * 30_000)
        assert other.read_exactly(taken) == bytes(taken)
        one.write_all(b"b")
        assert other.recv(100) == b"b"


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
def test_dropping_from_the_queue_of_a_stuck_pipe_tears_no_frame(policy: str) -> None:
    small = {"transport.tcp.write_buffer": 8192, "transport.tcp.read_buffer": 8192}
    with Socket({"socket.send_overflow": policy, "socket.send_queue_size": 4}) as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options() | small)
        with plain_tls_peer(listener.address) as peer:
            server.wait_pipes(1, timeout=5)
            (pipe,) = server.pipes.values()
            sizes = random.Random(5)
            for number in range(3000):
                server.send(b"%6d" % number + bytes(sizes.randrange(3000)), timeout=0)
            dropped = pipe.counters.drops["overflow"]
            received = len(list(read_frames(peer, 3000 - dropped)))
            assert dropped and received == 3000 - dropped


def read_frames(peer: ssl.SSLSocket, count: int) -> Iterator[bytes]:
    """Yield the contents of frames without paths, checking that each begins where the one before has ended."""
    with peer.makefile("rb") as stream:
        for _ in range(count):
            head = stream.read(8)
            assert head[0] in (TO_ONE, TO_ALL) and head[1:4] == b"\x10\x00\x00", "a frame was torn"
            content = stream.read(int.from_bytes(head[4:], "big"))
            assert re.fullmatch(rb" *[0-9]+\0*", content)
            yield content


def test_a_write_that_needs_a_read_first_goes_on_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a renegotiation: OpenSSL sends a record when the reader has read what must come before."""
    with connected() as (one, other):
        write, needs = one._write, [True, True]

        def write_after_reads(data: bytes | memoryview) -> int:
            if needs:
                raise ssl.SSLWantReadError
            return write(data)

        monkeypatch.setattr(one, "_write", write_after_reads)
        reading = gevent.spawn(one.read_exactly, 2)
        gevent.sleep(0)
        assert one.send(b"a record") == 8
        sending = gevent.spawn(one.write_all, b" and more")
        for byte in (b"x", b"y"):
            gevent.sleep(0.02)
            assert not sending.ready() and one._unfinished == b"a record"
            needs.pop()
            other.write_all(byte)
        assert finish(reading, 5.0, "the reader") == b"xy"
        # The reader looks again only when it has something to read.
        reading = gevent.spawn(one.recv, 1)
        assert other.read_exactly(17) == b"a record and more"
        finish(sending, 5.0, "the writer")
        reading.kill()


def test_a_read_that_needs_a_write_first_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected() as (one, other):
        read, needs = one._read, [True, True]

        def read_after_writes(size: int) -> bytes:
            if needs:
                needs.pop()
                raise ssl.SSLWantWriteError
            return read(size)

        monkeypatch.setattr(one, "_read", read_after_writes)
        other.write_all(b"x")
        assert finish(gevent.spawn(one.recv, 10), 5.0, "recv()") == b"x"


def test_a_read_behind_a_whole_record_that_needs_a_write_first_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected() as (one, other):
        read, needs = one._read, [False, True]

        def read_after_writes(size: int) -> bytes:
            if needs and needs.pop(0):
                raise ssl.SSLWantWriteError
            return read(size)

        monkeypatch.setattr(one, "_read", read_after_writes)
        other.write_all(bytes(16384) + b"x")
        assert finish(gevent.spawn(one.read_exactly, 16385), 5.0, "read_exactly()")[-1:] == b"x"
        assert not needs


def test_a_record_that_tls_cannot_write_is_an_error_and_does_not_count_as_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: object) -> int:
        error = ssl.SSLError(1, "[SSL: PROTOCOL_IS_SHUTDOWN] protocol is shutdown")
        error.library, error.reason = "SSL", "PROTOCOL_IS_SHUTDOWN"
        raise error

    with connected() as (one, _), connected() as (full, _):
        monkeypatch.setattr(one, "_write", broken)
        for size in (5, 40_000):
            with pytest.raises(ConnectionError):
                one.send(bytes(size))
        # It has a record of which OpenSSL has written a part. Nothing may follow that part but the rest.
        fill(full)
        unfinished = full._unfinished
        assert unfinished is not None
        monkeypatch.setattr(full, "_write", broken)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                full.send(b"more")
            assert full._unfinished == unfinished


def test_an_error_behind_good_data_is_raised_by_every_further_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected() as (one, _):
        coming: list[bytes | OSError] = [bytes(16384), ConnectionResetError("reset"), b"behind the error"]

        def read(size: int) -> bytes:
            piece = coming.pop(0)
            if isinstance(piece, OSError):
                raise piece
            return piece

        monkeypatch.setattr(one, "_read", read)
        monkeypatch.setattr(one, "_dry", False)
        assert one.recv(1 << 18) == bytes(16384)
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                one.recv(1 << 18)


def test_several_buffers_are_sent_in_order_however_large_they_are() -> None:
    rng = random.Random(3)
    with connected() as (one, other):
        for sizes in ([8, 40_000], [0, 0, 5], [16383, 2], [16384, 1], [20_000, 20_000], [1], [8, 16376], [8, 16377]):
            buffers: list[bytes | memoryview] = [rng.randbytes(size) for size in sizes]
            whole = b"".join(buffers)
            taken = one.sendmsg(buffers)
            one.write_all(whole[taken:])
            assert other.read_exactly(len(whole)) == whole


# Receiving


def test_what_openssl_has_read_already_is_not_waited_for() -> None:
    """A short read leaves the rest of a record where the kernel does not know of it."""
    with connected() as (one, other):
        one.write_all(b"x" * 16384)
        pieces = [finish(gevent.spawn(other.recv, 100), 5.0, "recv() waits for the kernel") for _ in range(163)]
        assert {len(piece) for piece in pieces} == {100}
        assert len(other.recv(100)) == 84


def test_many_full_records_come_in_one_read() -> None:
    with connected() as (one, other):
        one.write_all(bytes(3 * 16384))
        wait_until(lambda: one.unacknowledged() == 0)
        assert len(other.recv(1 << 18)) > 16384


def test_full_speed_both_ways_at_once_changes_no_byte() -> None:
    block = random.Random(9).randbytes(1 << 20)
    with connected() as (one, other):

        def write(connection: TLSConnection) -> None:
            for number in range(64):
                connection.write_all(block[number:] + block[:number])

        def read(connection: TLSConnection) -> bool:
            return all(connection.read_exactly(len(block)) == block[number:] + block[:number] for number in range(64))

        readers = [gevent.spawn(read, connection) for connection in (one, other)]
        writers = [gevent.spawn(write, connection) for connection in (one, other)]
        gevent.joinall(writers + readers, timeout=50, raise_error=True)
        assert [reader.value for reader in readers] == [True, True]


# The end


def test_a_peer_is_told_that_the_stream_has_ended() -> None:
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        with plain_tls_peer(listener.address) as peer:
            server.wait_pipes(1, timeout=5)
            server.close()
            assert peer.recv(10) == b"", "without a goodbye this raises SSLEOFError"


@pytest.mark.parametrize("goodbye", [True, False])
def test_an_end_is_an_end_with_and_without_a_goodbye(goodbye: bool) -> None:
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        with plain_tls_peer(listener.address) as peer:
            server.wait_pipes(1, timeout=5)
            (pipe,) = server.pipes.values()
            peer.sendall(b"\x00\x10\x00\x00\x00\x00\x00\x05whole" + b"\x00\x10\x00\x00\x00\x00\x00\x05par")
            if goodbye:
                peer.settimeout(0)
                with pytest.raises(ssl.SSLWantReadError):
                    peer.unwrap()
            else:
                peer.shutdown(gsocket.SHUT_WR)
            assert server.recv(timeout=5) == b"whole"
            wait_until(lambda: pipe.closed)
            assert pipe.reason == "the peer closed the connection in the middle of a message"
            assert not server.queued


def test_a_record_that_was_tampered_with_closes_the_pipe_with_a_reason() -> None:
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        with plain_tls_peer(listener.address) as peer:
            server.wait_pipes(1, timeout=5)
            (pipe,) = server.pipes.values()
            os.write(peer.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
            wait_until(lambda: pipe.closed)
            assert "TLS failed" in pipe.reason and "mac" in pipe.reason


def test_close_waits_for_nobody() -> None:
    with connected() as (one, other):
        fill(one)
        with never_switches("close() with a peer that does not read"):
            one.close()
        assert one.unacknowledged() == 0


def test_a_wait_for_the_hello_ends_with_close_and_none_begins_after_it() -> None:
    with Bench("tls+tcp://127.0.0.1:0", dial_options(), listen_options(), 10.0) as bench:
        accepting = gevent.spawn(bench.listener.accept)
        with gsocket.create_connection(("127.0.0.1", port_of(bench.listener.address)), timeout=5):
            connection = accepting.get(timeout=5)
            waiting = gevent.spawn(attempt, connection.wait_for_hello)
            gevent.sleep(0)
            connection.close()
            assert isinstance(finish(waiting, 5.0, "close() did not end the wait"), TLSError)

            # It is a plain socket until its handshake begins.
            other = TLSConnection(gsocket.socket(), wrap=lambda sock: sock)
            other._sock.close()
            assert isinstance(attempt(other.wait_for_hello), TLSError)


def test_a_mistake_in_a_handshake_does_not_pass_for_a_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """An AttributeError is what gevent raises for a closed socket. Here it is open."""

    def mistake(sock: object) -> None:
        raise AttributeError("a mistake")

    monkeypatch.setattr(gssl.SSLSocket, "do_handshake", mistake)
    with Bench("tls+tcp://127.0.0.1:0", dial_options(), listen_options(), 10.0) as bench:
        accepting = gevent.spawn(bench.listener.accept)
        with gsocket.create_connection(("127.0.0.1", port_of(bench.listener.address)), timeout=5):
            connection = accepting.get(timeout=5)
            with pytest.raises(AttributeError, match="a mistake"):
                connection.handshake()
            connection.close()


def test_a_dial_whose_socket_cannot_speak_tls_is_a_failed_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(side: object, sock: gsocket.socket) -> None:
        sock.close()
        raise OSError(errno.ENOBUFS, "no buffer space available")

    monkeypatch.setattr(tlscontext.ClientSide, "wrap", broken)
    with Socket() as server, Socket() as client:
        with pytest.raises(ConnectionFailed, match="no buffer space"):
            client.dial(server.listen("tls+tcp://127.0.0.1:0", listen_options()).address, dial_options())


def test_close_in_a_handshake_ends_it() -> None:
    with Bench("tls+tcp://127.0.0.1:0", dial_options(), listen_options(), 10.0) as bench:
        accepting = gevent.spawn(bench.listener.accept)
        with gsocket.create_connection(("127.0.0.1", port_of(bench.listener.address)), timeout=5) as peer:
            connection = accepting.get(timeout=5)
            shaking = gevent.spawn(attempt, connection.handshake)
            gevent.sleep(0)
            connection.close()
            assert isinstance(finish(shaking, 5.0, "close() did not end the handshake"), TLSError)
            assert isinstance(attempt(connection.handshake), TLSError), "and none begins after it"
            assert peer.recv(1) == b""


def test_a_peer_that_is_gone_before_the_handshake_is_one_failed_attempt() -> None:
    reset = struct.pack("ii", 1, 0)
    with Socket() as server, Socket() as client:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        for _ in range(50):
            with gsocket.create_connection(("127.0.0.1", port_of(listener.address)), timeout=5) as peer:
                peer.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, reset)
        client.dial(listener.address, dial_options())
        server.wait_pipes(1, timeout=5)


# Cancellation


@pytest.mark.parametrize("how", ["timeout", "kill", "dial_timeout", "close"])
def test_a_dial_that_ends_in_its_handshake_leaves_nothing(how: str) -> None:
    with gsocket.socket() as listener, Socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        options = dial_options() | {"connector.dialer.dial_timeout": 0.05 if how == "dial_timeout" else 10.0}
        address = f"tls+tcp://127.0.0.1:{listener.getsockname()[1]}"

        def dial() -> object:
            with gevent.Timeout(0.05 if how == "timeout" else None, False):
                return attempt(client.dial, address, options)
            return None

        dialing = gevent.spawn(dial)
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(5)[:1] == b"\x16"
            if how == "kill":
                dialing.kill()
            elif how == "close":
                client.close()
            outcome = finish(dialing, 5.0, "the dial goes on")
            expected = {"dial_timeout": ConnectionFailed, "close": MultiSocketError}.get(how, object)
            assert isinstance(outcome, expected)
            # The end of the connection, after the rest of the hello.
            peer.settimeout(5)
            while peer.recv(4096):
                pass
            assert not client.dialers and not client.pipes


def test_a_listener_that_closes_ends_handshakes() -> None:
    with Socket() as server, ExitStack() as stack:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        peers = [
            stack.enter_context(gsocket.create_connection(("127.0.0.1", port_of(listener.address)), timeout=5))
            for _ in range(5)
        ]
        wait_until(lambda: listener.accepted == 5)
        listener.close()
        assert [peer.recv(1) for peer in peers] == [b""] * 5


@pytest.mark.parametrize("end", ["timeout", "kill"])
def test_a_sender_that_is_cancelled_tears_no_frame(end: str) -> None:
    small = {"transport.tcp.write_buffer": 8192, "transport.tcp.read_buffer": 8192, "socket.send_queue_size": 1}
    with Socket(small) as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        with plain_tls_peer(listener.address) as peer:
            server.wait_pipes(1, timeout=5)
            sent: list[int] = []

            def send() -> None:
                with gevent.Timeout(0.02 if end == "timeout" else None, False):
                    while True:
                        server.send(b"%6d" % len(sent) + bytes(50_000))
                        sent.append(1)

            sender = gevent.spawn(send)
            sender.join(0.05)
            sender.kill()
            contents = list(read_frames(peer, len(sent)))
            assert [int(content[:6]) for content in contents] == list(range(len(sent)))


# Sockets


def test_huge_messages_go_both_ways() -> None:
    limit = {"connector.pipe.max_recv_content_length": 0}
    contents = [random.Random(seed).randbytes((32 << 20) + seed) for seed in (1, 2)]
    with Socket(limit) as server, Socket(limit) as client:
        client.dial(server.listen("tls+tcp://127.0.0.1:0", listen_options()).address, dial_options())
        server.wait_pipes(1, timeout=5)
        for sock, content in zip((client, server), contents, strict=True):
            sock.send(content, timeout=20)
        assert [server.recv(timeout=30), client.recv(timeout=30)] == contents


def test_a_fan_out_to_200_peers_of_which_one_reads_nothing() -> None:
    contents = [b"%6d" % number + bytes(5_000) for number in range(60)]
    with ExitStack() as stack:
        options = {"socket.send_overflow": "drop_newest", "transport.tcp.write_buffer": 16384}
        server = stack.enter_context(Socket(options))
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        clients = [stack.enter_context(Socket({"socket.recv_queue_size": 100})) for _ in range(200)]
        trust = dial_options()
        gevent.joinall([gevent.spawn(client.dial, listener.address, trust) for client in clients], raise_error=True)
        stuck = stack.enter_context(plain_tls_peer(listener.address))
        server.wait_pipes(201, timeout=20)
        for content in contents:
            assert server.send_all(content, timeout=10) >= 200
            # Peers that read keep up.
            gevent.sleep(0)
        for client in clients:
            assert [client.recv(timeout=10) for _ in contents] == contents
        received = [int(content[:6]) for content in read_frames(stuck, 5)]
        assert received == list(range(5))


def test_a_slow_reader_gets_everything_in_order() -> None:
    contents = [b"%6d" % number + bytes(20_000) for number in range(300)]
    with Socket({"transport.tcp.write_buffer": 8192}) as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        with plain_tls_peer(listener.address) as peer:
            server.wait_pipes(1, timeout=5)
            sending = gevent.spawn(lambda: [server.send(content) for content in contents])
            for number, content in enumerate(read_frames(peer, len(contents))):
                assert content == contents[number]
                if number % 50 == 0:
                    gevent.sleep(0.01)
            sending.get(timeout=5)


def test_a_raw_pipe_speaks_plain_bytes_within_tls() -> None:
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0?connector.pipe.raw=true", listen_options())
        with plain_tls_peer(listener.address) as peer:
            hello = server.recv_msg(timeout=5)
            peer.sendall(b"a line\n")
            assert server.recv(timeout=5) == b"a line\n"
            server.send_to(hello.source, b"an answer\n")
            assert peer.recv(100) == b"an answer\n"
