"""DNS rebinding: a page lets its own host name point to this machine. Then Origin and Host are the same, and both evil.

The same requests go to listeners of the library and to one that is mounted in a WSGI server.
"""

from __future__ import annotations

import socket as stdlib_socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from gevent.pywsgi import WSGIServer

from gmultisocket import Socket
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import BadOptionValue
from gmultisocket.transport.wshandshake import is_loopback
from tests.transport.wspeers import RawPeer, request

OPTION = "transport.ws.listener.hosts"
WAYS = ["127.0.0.1", "[::1]", "localhost", "*", "mount"]


@contextmanager
def serving(way: str, options: Mapping[str, Any] | None = None) -> Iterator[tuple[Socket, str]]:
    """Yield a server, and an address at which pages of this machine reach it."""
    with Socket() as server:
        if way != "mount":
            address = server.listen(f"ws://{way}:0/ws", options).address
            yield server, address.replace("*", "127.0.0.1").replace("localhost", "127.0.0.1")
            return
        http = WSGIServer(("127.0.0.1", 0), mount(server, "/ws", options=options), log=None)
        http.start()
        try:
            yield server, f"ws://127.0.0.1:{http.server_port}/ws"
        finally:
            server.close(linger=0)
            http.stop(timeout=5)


def ask(address: str, host: str, origin: str | None = None, **more: str) -> int:
    """Return the status of the answer to a page."""
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    page = origin if origin is not None else f"http://{host}"
    with RawPeer(address) as peer:
        peer.send(request("/ws", {"Host": host, "Origin": page or None, **headers}))
        return peer.status()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "EVIL.example.", "localhost.evil.example",
                                  "127.0.0.1.evil.example", "127.0.0.1evil", "notlocalhost"])  # fmt: skip
def test_a_page_whose_name_points_to_this_machine_is_refused(way: str, host: str) -> None:
    with serving(way) as (server, address):
        assert ask(address, host) == 403
        assert not server.pipes


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "LOCALHOST", "app.localhost:80", "127.0.0.1:8000",
                                  "127.0.0.2", "[::1]:8000", "[::1]", "192.0.2.7"])  # fmt: skip
def test_a_page_of_this_machine_connects(way: str, host: str) -> None:
    with serving(way) as (_, address):
        assert ask(address, host) == 101


@pytest.mark.parametrize("way", WAYS)
def test_who_is_no_page_may_use_any_name(way: str) -> None:
    with serving(way) as (_, address):
        assert ask(address, "alias.example", origin="") == 101


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("header", ["X_Forwarded_For", "X_Real_IP", "Forwarded", "Via"])
def test_a_page_that_came_through_a_proxy_connects(way: str, header: str) -> None:
    """A page cannot set headers in such a request, and the proxy was reached by its own name."""
    with serving(way) as (_, address):
        assert ask(address, "www.example.org", **{header: "192.0.2.7"}) == 101


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("hosts", "host", "origin", "status"),
    [
        (["www.example.org"], "www.example.org", None, 101),
        (["www.example.org"], "WWW.example.org:8080", None, 101),
        (["WWW.example.org:8080"], "www.example.org:8080", None, 101),
        (["www.example.org:8080"], "www.example.org", None, 403),
        (["www.example.org"], "evil.example", None, 403),
        (["www.example.org"], "localhost", None, 403),
        # Names that are set are for everybody.
        (["www.example.org"], "evil.example", "", 403),
        (["www.example.org"], "www.example.org", "", 101),
        (["www.example.org"], "www.example.org", "http://evil.example", 403),
        (["[::1]"], "[::1]:80", None, 101),
        (["*"], "evil.example", None, 101),
    ],
)
def test_the_hosts_that_are_set_are_those_that_may_be_used(
    way: str, hosts: list[str], host: str, origin: str | None, status: int
) -> None:
    with serving(way, {OPTION: hosts}) as (_, address):
        assert ask(address, host, origin) == status


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("option", "value"), [("check_origin", False), ("origins", ["http://evil.example"]),
                                               ("origin_checker", lambda request: True)])  # fmt: skip
def test_who_lets_a_page_in_by_another_option_has_decided(way: str, option: str, value: object) -> None:
    with serving(way, {f"transport.ws.listener.{option}": value}) as (_, address):
        assert ask(address, "evil.example") == 101


def test_the_name_that_a_listener_was_given_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    name = stdlib_socket.gethostname()
    try:
        if not is_loopback(stdlib_socket.gethostbyname(name)):
            pytest.skip("this machine's name does not stand for loopback")
    except OSError:
        pytest.skip("this machine does not know its own name")
    with Socket() as server:
        port = server.listen(f"ws://{name}:0/ws").address.rpartition(":")[2].partition("/")[0]
        local = stdlib_socket.gethostbyname(name)
        assert ask(f"ws://{local}:{port}/ws", f"{name}:{port}") == 101
        assert ask(f"ws://{local}:{port}/ws", f"evil.example:{port}") == 403


def test_hosts_can_be_written_in_an_address() -> None:
    with Socket() as server:
        address = server.listen(f"ws://127.0.0.1:0/ws?{OPTION}=a.example,b.example:81").address
        assert [ask(address, host) for host in ("a.example", "b.example:81", "b.example")] == [101, 101, 403]


@pytest.mark.parametrize("value", ["a.example", [], [""], ["http://a.example"], ["a/b"], [1], 5, [b"a"]])
def test_wrong_hosts_are_a_wrong_value(value: object) -> None:
    with pytest.raises(BadOptionValue):
        Socket({OPTION: value})


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("::ffff:127.0.0.1", True),
     ("localhost", True), ("::1%lo", True), ("0.0.0.0", False), ("::", False), ("192.0.2.1", False), ("x", False)],
)  # fmt: skip
def test_what_loopback_is(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local
