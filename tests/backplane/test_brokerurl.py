"""URLs of brokers."""

from __future__ import annotations

import pytest

from gmultisocket.backplane.brokerurl import BrokerURL, Credentials, parse_url
from gmultisocket.errors import AddressError, BadOptionValue, UnknownOption
from gmultisocket.options import PlaneOptions

PORTS = {"nats": 4222, "nats+tls": 4222, "redis+unix": None}


def parse(url: str) -> BrokerURL:
    return parse_url(url, PORTS, PlaneOptions({"transport.tcp.no_delay": False}))


def test_servers_have_the_usual_port_and_the_credentials_of_the_first() -> None:
    found = parse("nats://me:se%2Fcr%40et@a,b:5000,you@[::1],nats.example:1?transport.tls.cafile=/etc/ca.pem")
    assert [server.location for server in found.servers] == ["a:4222", "b:5000", "[::1]:4222", "nats.example:1"]
    mine = Credentials("me", "se/cr@et")
    assert [server.credentials for server in found.servers] == [mine, mine, Credentials("you", None), mine]
    assert found.options.get("transport.tls.cafile") == "/etc/ca.pem"
    assert found.options.get("transport.tcp.no_delay") is False


def test_a_scheme_in_front_of_each_server_is_right_too() -> None:
    found = parse("NATS://a:1,nats://u:p@b:2,nats://c")
    assert [server.name for server in found.servers] == ["nats://a:1", "nats://b:2", "nats://c:4222"]
    assert found.servers[1].credentials == Credentials("u", "p")


def test_a_unix_socket_is_a_path() -> None:
    found = parse("redis+unix://:pw@/run/redis@1.sock?transport.tcp.no_delay=true")
    (server,) = found.servers
    assert (server.location, server.credentials) == ("/run/redis@1.sock", Credentials("", "pw"))
    assert server.name == "redis+unix:///run/redis@1.sock"
    assert parse("redis+unix:///x@y").servers[0].location == "/x@y"


def test_the_number_of_a_database_is_ignored_where_it_may_be() -> None:
    for end in ("", "/", "/0", "/15"):
        found = parse_url(f"redis://:pw@a{end}?plane.prefix=x.", {"redis": 6379}, PlaneOptions(), database=True)
        assert [server.name for server in found.servers] == ["redis://a:6379"]
        assert found.options.get("plane.prefix") == "x."
    for end in ("/x", "/0/1", "/-1"):
        with pytest.raises(AddressError):
            parse_url(f"redis://a{end}", {"redis": 6379}, PlaneOptions(), database=True)
    with pytest.raises(AddressError):
        parse("nats://a/0")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("kafka://a", "expected nats:// or nats\\+tls://"),
        ("nats:a", "expected nats://"),
        ("nats://", "the host is missing"),
        ("nats://a,", "the host is missing"),
        ("nats://a:70000", "the port must be a number"),
        ("nats://a:1/x", "nothing but"),
        ("nats://a#x", "nothing but"),
        ("nats://a b", "white space"),
        ("nats://a\n", "white space"),
        ("nats://u:%ff@a", "not UTF-8"),
        ("redis+unix://run/x", "expected redis\\+unix:///absolute/path"),
    ],
)
def test_a_wrong_url_is_refused_with_what_would_be_right(url: str, why: str) -> None:
    with pytest.raises(AddressError, match=why):
        parse(url)


@pytest.mark.parametrize(
    "url",
    ["nats://me:s3cret@a:70000", "nats://me:s3cret@a:1/x", "kafka://me:s3cret@a", "nats://me:s3/cret@a",
     "nats://me:s3cret@a b", "nats://me:s3#cret@a", "redis+unix://:s3cret@x", "nats://s3cret@a?x=y",
     "nats://me:s3,cret@a", "nats://me:s3?cret@a", "nats://u:p@a,me:s3?x=cret@b"],
)  # fmt: skip
def test_no_error_shows_a_secret(url: str) -> None:
    with pytest.raises((AddressError, UnknownOption)) as caught:
        parse(url)
    assert "s3" not in str(caught.value)


def test_no_repr_shows_a_secret() -> None:
    assert "s3cret" not in repr(parse("nats://me:s3cret@a"))


def test_a_wrong_option_is_an_error() -> None:
    with pytest.raises(UnknownOption):
        parse("nats://a?nothing=1")
    with pytest.raises(BadOptionValue):
        parse("nats://a?transport.tcp.no_delay=maybe")
