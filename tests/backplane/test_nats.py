"""The engine for NATS with the real server: logins, limits, permissions, TLS, several servers."""

from __future__ import annotations

import os
from pathlib import Path

import gevent
import pytest

from gmultisocket.backplane import Backplane, Subscription, brokerline
from gmultisocket.backplane.nats import NatsEngine
from gmultisocket.backplane.natswire import HEADER_SIZE
from gmultisocket.errors import AddressError, EngineRefused, HandshakeFailed, UntrustedCertificate
from gmultisocket.loop.waiting import Deadline
from gmultisocket.options import PlaneOptions
from gmultisocket.testing import nothing_left, wait_until
from gmultisocket.testing._fork import in_forked_child
from tests import certificates
from tests.backplane.brokers import PlainClient, RecordingPlane, answering, client, publish_until
from tests.backplane.servers import NatsServer
from tests.faults.peers import free_port


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def running(folder: Path, config: str = "", *extra: str) -> NatsServer:
    """Return a server with a configuration, to be started by ``with``."""
    return NatsServer.configured(folder, config, *extra)


# Logins

USERS = 'authorization { users = [ {user: "me", password: "a/b@c:d"}, {user: "x y", password: ""} ] }'


@pytest.mark.parametrize("login", ["me:a%2Fb%40c%3Ad", "x%20y:"])
def test_a_user_logs_in_with_a_password(tmp_path: Path, login: str) -> None:
    with running(tmp_path, USERS) as server, client(server.url_with(login)) as plane:
        plane.subscribe("a")


@pytest.mark.parametrize("login", ["me:wrong", "nobody:x", "token", ""])
def test_a_wrong_login_is_refused_and_tried_again(tmp_path: Path, login: str) -> None:
    with running(tmp_path, USERS) as server:
        url = server.url_with(login) if login else server.url
        with client(url, wait=False) as plane:
            wait_until(lambda: len(plane.errors) >= 2)
            assert all(isinstance(error, EngineRefused) for error in plane.errors)
            assert "Authorization Violation" in str(plane.errors[0])
            assert "wrong" not in str(plane.errors[0])
            assert plane.connections == 0


def test_a_token_logs_in(tmp_path: Path) -> None:
    with running(tmp_path, 'authorization { token: "s3cret" }') as server:
        with client(server.url_with("s3cret")) as plane:
            plane.subscribe("a")


def test_a_full_server_is_an_error(tmp_path: Path) -> None:
    with running(tmp_path, "max_connections: 1") as server, client(server.url):
        with client(server.url, wait=False) as plane:
            wait_until(lambda: plane.errors)
            assert isinstance(plane.errors[0], EngineRefused)
            assert "maximum connections exceeded" in str(plane.errors[0])


# Limits and permissions


def test_a_content_of_the_limit_fits(tmp_path: Path) -> None:
    with running(tmp_path, "max_payload: 1000") as server, client(server.url) as one, client(server.url) as two:
        assert one.engine.max_content == 1000 - HEADER_SIZE
        two.subscribe("a")
        one.sequence = 2**64 - 2
        one.publish("a", b"x" * one.engine.max_content)
        wait_until(lambda: len(two.got) == 1)
        assert two.got[0][3] == 2**64 - 1


def test_refused_publications_are_counted_exactly(tmp_path: Path) -> None:
    config = 'authorization { users = [ {user: "u", password: "p", permissions: {publish: {deny: "t.no.>"}}} ] }'
    with running(tmp_path, config) as server, client(server.url_with("u:p")) as plane:
        for number in range(300):
            plane.publish("no.x" if number % 3 == 0 else "yes", b"")
            if number % 50 == 0:
                gevent.sleep(0)
        wait_until(lambda: plane.confirmed_count + plane.refused_reasons.total() == 300)
        assert plane.refused_reasons == {"permission": 100}
        assert plane.up


def test_a_refused_pattern_is_named_and_the_others_work(tmp_path: Path) -> None:
    config = 'authorization { users = [ {user: "u", password: "p", permissions: {subscribe: ["t.yes.>"]}} ] }'
    with running(tmp_path, config) as server, client(server.url_with("u:p")) as plane:
        plane.subscribe("yes.a", "no.b c", "yes.*", "no.>")
        assert plane.refused_patterns == [("no.b c", "no permission"), ("no.>", "no permission")]
        with client(server.url_with("u:p")) as other:
            other.publish("yes.a", b"x")
            wait_until(lambda: len(plane.got) == 2)


