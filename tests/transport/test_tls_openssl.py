"""What only OpenSSL's own client can be made to do: new keys and renegotiation in the middle of a connection."""

from __future__ import annotations

import shutil
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import subprocess

from gmultisocket import Socket
from gmultisocket.core.connecting.listener import Listener
from gmultisocket.testing import wait_until
from tests.certificates import (
    TLS,
    listen_options,
    server_certificate,
    server_context,
    write_authority,
    write_certificate,
)

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not here")

#: SSL_OP_ALLOW_CLIENT_RENEGOTIATION, which Python has no name for.
ALLOW_RENEGOTIATION = 1 << 8
RAW = {"connector.pipe.raw": True}


class Client:
    """``openssl s_client``, which sends what it is told and has commands of one letter.

    Attributes:
        output: what the peer has sent.
        notes: what it says itself.
    """

    def __init__(self, process: Any) -> None:
        self._process = process
        self.output = bytearray()
        self.notes = bytearray()
        outputs = ((process.stdout, self.output), (process.stderr, self.notes))
        self._readers = [gevent.spawn(self._read, stream, into) for stream, into in outputs]

    def _read(self, stream: Any, into: bytearray) -> None:
        with stream:
            while data := stream.read1(65536):
                into += data

    def type(self, line: bytes) -> None:
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=10)
        gevent.joinall(self._readers, raise_error=True)


@contextmanager
def openssl(listener: Listener, folder: Path, *arguments: str) -> Iterator[Client]:
    ca = write_authority(folder)[TLS.cafile.name]
    where = listener.address.partition("://")[2]
    process = subprocess.Popen(
        ["openssl", "s_client", "-connect", where, "-CAfile", ca, "-verify_return_error", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    client = Client(process)
    try:
        yield client
    finally:
        process.kill()
        client.close()


def wait_for(output: bytearray, text: bytes, count: int) -> None:
    wait_until(lambda: output.count(text) == count, 10.0, f"{count} times {text!r}")


@pytest.mark.parametrize("command", [b"K\n", b"k\n"], ids=["of both sides", "of one side"])
def test_new_keys_in_the_middle_of_a_stream(command: bytes, tmp_path: Path) -> None:
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options() | RAW)
        with openssl(listener, tmp_path, "-tls1_3") as client:
            hello = server.recv_msg(timeout=10)
            for number in range(1, 6):
                client.type(b"a line\n")
                assert server.recv(timeout=10) == b"a line\n"
                # At the same time as what comes back. It takes a command only where one read begins with it.
                client.type(command)
                server.send_to(hello.source, b"the answer\n" * 10_000)
                wait_for(client.output, b"the answer", 10_000 * number)
                wait_for(client.notes, b"KEYUPDATE", number)


def tls_1_2_context(options: int) -> ssl.SSLContext:
    context = server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= options
    return context


def test_renegotiation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = ssl.create_default_context

    def make_as_before_openssl_3(*arguments: Any, **named: Any) -> ssl.SSLContext:
        context = make(*arguments, **named)
        context.options |= ALLOW_RENEGOTIATION
        return context

    # Since version 3 OpenSSL itself refuses it by default.
    monkeypatch.setattr(ssl, "create_default_context", make_as_before_openssl_3)
    files = write_certificate(tmp_path, server_certificate(), "server")
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", files | RAW)
        with openssl(listener, tmp_path, "-tls1_2") as client:
            assert server.recv(timeout=10) == b""
            client.type(b"R\n")
            wait_until(lambda: b"no renegotiation" in client.notes)


def test_renegotiation_where_a_context_allows_it_loses_nothing(tmp_path: Path) -> None:
    context = {TLS.context.name: tls_1_2_context(ALLOW_RENEGOTIATION)}
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", context | RAW)
        with openssl(listener, tmp_path, "-tls1_2") as client:
            hello = server.recv_msg(timeout=10)
            for number in range(1, 4):
                client.type(b"R\n")
                wait_for(client.notes, b"RENEGOTIATING", number)
                client.type(b"a line\n")
                assert server.recv(timeout=10) == b"a line\n"
                # Not at the same time: this client does not take data in the middle of its own renegotiation.
                server.send_to(hello.source, b"the answer\n" * 10_000)
                wait_for(client.output, b"the answer", 10_000 * number)


@pytest.mark.parametrize("reads", [True, False], ids=["one that reads", "one that reads late"])
def test_a_peer_that_asks_for_small_records_gets_every_byte(reads: bool, tmp_path: Path) -> None:
    line = b"%07d\n"
    with Socket({"socket.send_queue_size": 1000}) as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options() | RAW | {"transport.tcp.write_buffer": 8192})
        with openssl(listener, tmp_path, "-quiet", "-maxfraglen", "512") as client:
            hello = server.recv_msg(timeout=10)
            if not reads:
                client.stop()
            text = b"".join(line % number for number in range(100_000))
            for start in range(0, len(text), 80_000):
                server.send_to(hello.source, text[start : start + 80_000])
            if not reads:
                (pipe,) = server.pipes.values()
                wait_until(lambda: pipe.queued)
                client.go_on()
            wait_until(lambda: len(client.output) >= len(text), 20.0)
            assert client.output == text
