"""Systems that lack what Linux has: the names are taken out of the modules before the library is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults.process import ROOT

WITHOUT = """
import select, socket, sys, termios
import gevent.socket  # which has its own ways for other systems
for module, names in (
    (socket, ["TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_INFO", "TCP_QUICKACK",
              "SO_PEERCRED", "SO_BINDTODEVICE", "MSG_NOSIGNAL", "MSG_ERRQUEUE", "SO_INCOMING_CPU"]),
    (select, ["epoll", "POLLRDHUP", "EPOLLRDHUP"]),
    (termios, ["TIOCOUTQ"]),
):
    for name in names:
        vars(module).pop(name, None)
sys.platform = "darwin"
for name in [name for name in vars(gevent.socket) if name.startswith(("TCP_", "SO_", "MSG_"))]:
    if not hasattr(socket, name):
        delattr(gevent.socket, name)
"""

ROUND_TRIP = """
import tempfile
from gmultisocket import Socket
from gmultisocket.errors import AddressError, BadOptionValue
address, options = {arguments!r}
with tempfile.TemporaryDirectory() as folder, Socket() as server, Socket() as client:
    listener = server.listen(address.format(folder), options)
    client.dial(listener.address, options)
    for size in (0, 1, 100_000):
        client.send(bytes(size))
        message = server.recv_msg(timeout=20)
        server.send_to(message.source, message.content)
        assert client.recv(timeout=20) == bytes(size)
    (pipe,) = client.pipes.values()
    assert isinstance(pipe.identity, dict) or not pipe.identity
    client.close()
print("well")
"""


def run(script: str) -> str:
    command = [sys.executable, "-X", "dev", "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:0", "tcp://[::1]:0", "ipc://{}/socket", "ws://127.0.0.1:0/path", "inproc://name"],
)
def test_a_round_trip_over_each_transport(address: str) -> None:
    options = {"transport.tcp.user_timeout": 5.0} if address.startswith("tcp") else {}
    assert run(WITHOUT + ROUND_TRIP.format(arguments=(address, options))) == "well\n"


@pytest.mark.parametrize("scheme", ["tls+tcp", "wss"])
def test_a_round_trip_over_tls(scheme: str) -> None:
    script = f"""
import tempfile
from pathlib import Path
from tests.certificates import dial_options, server_certificate, write_certificate
from gmultisocket import Socket
with tempfile.TemporaryDirectory() as name, Socket() as server, Socket() as client:
    certfile, keyfile = write_certificate(Path(name), server_certificate(), "server").values()
    options = {{"transport.tls.certfile": certfile, "transport.tls.keyfile": keyfile}}
    address = server.listen("{scheme}://127.0.0.1:0/".removesuffix("/" if "{scheme}" == "tls+tcp" else ""), options)
    client.dial(address.address, dial_options())
    client.send(b"hello")
    assert server.recv(timeout=20) == b"hello"
print("well")
"""
    assert run(WITHOUT + script) == "well\n"


def test_what_a_system_cannot_do_is_an_error_in_words() -> None:
    script = """
from gmultisocket import Socket
from gmultisocket.errors import AddressError, BadOptionValue
for call in (lambda sock: sock.listen("ipc://socket", {"transport.ipc.allow_uids": [0]}),
             lambda sock: sock.listen("ipc://@name"), lambda sock: sock.dial("ipc://@name")):
    with Socket() as sock:
        try:
            call(sock)
        except (AddressError, BadOptionValue) as error:
            print(error)
"""
    lines = run(WITHOUT + script).splitlines()
    assert len(lines) == 3
    assert "transport.ipc.allow_uids" in lines[0] and "this system" in lines[0]
    assert all("only Linux has abstract names" in line for line in lines[1:])


@pytest.mark.parametrize("platform", ["win32", "cygwin", "emscripten"])
def test_where_it_cannot_run_the_import_says_so(platform: str) -> None:
    script = f"""
import sys
sys.platform = {platform!r}
for name in ("fcntl", "termios", "resource", "gevent"):
    sys.modules[name] = None
try:
    import gmultisocket
except ImportError as error:
    print(error)
"""
    answer = run(script)
    assert answer.startswith(f"gmultisocket does not run on {platform}: ")
    assert answer.count("\n") == 1
