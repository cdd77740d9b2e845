"""fd: sockets that another program has made."""

from __future__ import annotations

import contextlib
import json
import os
import socket as plain_socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import subprocess

from gmultisocket import Rep, Req, Session, Socket
from gmultisocket.errors import AddressError, AddressInUse, ConnectionFailed
from gmultisocket.testing import wait_until
from gmultisocket.testing._fork import in_forked_child
from gmultisocket.transport.inherited import given_by_systemd
from tests.certificates import dial_options, listen_options


@contextlib.contextmanager
def listening(family: int = plain_socket.AF_INET, name: Any = ("127.0.0.1", 0), listens: bool = True) -> Iterator[Any]:
    """A socket that another program has made, in blocking mode and inheritable, as systemd passes it."""
    with plain_socket.socket(family, plain_socket.SOCK_STREAM) as sock:
        sock.bind(name)
        if listens:
            sock.listen()
        sock.set_inheritable(True)
        try:
            yield sock
        finally:
            if family == plain_socket.AF_UNIX and not name.startswith("\0"):
                os.unlink(name)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def greet(server: Socket, address: str, options: dict[str, Any] | None = None) -> Any:
    """Exchange a message with a new client, and return the server's pipe."""
    with Socket() as client:
        client.dial(address, options)
        client.send(b"hello")
        message = server.recv_msg(timeout=5)
        pipe = server.pipes[message.pipe_id]
        server.send_to(message.source, b"hello yourself")
        assert client.recv(timeout=5) == b"hello yourself"
        (other,) = client.pipes.values()
        if "ipc" not in address:
            assert pipe.peer_address.partition("://")[2] == other.local_address.partition("://")[2].partition("/")[0]
    wait_until(lambda: pipe.id not in server.pipes)
    return pipe


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_a_tcp_socket_is_listened_with_over_and_over(host: str) -> None:
    family = plain_socket.AF_INET6 if ":" in host else plain_socket.AF_INET
    with listening(family, (host, 0)) as sock, Socket() as server:
        port = sock.getsockname()[1]
        before = descriptors()
        for _ in range(3):
            listener = server.listen(f"fd://{sock.fileno()}")
            assert listener.address == f"tcp://{f'[{host}]' if ':' in host else host}:{port}"
            address = listener.address.replace("[::]", "127.0.0.1")
            pipe = greet(server, address)
            assert pipe.peer_address.startswith("tcp://[::1]:" if host == "::1" else "tcp://127.0.0.1:")
            listener.close()
            wait_until(lambda: descriptors() == before)
        assert not sock.get_inheritable()
        # The socket still listens: it is not this program's.
        with plain_socket.create_connection((host if host != "::" else "::1", port)):
            sock.setblocking(True)
            sock.accept()[0].close()


@pytest.mark.parametrize("abstract", [False, True])
def test_a_unix_socket_is_found_out_and_its_file_left_alone(tmp_path: Path, abstract: bool) -> None:
    path = tmp_path / "given.sock"
    name = f"@{path}" if abstract else str(path)
    with listening(plain_socket.AF_UNIX, f"\0{path}" if abstract else str(path)) as sock, Socket() as server:
        listener = server.listen(f"fd://{sock.fileno()}", {"transport.ipc.allow_uids": [os.getuid()]})
        assert listener.address == f"ipc://{name}"
        pipe = greet(server, listener.address)
        assert pipe.identity["uid"] == os.getuid() and pipe.peer_address == listener.address
        listener.close()
        assert abstract or path.exists()


def test_the_users_of_a_unix_socket_are_checked(tmp_path: Path) -> None:
    path = str(tmp_path / "given.sock")
    with listening(plain_socket.AF_UNIX, path) as sock, Socket() as server, Socket() as client:
        server.listen(f"fd://{sock.fileno()}", {"transport.ipc.allow_uids": [os.getuid() + 1]})
        client.dial(f"ipc://{path}", {"connector.dialer.reconnect": False})
        wait_until(lambda: not client.pipes)
        assert not server.pipes


def test_tls_and_websockets_are_listened_for_too() -> None:
    for scheme, path in ("tls+fd", ""), ("ws+fd", "/chat"), ("wss+fd", "/chat"), ("ws+fd", ""):
        secure = scheme in ("tls+fd", "wss+fd")
        with listening() as sock, Socket() as server:
            options = listen_options() if secure else {}
            listener = server.listen(f"{scheme}://{sock.fileno()}{path}", options)
            kind = {"tls+fd": "tls+tcp", "ws+fd": "ws", "wss+fd": "wss"}[scheme]
            assert listener.address == f"{kind}://127.0.0.1:{sock.getsockname()[1]}{path}"
            pipe = greet(server, listener.address, dial_options() if secure else None)
            assert pipe.peer_address.startswith(f"{kind}://127.0.0.1:")
            assert ("tls_version" in pipe.identity) is secure


