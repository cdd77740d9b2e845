from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original

from gmultisocket import Socket
from gmultisocket.address import Address
from gmultisocket.errors import AddressInUse, ConnectionFailed, ConnectionRefused
from gmultisocket.options import Options
from gmultisocket.testing import MessageTransportChecks, wait_until
from gmultisocket.transport import TransportListener
from gmultisocket.transport.inproc import TRANSPORT, names

ALIASES = [
    "inproc",
    "inproc.channel",
    "inproc.channel.msr",
    "inproc.channel.sr",
    "inproc.channel.rw",
    "inproc.iopipe",
    "inproc.netpipe",
]


class TestInproc(MessageTransportChecks):
    address = "inproc://checks"


class TestInprocByAnAlias(MessageTransportChecks):
    address = "inproc.channel.msr://checks"


def make_listener(address: str, options: dict[str, Any] | None = None) -> TransportListener:
    return TRANSPORT.listener(Address.parse(address), Options(options))


def dial(address: str) -> Any:
    return TRANSPORT.dialer(Address.parse(address), Options()).connect()


def in_another_thread(call: Callable[[], object]) -> object:
    """Return what a call returns or raises in an OS thread, with a loop of its own, patched or not."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    get_original("_thread", "start_new_thread")(run, ())
    wait_until(lambda: outcome)
    return outcome[0]


def test_every_scheme_of_go_is_known() -> None:
    assert sorted(TRANSPORT.schemes) == sorted(ALIASES)


@pytest.mark.parametrize("alias", ALIASES)
def test_all_schemes_share_one_space_of_names(alias: str) -> None:
    with Socket() as server, Socket() as client, Socket() as other:
        assert server.listen(f"{alias}://shared").address == f"{alias}://shared"
        assert names() == ["shared"]
        client.dial("inproc://shared")
        client.send(b"hello")
        assert server.recv(timeout=5) == b"hello"
        with pytest.raises(AddressInUse, match="the name is in use by another listener of this process"):
            other.listen("inproc.netpipe://shared")


def test_a_name_is_any_text_without_spaces() -> None:
    for name in ("a/b/c", "user@host", "ünïcode", "100%"):
        with Socket() as server, Socket() as client:
            server.listen(f"inproc://{name}")
            client.dial(f"inproc://{name}")
            assert names() == [name]
    assert names() == []


def test_a_name_that_nobody_listens_to_is_refused() -> None:
    with pytest.raises(ConnectionRefused, match="inproc://nobody: nobody listens to the name in this process"):
        dial("inproc://nobody")


def test_an_inproc_dial_never_hangs_whatever_its_listener_does() -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen("inproc://hasty")
        client.dial("inproc://hasty")
        listener.close()
        with pytest.raises(ConnectionRefused):
            client.dial("inproc://hasty", {"connector.dialer.reconnect": False})
        listener = server.listen("inproc://hasty")
        listener.close()
        server.listen("inproc://hasty")
        client.dial("inproc://hasty")
        client.send(b"there")
        assert server.recv(timeout=5) == b"there"


def test_a_name_belongs_to_the_thread_that_listens() -> None:
    with Socket() as server:
        server.listen("inproc://mine")
        error = in_another_thread(lambda: dial("inproc://mine"))
        assert isinstance(error, ConnectionFailed) and not isinstance(error, ConnectionRefused)
        assert "another OS thread" in str(error)
        assert not server.pipes


def test_dials_wait_while_the_backlog_is_full() -> None:
    listener = make_listener("inproc://full", {"connector.listener.backlog": 2})
    listener.listen()
    try:
        dials = [gevent.spawn(dial, "inproc://full") for _ in range(5)]
        gevent.idle()
        assert [waiting.ready() for waiting in dials] == [True, True, False, False, False]
        accepted = [listener.accept() for _ in range(5)]
        dialed = [waiting.get(timeout=5) for waiting in dials]
        assert [end.peer for end in dialed] == accepted
    finally:
        listener.close()


def test_a_close_ends_every_dial_that_waits_behind_a_full_backlog() -> None:
    listener = make_listener("inproc://full", {"connector.listener.backlog": 1})
    listener.listen()
    errors: list[Exception] = []

    def try_to_dial() -> Any:
        try:
            return dial("inproc://full")
        except ConnectionRefused as error:
            errors.append(error)

    dials = [gevent.spawn(try_to_dial) for _ in range(5)]
    gevent.idle()
    listener.close()
    gevent.joinall(dials, timeout=5, raise_error=True)
    assert len(errors) == 4
    assert dials[0].value.closed, "the one that waited to be accepted was not told"


def test_a_name_that_was_closed_and_taken_again_is_not_given_up_by_a_second_close() -> None:
    first = make_listener("inproc://again")
    first.listen()
    first.close()
    with Socket() as second:
        second.listen("inproc://again")
        first.close()
        assert names() == ["again"]


def test_contents_are_handed_over_and_not_copied() -> None:
    content = bytes(100_000)
    with Socket() as server, Socket() as client:
        server.listen("inproc://handover")
        client.dial("inproc://handover")
        client.send(content)
        assert server.recv(timeout=5) is content
