"""The engine for Redis with the real server: logins, permissions, limits, TLS, unix sockets, globs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gevent import socket as gsocket

from gmultisocket.backplane.rediswire import MARK_SIZE, MAX_GLOBS
from gmultisocket.errors import AddressError, EngineRefused, NotSupported, UntrustedCertificate
from gmultisocket.testing import wait_until
from tests import certificates
from tests.backplane.brokers import PlainClient, answering, client
from tests.backplane.servers import RedisServer

hiredis = pytest.importorskip("hiredis", reason="hiredis is not installed")


def running(folder: Path, *extra: str) -> RedisServer:
    """Return a server with more arguments, to be started by ``with``."""
    return RedisServer(folder, extra)


def check_both_ways(url: str) -> None:
    with client(url) as publisher, client(url) as subscriber:
        subscriber.subscribe("a", "b.*")
        publisher.publish("a", b"1")
        publisher.publish("b.c", b"2")
        wait_until(lambda: subscriber.contents() == [b"1", b"2"])
        wait_until(lambda: publisher.confirmed_count == 2)


# Logins


@pytest.mark.parametrize("more", [[], ["--rename-command", "HELLO", ""]], ids=["new protocol", "old protocol"])
@pytest.mark.parametrize("login", [":pa%2Fss", "default:pa%2Fss", "me:word"])
def test_a_password_logs_in_with_both_protocols(tmp_path: Path, more: list[str], login: str) -> None:
    users = ["--requirepass", "pa/ss", "--user", *"me on >word ~* &* +@all".split()]
    with running(tmp_path, *users, *more) as server:
        check_both_ways(server.url_with(login))


@pytest.mark.parametrize("more", [[], ["--rename-command", "HELLO", ""]], ids=["new protocol", "old protocol"])
def test_no_password_is_needed_where_the_server_has_none(tmp_path: Path, more: list[str]) -> None:
    with running(tmp_path, *more) as server:
        check_both_ways(server.url)


@pytest.mark.parametrize("more", [[], ["--rename-command", "HELLO", ""]], ids=["new protocol", "old protocol"])
@pytest.mark.parametrize("login", [":wrong", "nobody:wrong", ""])
def test_a_wrong_login_is_refused_and_tried_again(tmp_path: Path, more: list[str], login: str) -> None:
    with running(tmp_path, "--requirepass", "right", *more) as server:
        with client(server.url_with(login) if login else server.url, wait=False) as plane:
            wait_until(lambda: len(plane.errors) >= 2)
            assert all(isinstance(error, EngineRefused) for error in plane.errors)
            assert not any(secret in str(plane.errors[0]) for secret in (":wrong", "right"))
            assert plane.connections == 0


def test_a_full_server_is_an_error(tmp_path: Path) -> None:
    with running(tmp_path, "--maxclients", "1") as server, client(server.url, wait=False) as plane:
        wait_until(lambda: plane.errors)
        # It closes at once. What it says is lost if this side has written meanwhile.
        expected = "max number of clients|has closed the connection|connection reset by peer"
        assert re.search(expected, str(plane.errors[0]))
        assert plane.connections == 0


# Permissions and limits


def test_what_the_user_may_not_do_is_refused_by_name(tmp_path: Path) -> None:
    with running(tmp_path, "--user", *"me on >word ~* &t.yes.* +@all".split()) as server:
        with client(server.url_with("me:word")) as plane:
            plane.subscribe("yes.a", "no.b", "yes.b", "no.c")
            assert plane.refused_patterns == [("no.b", "no permission"), ("no.c", "no permission")]
            for number in range(90):
                plane.publish("no.x" if number % 3 == 0 else "yes.a", b"")
            wait_until(lambda: plane.confirmed_count + plane.refused_reasons.total() == 90)
            assert plane.refused_reasons == {"permission": 30}
            wait_until(lambda: len(plane.got) == 60)


def test_publications_pass_though_the_memory_of_the_server_is_full(tmp_path: Path) -> None:
    with running(tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        with PlainClient("redis", server.port) as plain:
            assert plain.command(b"SET", b"a", b"b").startswith(b"-OOM")
        check_both_ways(server.url)


@pytest.mark.parametrize("kind", [b"pubsub", b"normal"])
def test_when_one_connection_is_cut_both_are_made_again(tmp_path: Path, kind: bytes) -> None:
    with running(tmp_path) as server, client(server.url) as plane, PlainClient("redis", server.port) as plain:
        plane.subscribe("a")
        assert plain.command(b"CLIENT", b"KILL", b"TYPE", kind).startswith(b":")
        wait_until(lambda: plane.connections == 2)
        assert len(plane.errors) == 1
        plane.subscribe("a")
        plane.publish("a", b"x")
        wait_until(lambda: plane.contents() == [b"x"])


def test_a_process_asks_for_few_globs(tmp_path: Path) -> None:
    with running(tmp_path) as server, client(server.url) as plane, PlainClient("redis", server.port) as plain:

        def globs() -> int:
            return int(plain.command(b"PUBSUB", b"NUMPAT")[1:])

        patterns = [f"user.{number}.>" for number in range(500)]
        plane.subscribe(*patterns[:MAX_GLOBS])
        assert globs() == MAX_GLOBS
        with client(server.url) as publisher:
            for start in range(MAX_GLOBS, 500, 100):
                plane.subscribe(*patterns[start : start + 100])
                publisher.publish("user.3.x", b"%d" % start)
            wait_until(lambda: len(plane.got) == 5)
        assert globs() == 1
        plane.engine.unsubscribe(patterns)
        wait_until(lambda: globs() == 0)


def test_another_program_sees_the_mark_and_the_content(tmp_path: Path) -> None:
    with running(tmp_path) as server, client(server.url) as plane, PlainClient("redis", server.port) as plain:
        assert plain.command(b"SUBSCRIBE", b"t.a") == b"*3\r\n"
        plain.read_until(b":1\r\n")
        plane.publish("a", b"the content")
        plain.read_until(b"$%d\r\n" % (MARK_SIZE + len(b"the content")))
        assert plain.read_until(b"content\r\n")[MARK_SIZE:] == b"the content\r\n"


# Other ways to connect


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with running(tmp_path, "--unixsocket", str(path), "--requirepass", "pw") as server:
        check_both_ways(f"redis+unix://:pw@{path}")
        # Removes its file.
        server.stop()


def tls_arguments(folder: Path) -> list[str]:
    cert, key = certificates.write_certificate(folder, certificates.server_certificate(), "server").values()
    (ca,) = certificates.write_authority(folder).values()
    return ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", ca, "--tls-auth-clients", "no"]


class SecureRedisServer(RedisServer):
    """redis-server that speaks TLS only."""

    scheme = "rediss"

    def arguments(self) -> list[str]:
        words = super().arguments()
        words[words.index("--port")] = "--tls-port"
        return [*words, "--port", "0", *tls_arguments(self.folder)]


def test_tls(tmp_path: Path) -> None:
    with SecureRedisServer(tmp_path) as server:
        check_both_ways(f"{server.url}?transport.tls.cafile={tmp_path / 'ca.pem'}")
        with client(server.url, wait=False) as plane:
            wait_until(lambda: plane.errors)
            assert isinstance(plane.errors[0], UntrustedCertificate)


def test_several_servers_are_refused() -> None:
    with pytest.raises(AddressError, match="expected one"), client("redis://me:s3cret@a,b", wait=False):
        pass


def test_without_hiredis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gmultisocket.backplane.redislink", raising=False)
    monkeypatch.setitem(sys.modules, "hiredis", None)
    import gmultisocket.backplane as package

    monkeypatch.delattr(package, "redislink", raising=False)
    with pytest.raises(NotSupported, match=r"pip install 'gmultisocket\[redis\]'"), client("redis://a", wait=False):
        pass


# What newer or other servers answer


@contextmanager
def replying(replies: dict[bytes, bytes]) -> Iterator[str]:
    """Run a server that has one reply for each command, and give its URL."""

    def serve(peer: gsocket.socket) -> None:
        reader = hiredis.Reader()
        while data := peer.recv(65536):
            reader.feed(data)
            while (command := reader.gets()) is not False:
                peer.sendall(replies[command[0]])

    with answering(serve) as port:
        yield f"redis://127.0.0.1:{port}"


HELLO = {
    b"HELLO": b"%1\r\n+proto\r\n:3\r\n",
    b"PING": b"+PONG\r\n",
    b"SUBSCRIBE": b">3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n",
    b"SMEMBERS": b"~0\r\n",
}


def test_a_server_without_memory_for_a_subscription_is_down_and_tried_again() -> None:
    refusal = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
    with replying({**HELLO, b"SUBSCRIBE": refusal}) as url, client(url) as plane:
        plane.engine.subscribe(["a"])
        wait_until(lambda: plane.errors)
        assert "OOM" in str(plane.errors[0])
        assert plane.portions == 0 and not plane.refused_patterns
        wait_until(lambda: plane.connections == 2)


@pytest.mark.parametrize(
    ("answer", "reasons"),
    [(b"-OOM no\r\n", {"out of memory": 3}), (b"-LOADING wait\r\n", {"loading": 3}), (b"-WHAT 17\r\n", {"error": 3})],
)
def test_an_error_of_each_publication_is_counted(answer: bytes, reasons: dict[str, int]) -> None:
    with replying({**HELLO, b"PUBLISH": answer}) as url, client(url) as plane:
        for _ in range(3):
            plane.publish("a", b"")
        wait_until(lambda: plane.refused_reasons == reasons)
        assert plane.confirmed_count == 0 and plane.up


@pytest.mark.parametrize("answer", [b"+OK\r\n", b"$-1\r\n", b":1\r\n:1\r\n", b"*1\r\n:1\r\n"])
def test_an_answer_that_no_publish_has_ends_the_connection(answer: bytes) -> None:
    with replying({**HELLO, b"PUBLISH": answer}) as url, client(url) as plane:
        plane.publish("a", b"")
        wait_until(lambda: plane.errors)
        assert "bad message" in str(plane.errors[0])


def test_a_server_that_is_loading_its_data_is_not_up() -> None:
    with replying({**HELLO, b"PING": b"-LOADING Redis is loading the dataset in memory\r\n"}) as url:
        with client(url, wait=False) as plane:
            wait_until(lambda: len(plane.errors) > 1)
            assert "LOADING" in str(plane.errors[0])
            assert plane.connections == 0