def test_websockets_are_taken_from_a_unix_socket(tmp_path: Path) -> None:
    """As behind a proxy on the same machine."""
    from tests.transport.wspeers import RawPeer, request

    path = str(tmp_path / "web.sock")
    with listening(plain_socket.AF_UNIX, path) as sock, Socket() as server:
        listener = server.listen(f"ws+fd://{sock.fileno()}/chat")
        assert listener.address == f"ws://{path}/chat"
        with gevent.socket.socket(gevent.socket.AF_UNIX) as plain:
            plain.connect(path)
            peer = RawPeer.__new__(RawPeer)
            peer.sock, peer.unread = plain, b""
            peer.send(request("/chat", {"Origin": "http://example.org", "Host": "example.org"}))
            assert peer.status() == 101
            server.wait_pipes(1, timeout=5)
            (pipe,) = server.pipes.values()
            assert pipe.peer_address == f"ws://{path}" and pipe.identity["uid"] == os.getuid()


@pytest.mark.parametrize("scheme", ["ws+fd", "wss+fd"])
def test_a_session_listens_too(scheme: str) -> None:
    secure = scheme == "wss+fd"
    with listening() as sock, Rep(bytes.upper) as rep, Session({"rpc": rep}) as server:
        rep.start()
        listener = server.listen(f"{scheme}://{sock.fileno()}/ws", listen_options() if secure else None)
        with Req() as req, Session({"rpc": req}) as client:
            client.dial(listener.address, dial_options() if secure else None)
            assert req.request(b"hello", 5) == b"HELLO"


def test_paths_share_the_port_of_a_descriptor() -> None:
    with listening() as sock, Socket() as chat, Socket() as feed:
        one = chat.listen(f"ws+fd://{sock.fileno()}/chat")
        other = feed.listen(f"ws+fd://{sock.fileno()}/feed")
        with pytest.raises(AddressInUse):
            feed.listen(f"ws+fd://{sock.fileno()}/chat")
        for _ in range(10):
            greet(chat, one.address)
            greet(feed, other.address)
        one.close()
        greet(feed, other.address)


def test_several_processes_and_sockets_may_listen_with_one_socket() -> None:
    with listening() as sock, Socket() as one, Socket() as other:
        one.listen(f"fd://{sock.fileno()}")
        address = other.listen(f"fd://{sock.fileno()}").address
        with Socket() as client:
            for _ in range(40):
                client.dial(address)
            wait_until(lambda: len(one.pipes) + len(other.pipes) == 40)


def test_peers_wait_while_nobody_listens() -> None:
    with listening() as sock, Socket() as client:
        address = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        with Socket() as server:
            server.listen(f"fd://{sock.fileno()}")
            greet(server, address)
        client.dial(address)
        client.send(b"for the next one")
        with Socket() as server:
            server.listen(f"fd://{sock.fileno()}")
            assert server.recv(timeout=5) == b"for the next one"


def test_a_closed_listener_costs_no_processor_time() -> None:
    """The kernel may go on reporting a closed copy of a descriptor that is still open under another number."""
    with listening() as sock, Socket() as server:
        server.listen(f"fd://{sock.fileno()}").close()
        gevent.sleep(0.01)
        with plain_socket.create_connection(sock.getsockname()):
            turns = [0]
            prepare = gevent.get_hub().loop.prepare()
            prepare.start(lambda: turns.__setitem__(0, turns[0] + 1))
            try:
                gevent.sleep(0.2)
            finally:
                prepare.stop()
                prepare.close()
            assert turns[0] < 50


@pytest.mark.parametrize("scheme", ["fd", "tls+fd", "ws+fd", "wss+fd"])
def test_what_is_no_listening_socket_is_an_error(scheme: str, tmp_path: Path) -> None:
    options = listen_options() if scheme in ("tls+fd", "wss+fd") else {}
    before = descriptors()
    with Socket() as server, open(tmp_path / "file", "w") as file, listening(listens=False) as bound:
        with plain_socket.socket(plain_socket.AF_INET, plain_socket.SOCK_DGRAM) as datagrams:
            for number, why in (
                (file.fileno(), "is not an open socket"),
                (9999, "is not an open socket"),
                (10**30, "is not an open socket"),
                (bound.fileno(), "does not listen"),
                (datagrams.fileno(), "does not listen|is not an open socket"),
            ):
                with pytest.raises(ConnectionFailed, match=f"descriptor {number} .*({why})"):
                    server.listen(f"{scheme}://{number}", options)
        with pytest.raises(AddressError, match="only be listened"):
            server.dial(f"{scheme}://3", dial_options() if options else None)
    wait_until(lambda: descriptors() == before)