def test_a_pattern_that_is_too_long_for_a_line_is_refused_and_the_others_work(tmp_path: Path) -> None:
    with running(tmp_path) as server, client(server.url) as plane, client(server.url) as other:
        plane.subscribe("a", "b" * 4000, " " * 2000 + ".>", "c")
        assert plane.refused_patterns == [("b" * 4000, "too long"), (" " * 2000 + ".>", "too long")]
        plane.engine.unsubscribe(["b" * 4000])
        other.publish("c", b"")
        wait_until(lambda: plane.topics() == ["c"])


def test_patterns_over_the_servers_limit_are_named(tmp_path: Path) -> None:
    with running(tmp_path, "max_subscriptions: 3") as server, client(server.url) as plane:
        plane.subscribe("a", "b", "c", "d", "e")
        assert [pattern for pattern, _ in plane.refused_patterns] == ["d", "e"]
        plane.engine.unsubscribe(["a", "b"])
        plane.subscribe("d")
        assert len(plane.refused_patterns) == 2


def test_a_server_without_headers_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, "no_header_support: true") as server, client(server.url, wait=False) as plane:
        wait_until(lambda: plane.errors)
        assert isinstance(plane.errors[0], EngineRefused)
        assert "headers" in str(plane.errors[0])


def test_a_server_that_waits_for_somebody_else_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server writes to a subscriber that does not read, for a second, and reads nothing from the publisher."""
    monkeypatch.setattr(brokerline, "SILENCE", 0.2)
    monkeypatch.setattr(brokerline, "_STEP", 0.05)
    config = "max_payload: 100000\nmax_pending: 1000000\nwrite_deadline: \"1s\""
    probes = []
    probe = NatsEngine._probe
    monkeypatch.setattr(NatsEngine, "_probe", lambda *args: (probes.append(args), probe(*args)))
    with running(tmp_path, config) as server, client(server.url) as publisher:
        with PlainClient("nats", server.port) as plain:
            plain.write(b"SUB t.a 1\r\nPING\r\n")
            plain.read_until(b"PONG\r\n")
            publish_until(publisher, server, "Slow Consumer")
        assert not publisher.errors
        assert probes


def test_nothing_is_left_when_it_closes_while_it_asks_on_another_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokerline, "SILENCE", 0.2)
    monkeypatch.setattr(brokerline, "_STEP", 0.05)
    probes = []
    probe = NatsEngine._probe
    monkeypatch.setattr(NatsEngine, "_probe", lambda *args: (probes.append(args), probe(*args)))
    with running(tmp_path) as server, nothing_left():
        plane = RecordingPlane()
        plane.engine = NatsEngine(server.url, plane, PlaneOptions())
        plane.engine.start()
        plane.wait_up()
        connected = descriptors()
        server.pause()
        plane.publish("a", b"x")
        wait_until(lambda: probes and descriptors() > connected, 20)

        def child(report: int) -> None:
            before = descriptors()
            plane.engine.abandon()
            assert descriptors() == before - 2

        in_forked_child(child)
        plane.engine.close(Deadline(0))
        server.resume()
        assert plane.errors == []


# Other programs


def test_headers_and_replies_of_other_programs_are_left_out(tmp_path: Path) -> None:
    with running(tmp_path) as server, client(server.url) as plane:
        with PlainClient("nats", server.port) as plain:
            plane.subscribe("a")
            plain.write(b"HPUB t.a reply.to 24 27\r\nNATS/1.0\r\nKey: value\r\n\r\nabc\r\nPING\r\n")
            plain.read_until(b"PONG\r\n")
            wait_until(lambda: plane.foreign == [("a", b"abc")])


def test_a_subject_of_another_program_may_have_white_space_that_separates_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as server, client(server.url) as plane, PlainClient("nats", server.port) as plain:
        plane.subscribe("a.>")
        plane.subscribe("b")
        plain.publish([(b"t.a.\v2", b"of the first"), (b"t.a.\f2", b"as well"), (b"t.b", b"of the second")])
        wait_until(lambda: len(plane.foreign) == 3)
        assert plane.foreign == [("a.\v2", b"of the first"), ("a.\f2", b"as well"), ("b", b"of the second")]


def test_another_program_gets_the_content_as_it_is(tmp_path: Path) -> None:
    with running(tmp_path) as server, client(server.url) as plane:
        with PlainClient("nats", server.port) as plain:
            plain.write(b"SUB t.a 1\r\nPING\r\n")
            plain.read_until(b"PONG\r\n")
            plane.publish("a", b"the content")
            header = plain.read_until(b"\r\n\r\n")
            assert header.startswith(b"HMSG t.a 1 ")
            assert plain.read_until(b"\r\n") == b"the content\r\n"


# Several servers


def test_the_next_server_is_used_when_one_is_away(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with running(tmp_path / "a") as one, running(tmp_path / "b") as two:
        with client(f"nats://127.0.0.1:{one.port},127.0.0.1:{two.port}") as plane:
            for server, other in ((one, two), (two, one)):
                server.kill()
                wait_until(plane_uses(plane.engine, other), 10)
                plane.subscribe("a")
                server.start()


def plane_uses(engine: object, server: NatsServer) -> object:
    def check() -> bool:
        plane = engine.plane  # type: ignore[attr-defined]
        if not plane.up:
            return False
        return str(server.port) in engine._link._server.name  # type: ignore[attr-defined]

    return check


# TLS


def tls_arguments(folder: Path) -> list[str]:
    files = [*certificates.write_certificate(folder, certificates.server_certificate(), "server").values()]
    return ["--tls", "--tlscert", files[0], "--tlskey", files[1]]


@pytest.mark.parametrize("scheme", ["nats+tls", "nats"])
def test_tls_is_used_where_the_server_or_the_url_wants_it(tmp_path: Path, scheme: str) -> None:
    (ca,) = certificates.write_authority(tmp_path).values()
    with running(tmp_path, "", *tls_arguments(tmp_path)) as server:
        url = f"{scheme}://127.0.0.1:{server.port}?transport.tls.cafile={ca}"
        with client(url) as publisher, client(url) as subscriber:
            subscriber.subscribe("a.>")
            for number in range(300):
                publisher.publish("a.b", bytes([number % 256]) * 5000)
            wait_until(lambda: publisher.confirmed_count == 300 and len(subscriber.got) == 300)
            assert "TLS handshake error" not in server.log()


def test_a_certificate_that_nobody_trusts_is_an_error(tmp_path: Path) -> None:
    with running(tmp_path, "", *tls_arguments(tmp_path)) as server:
        with client(f"nats://127.0.0.1:{server.port}", wait=False) as plane:
            wait_until(lambda: plane.errors)
            assert isinstance(plane.errors[0], UntrustedCertificate)


def test_a_server_without_tls_is_not_used_where_the_url_wants_it(tmp_path: Path) -> None:
    with running(tmp_path) as server, client(f"nats+tls://127.0.0.1:{server.port}", wait=False) as plane:
        wait_until(lambda: plane.errors)
        assert isinstance(plane.errors[0], HandshakeFailed)
        assert "offers no TLS" in str(plane.errors[0])


def test_what_comes_before_tls_must_be_the_info_alone() -> None:
    """Somebody on the way could put something in front of the encrypted bytes."""
    data = b'INFO {"max_payload": 9, "headers": true, "tls_required": true}\r\nMSG a 1 1\r\nx\r\n'
    with answering(lambda peer: peer.sendall(data)) as port:
        with client(f"nats://127.0.0.1:{port}", wait=False) as plane:
            wait_until(lambda: plane.errors)
            assert "INFO alone" in str(plane.errors[0])


def test_a_wrong_url_opens_nothing() -> None:
    with pytest.raises(AddressError), client("nats://a:b:c", wait=False):
        pass


def test_planes_at_different_servers_of_a_cluster_hear_each_other(tmp_path: Path) -> None:
    """Also when one of the servers is killed, and its plane goes on at the other one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    route = free_port()
    first = f'cluster {{name: c, listen: "127.0.0.1:{route}"}}'
    second = f'cluster {{name: c, listen: "127.0.0.1:-1", routes: ["nats-route://127.0.0.1:{route}"]}}'
    with running(tmp_path / "a", first) as one, running(tmp_path / "b", second) as two:
        wait_until(lambda: "Route connection created" in one.log(), 20)
        options = {"plane.hold": 0.5}
        with Backplane(f"{one.url},{two.url}", options) as mine, Backplane(two.url) as other:
            other.connect(20)
            mine.connect(20)
            mine_at_one = str(one.port) in mine._link.engine._link._server.name  # type: ignore[union-attr,attr-defined]
            here, there = mine.subscribe("a", 20), other.subscribe("b", 20)
            # The servers tell each other of subscriptions a moment later.
            talk(mine, other, here, there)
            one.kill()
            if mine_at_one:
                wait_until(lambda: not mine.healthy, 20)
            wait_until(lambda: mine.healthy, 20)
            talk(mine, other, here, there)
            for plane in (mine, other):
                plane.flush(20)
                assert plane.counters.duplicates == 0


def talk(mine: Backplane, other: Backplane, here: Subscription, there: Subscription) -> None:
    """Publish both ways until both have heard something."""

    def heard() -> bool:
        mine.publish("b", b"")
        other.publish("a", b"")
        return bool(here.waiting and there.waiting)

    wait_until(heard, 20)
    for subscription in (here, there):
        while subscription.waiting:
            subscription.recv(0)
