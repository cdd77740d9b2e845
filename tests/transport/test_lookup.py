from __future__ import annotations

import _socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent.monkey import get_original

from gmultisocket.testing import wait_until
from gmultisocket.testing._fork import in_forked_child
from gmultisocket.transport import lookup
from gmultisocket.transport.lookup import Lookups, look_up

NativeLock: Callable[[], threading.Lock] = get_original("threading", "Lock")
ANSWER = [(gsocket.AF_INET, gsocket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]


class Gate:
    """Holds threads up until it is opened.

    It is one lock of the system. A ``threading.Event`` would be made of gevent's locks under monkey patching, whichever
    way the class is found, and threads that wait for those may not be woken.
    """

    def __init__(self) -> None:
        self._lock = NativeLock()
        self._open = True
        self.close()

    def wait(self, timeout: float) -> None:
        if self._lock.acquire(timeout=timeout):
            self._lock.release()

    def open(self) -> None:
        if not self._open:
            self._open = True
            self._lock.release()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._lock.acquire()


class NameServer:
    """Stands in for the system's ``getaddrinfo``: names under ``.invalid`` get an answer only after ``release()``."""

    def __init__(self) -> None:
        self.asked: Counter[bytes] = Counter()
        self.running = 0
        self.most = 0
        self._lock = NativeLock()
        self._gate = Gate()

    def __call__(self, host: bytes, port: int, *rest: object) -> list[Any]:
        with self._lock:
            self.asked[host] += 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            if host.endswith(b".invalid"):
                self._gate.wait(30)
                raise gsocket.gaierror(gsocket.EAI_NONAME, "Name or service not known")
            return ANSWER
        finally:
            with self._lock:
                self.running -= 1

    def release(self) -> None:
        self._gate.open()

    def hold(self) -> None:
        self._gate.close()


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(_socket, "getaddrinfo", server)
    monkeypatch.setattr(lookup, "_of_hubs", {})
    yield server
    server.release()
    wait_until(lambda: not any(each._lookups for each in lookup._of_hubs.values()), timeout=20)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_PATIENCE", 0.02)


def lookups() -> Lookups:
    return lookup._of_hubs[gevent.get_hub()]


def ask(name: str) -> Any:
    try:
        return look_up(name, 80, 0)
    except gsocket.gaierror as error:
        return error


def ask_dead(count: int) -> list[gevent.Greenlet[..., Any]]:
    asking = [gevent.spawn(ask, f"dead-{number}.invalid") for number in range(count)]
    gevent.sleep(0)
    return asking


def test_the_addresses_have_the_port(name_server: NameServer) -> None:
    assert look_up("good.example", 80, 0) == [(gsocket.AF_INET, gsocket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]


def test_an_international_name_is_looked_up_in_its_ascii_form(name_server: NameServer) -> None:
    ask("bücher.example")
    assert name_server.asked == {b"xn--bcher-kva.example": 1}


def test_a_good_name_does_not_wait_for_a_crowd_of_dead_ones(name_server: NameServer, quick: None) -> None:
    dead = ask_dead(200)
    good = [gevent.spawn(ask, f"good-{number}.example") for number in range(5)]
    assert all(asking.get(timeout=10)[0][4] == ("192.0.2.1", 80) for asking in good)
    wait_until(lambda: name_server.running > 2 * lookup._MAX_RUNNING)
    assert not any(asking.ready() for asking in dead)
    name_server.release()
    assert all(isinstance(asking.get(timeout=10), gsocket.gaierror) for asking in dead)
    # Those that had a thread are known to be slow: few of them run at the same time now.
    slow = [name.decode() for (name, _), slow in lookups()._known.items() if slow]
    assert len(slow) > lookup._MAX_RUNNING
    name_server.hold()
    dead = [gevent.spawn(ask, name) for name in slow]
    for number in range(5, 10):
        gevent.spawn(ask, f"good-{number}.example").get(timeout=10)
    assert name_server.running == lookup._MAX_RUNNING
    name_server.release()
    gevent.joinall(dead, timeout=20, raise_error=True)


def test_there_are_threads_for_names_that_were_quick_when_all_others_are_taken(
    name_server: NameServer, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_MAX_THREADS", 10)
    monkeypatch.setattr(lookup, "_RESERVED", 1)
    ask("good.example")
    dead = ask_dead(20)
    wait_until(lambda: name_server.running == 9)
    gevent.spawn(ask, "good.example").get(timeout=10)
    assert name_server.running == 9
    name_server.release()
    gevent.joinall(dead, timeout=20, raise_error=True)


def test_the_number_of_threads_is_limited(
    name_server: NameServer, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_MAX_THREADS", 20)
    monkeypatch.setattr(lookup, "_RESERVED", 0)
    dead = ask_dead(100)
    wait_until(lambda: name_server.running == 20)
    # Time for more to prove to be slow.
    for _ in range(10):
        gevent.sleep(lookup._PATIENCE)
    assert name_server.most == 20
    name_server.release()
    gevent.joinall(dead, timeout=20, raise_error=True)
    assert sum(name_server.asked.values()) == 100


def test_gevents_threads_stay_free_for_others(name_server: NameServer) -> None:
    dead = ask_dead(30)
    pool = gevent.get_hub().threadpool
    assert len(pool) == 0
    assert gevent.spawn(pool.apply, sum, ([1, 2],)).get(timeout=10) == 3
    name_server.release()
    gevent.joinall(dead, timeout=20, raise_error=True)


def test_all_who_ask_for_a_name_share_one_lookup(name_server: NameServer) -> None:
    asking = [gevent.spawn(ask, "dead.invalid") for _ in range(20)]
    wait_until(lambda: name_server.running == 1)
    name_server.release()
    assert {str(each.get(timeout=10)) for each in asking} == {str(asking[0].get())}
    assert name_server.asked == {b"dead.invalid": 1}
    # The next one asks again.
    ask("dead.invalid")
    assert name_server.asked == {b"dead.invalid": 2}


@pytest.mark.parametrize("known", [False, True])
def test_a_lookup_that_nobody_waits_for_any_more_does_not_begin(
    known: bool, name_server: NameServer, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_MAX_THREADS", 8)
    monkeypatch.setattr(lookup, "_RESERVED", 0)
    if known:
        dead = ask_dead(16)
        wait_until(lambda: name_server.running == 8)
        gevent.sleep(2 * lookup._PATIENCE)
        name_server.release()
        gevent.joinall(dead, timeout=20, raise_error=True)
        name_server.asked.clear()
        name_server.hold()
    dead = ask_dead(16)
    wait_until(lambda: name_server.running == 8)
    gevent.killall(dead)
    assert len(lookups()._lookups) == 8
    name_server.release()
    wait_until(lambda: not lookups()._lookups)
    assert sum(name_server.asked.values()) == 8
    ask("good.example")


def test_a_name_that_is_quick_again_is_no_longer_slow(name_server: NameServer, quick: None) -> None:
    asking = gevent.spawn(ask, "dead.invalid")
    wait_until(lambda: name_server.running == 1 and lookups()._new_names.running == 0)
    name_server.release()
    asking.get(timeout=10)
    assert list(lookups()._known.values()) == [True]
    ask("dead.invalid")
    assert list(lookups()._known.values()) == [False]


def test_no_more_names_are_remembered_than_the_limit(
    name_server: NameServer, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_MAX_REMEMBERED", 5)
    dead = ask_dead(8)
    wait_until(lambda: name_server.running == 8 and lookups()._new_names.running == 0)
    name_server.release()
    gevent.joinall(dead, timeout=20, raise_error=True)
    assert len(lookups()._known) == 5


def test_an_error_is_raised_and_not_printed(name_server: NameServer, capfd: pytest.CaptureFixture[str]) -> None:
    name_server.release()
    for _ in range(2):
        with pytest.raises(gsocket.gaierror, match="not known"):
            look_up("dead.invalid", 80, 0)
    assert capfd.readouterr() == ("", "")


def test_a_thread_that_cannot_be_started_is_an_error(name_server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def spawn(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    ask("good.example")
    monkeypatch.setattr(lookups(), "_pool", SimpleNamespace(spawn=spawn))
    with pytest.raises(OSError, match="can't start new thread"):
        look_up("other.example", 80, 0)
    assert lookups()._running == 0


def test_another_resolver_of_gevents_is_used_if_the_program_has_one(
    name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Resolver:
        def getaddrinfo(self, *args: object) -> list[Any]:
            asked.append(args[0])
            return ANSWER

    asked: list[object] = []
    monkeypatch.setattr(gevent.get_hub(), "resolver", Resolver())
    ask("good.example")
    assert [str(name) for name in asked] in (["good.example"], ["b'good.example'"])
    assert not name_server.asked


def test_a_function_in_the_place_of_gevents_is_called(name_server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(gsocket, "getaddrinfo", lambda *args: asked.append(args[:2]) or ANSWER)
    ask("good.example")
    assert asked == [("good.example", 80)]
    assert not name_server.asked


def test_a_forked_child_has_lookups_of_its_own(name_server: NameServer) -> None:
    asking = gevent.spawn(ask, "dead.invalid")
    wait_until(lambda: name_server.running == 1)

    def child(report: int) -> None:
        gevent.reinit()
        name_server._gate = Gate()
        name_server.release()
        assert isinstance(ask("dead.invalid"), gsocket.gaierror)

    in_forked_child(child)
    name_server.release()
    asking.get(timeout=10)