def test_tls_needs_a_tcp_socket(tmp_path: Path) -> None:
    with listening(plain_socket.AF_UNIX, str(tmp_path / "x.sock")) as sock, Socket() as server:
        with pytest.raises(ConnectionFailed, match="is not a TCP socket"):
            server.listen(f"tls+fd://{sock.fileno()}", listen_options())


_ACTIVATED = """
import json, os, subprocess, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from gmultisocket import Rep, Req, Session, Socket
from gmultisocket.contrib.systemd import given_by_systemd
from gmultisocket.errors import AddressError
with Socket() as server:
    found = {"given": given_by_systemd(), "addresses": []}
    for name in sys.argv[1:]:
        try:
            found["addresses"].append(server.listen(name).address)
        except AddressError as error:
            found["addresses"].append(str(error))
    child = "import os; print([each for each in (3, 4) if os.path.exists(f'/proc/self/fd/{each}')])"
    found["inherited"] = subprocess.check_output([sys.executable, "-c", child], close_fds=False, text=True)
    print(json.dumps(found), flush=True)
    message = server.recv_msg(timeout=20)
    server.send_to(message.source, message.content)
    server.close()
"""


def test_systemds_descriptors_have_names(tmp_path: Path) -> None:
    path = str(tmp_path / "local.sock")
    with listening() as web, listening(plain_socket.AF_UNIX, path) as local:
        names = ["fd://web", "fd://local", "fd://other", "fd://3"]
        environ = os.environ | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:local"}
        process = subprocess.Popen(
            [sys.executable, "-c", _ACTIVATED, *names], stdout=subprocess.PIPE, env=environ, close_fds=False,
            preexec_fn=lambda: (os.dup2(web.fileno(), 13), os.dup2(local.fileno(), 14), os.dup2(13, 3), os.dup2(14, 4)),
        )  # fmt: skip
        try:
            found = json.loads(process.stdout.readline())
            tcp = f"tcp://127.0.0.1:{web.getsockname()[1]}"
            assert found["given"] == {"3": "web", "4": "local"}
            assert found["addresses"][:2] == [tcp, f"ipc://{path}"] and found["addresses"][3] == tcp
            assert "no descriptor has the name 'other'; systemd has passed web (3), local (4)" in found["addresses"][2]
            assert found["inherited"] == "[]\n"
            with Socket() as client:
                client.dial(f"ipc://{path}")
                client.send(b"hello")
                assert client.recv(timeout=20) == b"hello"
                client.close(linger=0)
            assert process.wait(timeout=20) == 0
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()


@pytest.mark.parametrize(
    ("count", "names", "pid", "found"),
    [
        ("2", "a:b", True, {3: "a", 4: "b"}),
        ("2", "a", True, {3: "a", 4: "unknown"}),
        ("2", None, True, {3: "unknown", 4: "unknown"}),
        ("1", "a:b", True, {3: "a"}),
        ("0", "", True, {}),
        ("x", "a", True, {}),
        ("-1", "a", True, {}),
        (None, None, True, {}),
        # They are for another process, whose child this is.
        ("2", "a:b", False, {}),
    ],
)
def test_the_environment_says_which_descriptors_systemd_has_passed(
    monkeypatch: pytest.MonkeyPatch, count: str | None, names: str | None, pid: bool, found: dict[int, str]
) -> None:
    values = {"LISTEN_FDS": count, "LISTEN_FDNAMES": names, "LISTEN_PID": str(os.getpid() if pid else os.getppid())}
    for name, value in values.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert given_by_systemd() == found
    if not pid:
        with Socket() as server, pytest.raises(AddressError, match="none to this process"):
            server.listen("fd://a")


def test_two_descriptors_of_one_name_need_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:a", "LISTEN_PID": str(os.getpid())}.items():
        monkeypatch.setenv(name, value)
    with Socket() as server, pytest.raises(AddressError, match="2 descriptors have the name 'a'"):
        server.listen("fd://a")


def test_a_forked_child_leaves_the_socket_to_its_parent() -> None:
    with listening() as sock, Socket() as server:
        address = server.listen(f"fd://{sock.fileno()}").address
        in_forked_child(lambda number: server.close())
        greet(server, address)
