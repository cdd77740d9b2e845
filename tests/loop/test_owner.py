"""Who may use what belongs to a thread and a process: the rule itself. Forks with live pipes are among the faults."""

from __future__ import annotations

import subprocess
import sys

import gevent
import pytest
from gevent import get_hub
from gevent.monkey import get_original

from gmultisocket import Socket
from gmultisocket.core.socket import live_sockets
from gmultisocket.errors import ForkedSocketError, WrongThread
from gmultisocket.loop import owner
from gmultisocket.testing._fork import in_forked_child


class Thing:
    """Something that belongs to this thread."""

    abandoned = 0

    def _abandon(self) -> None:
        self.abandoned += 1


def test_what_is_registered_is_let_go_of_in_a_child_and_in_no_other_place() -> None:
    kept, dropped = Thing(), Thing()
    owner.register(kept)
    owner.register(dropped)
    owner.unregister(dropped)

    def child(report: int) -> None:
        assert (kept.abandoned, dropped.abandoned) == (1, 0)
        assert kept not in list(owner.live())

    try:
        in_forked_child(child)
        assert kept in list(owner.live()) and not kept.abandoned
    finally:
        owner.unregister(kept)


def test_what_cannot_be_let_go_of_keeps_nothing_else_from_it() -> None:
    class Stuck(Thing):
        def _abandon(self) -> None:
            raise LookupError("for the test")

    # The order in which the child lets go of them is not known.
    things = [Thing() for _ in range(50)] + [Stuck()]
    for thing in things:
        owner.register(thing)

    def child(report: int) -> None:
        assert [thing.abandoned for thing in things] == [1] * 50 + [0]
        assert not [*owner.live()]

    try:
        in_forked_child(child)
    finally:
        for thing in things:
            owner.unregister(thing)


def test_nothing_is_kept_alive_by_being_registered() -> None:
    owner.register(Thing())
    assert not [thing for thing in owner.live() if isinstance(thing, Thing)]


def test_the_error_says_whether_it_is_the_thread_or_the_process() -> None:
    assert isinstance(owner.wrong_owner(owner.FORKED), ForkedSocketError)
    assert isinstance(owner.wrong_owner(owner.current_thread()), WrongThread)


def test_the_thread_of_a_hub_may_use_what_belongs_to_it_and_no_other_may() -> None:
    hub = get_hub()
    owner.check_thread(hub)
    outcome: list[BaseException] = []

    def other_thread() -> None:
        try:
            owner.check_thread(hub)
        except WrongThread as error:
            outcome.append(error)

    get_original("_thread", "start_new_thread")(other_thread, ())
    with gevent.Timeout(5):
        while not outcome:
            gevent.sleep(0.001)
    assert isinstance(outcome[0], WrongThread)


def test_open_sockets_are_known_until_they_are_closed() -> None:
    with Socket() as sock:
        assert sock in live_sockets()
    assert sock not in live_sockets()


def test_a_child_can_do_nothing_with_a_live_pipe_and_the_parent_receives_everything(address: str) -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen(address).address)
        client.send(b"before")
        assert server.recv(timeout=5) == b"before"

        def child(report: int) -> None:
            for sock in (server, client):
                with pytest.raises(ForkedSocketError):
                    sock.send(b"x")
                with pytest.raises(ForkedSocketError):
                    sock.recv()
                assert sock.close() == 0
            # And nothing that the copies hold does any harm.
            for endpoint in (*client.dialers, *server.listeners, *server.pipes.values()):
                endpoint.close()

        in_forked_child(child)
        sending = gevent.spawn(lambda: [client.send(b"%d" % number) for number in range(2000)])
        assert [server.recv(timeout=5) for _ in range(2000)] == [b"%d" % number for number in range(2000)]
        sending.get()


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"], ids=["plain", "patched"])
def test_functions_of_the_system_are_the_unpatched_ones_and_cost_no_import(patch: str) -> None:
    program = f"""
import _thread, os, select, sys
before = os.close, _thread.get_ident, select.poll
import gevent.socket
{patch}
import gmultisocket
from gmultisocket.loop.owner import current_thread, original
assert (original("os", "close"), current_thread, original("select", "poll")) == before
assert ("gevent.monkey" in sys.modules) == {bool(patch)}
"""
    subprocess.run([sys.executable, "-c", program], check=True)
