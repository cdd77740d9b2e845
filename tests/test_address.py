"""Addresses: how they are taken apart, what is refused and in which words, and that no password gets out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmultisocket import options
from gmultisocket.address import Address, split_host_port
from gmultisocket.errors import AddressError, BadOptionValue, MultiSocketError, OptionError, UnknownOption
from gmultisocket.options import OptionValues, option
from tests.cases import every_case


class Recorder:
    """Something to connect that only notes what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Address, OptionValues | None]] = []

    def dial(self, address: Address, options: OptionValues | None = None) -> str:
        self.calls.append(("dial", address, options))
        return "a dialer"

    def listen(self, address: Address, options: OptionValues | None = None) -> int:
        self.calls.append(("listen", address, options))
        return 7


ADDRESSES = [
    ("tcp://127.0.0.1:30001", "tcp", "127.0.0.1:30001"),
    ("tcp://[::1]:0", "tcp", "[::1]:0"),
    ("tcp://*:80", "tcp", "*:80"),
    ("TCP://Host:80", "tcp", "Host:80"),
    ("tls+tcp://host:80", "tls+tcp", "host:80"),
    ("ipc:///tmp/x.sock", "ipc", "/tmp/x.sock"),
    ("ipc://relative/path", "ipc", "relative/path"),
    ("ipc://@name", "ipc", "@name"),
    ("ipc:///tmp/100%/a:b/%41.sock", "ipc", "/tmp/100%/a:b/%41.sock"),
    ("ipc:///tmp/user:secret@host", "ipc", "/tmp/user:secret@host"),
    ("ipc://me@home", "ipc", "me@home"),
    ("ipc:///tmp/größe.sock", "ipc", "/tmp/größe.sock"),
    ("inproc://any.name/with-slash", "inproc", "any.name/with-slash"),
    ("inproc.channel.msr://worker@1", "inproc.channel.msr", "worker@1"),
    ("ws://host:80/a/@user", "ws", "host:80/a/@user"),
    ("ws://host/@user", "ws", "host/@user"),
    ("ws://[::1]:80/@user", "ws", "[::1]:80/@user"),
]


def test_scheme_and_location_are_taken_as_they_are_written() -> None:
    with every_case() as case:
        for text, scheme, location in ADDRESSES:
            with case(text):
                address = Address.parse(text)
                assert (address.scheme, address.location) == (scheme, location)
                assert (address.connect_type, address.options) == ("", {})
                assert str(address) == text
                for connect_type in ("dial", "listen"):
                    whole = Address.parse(f"{text}?socket.send_ttl=3#{connect_type}")
                    assert (whole.scheme, whole.location, whole.connect_type) == (scheme, location, connect_type)
                    assert whole.options == {"socket.send_ttl": 3}
                    assert whole.bare == f"{scheme}://{location}"


def test_options_are_read_in_either_spelling_and_percent_decoded() -> None:
    address = Address.parse(
        "tcp://h:1?Socket.SendTTL=3&connector.dialer.max_reconnect_time=1m30s&Socket.NoRecv&socket.no_send=%66alse"
        "&transport.ipc.mode=0660&transport.ipc.allow_uids=0%2C1000&#dial"
    )
    assert address.options == {
        "socket.send_ttl": 3,
        "connector.dialer.max_reconnect_time": 90.0,
        "socket.no_recv": True,
        "socket.no_send": False,
        "transport.ipc.mode": 0o660,
        "transport.ipc.allow_uids": {0, 1000},
    }


@pytest.mark.parametrize(
    ("value", "decoded"), [("a+b", "a+b"), ("%2Btmp%20x", "+tmp x"), ("%C3%a4", "ä"), ("a=b", "a=b"), ("/a?b", "/a?b")]
)
def test_a_value_is_percent_decoded_and_nothing_else(value: str, decoded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in ("_by_name", "_by_go_name"):
        monkeypatch.setattr(option, registry, dict(getattr(option, registry)))
    options.define("smoke.text", str, "")
    assert Address.parse(f"tcp://h:1?smoke.text={value}").options == {"smoke.text": decoded}


@pytest.mark.parametrize("text", ["tcp://h:1?", "tcp://h:1#", "tcp://h:1?#", "tcp://h:1?&&"])
def test_empty_parts_are_nothing(text: str) -> None:
    address = Address.parse(text)
    assert (address.location, address.connect_type, address.options) == ("h:1", "", {})


NO_ADDRESSES = [
    ("", '"://"'),
    ("127.0.0.1:80", '"://"'),
    ("tcp:127.0.0.1:80", '"://"'),
    ("://127.0.0.1:80", "the scheme before"),
    ("1tcp://h:1", "the scheme before"),
    ("t_p://h:1", "the scheme before"),
    ("tcp://", "nothing follows"),
    ("inproc://#listen", "nothing follows"),
    ("ipc://?socket.send_ttl=3", "nothing follows"),
    ("tcp://h:1#Dial", "expected #dial or #listen"),
    ("tcp://h:1#dial?socket.send_ttl=3", "expected #dial or #listen"),
    ("tcp://h:1#dial#dial", "expected #dial or #listen"),
    (" tcp://h:1", "the scheme before"),
    ("tcp://h:1 ", "white space"),
    ("ipc:///tmp/a ", "white space"),
    ("ipc:///tmp/a?raw=true ", "white space"),
    ("ipc:///tmp/a?no_delay= true", "white space"),
    ("ipc:///tmp/a\nb", "white space"),
    ("ipc:///tmp/a\0b", "control character"),
    ("ipc:///tmp/a\x1b[31m", "control character"),
    ("ipc:///tmp/a\u2028b", "white space"),
    ("ipc:///tmp/\udcff", "control character"),
    ("tcp://h:1?=3", "expected name=value"),
    ("tcp://h:1?socket.send_ttl=3;socket.no_recv=1", "expected"),
    ("tcp://h:1?a-b=3", "expected name=value"),
    ("tcp://h:1?socket.send_ttl=3&Socket.SendTTL=3", "socket.send_ttl is set twice"),
    ("tcp://h:1?socket.send_ttl=%", "%25"),
    ("tcp://h:1?socket.send_ttl=%3", "%25"),
    ("tcp://h:1?socket.send_ttl=%zz", "%25"),
    ("tcp://h:1?socket.send_ttl=%ff", "not UTF-8"),
    ("tcp://h:1?socket.send_ttl=%0A", "control character"),
]


def test_what_is_no_address_is_refused_with_the_reason() -> None:
    with every_case() as case:
        for text, why in NO_ADDRESSES:
            with case(repr(text)):
                with pytest.raises((AddressError, BadOptionValue)) as caught:
                    Address.parse(text)
                assert why in str(caught.value)
                assert str(caught.value).isprintable()


@pytest.mark.parametrize("thing", [None, 5, b"tcp://user:secret@h:1", ["tcp://h:1"]])
def test_what_is_no_text_is_no_address(thing: Any) -> None:
    with pytest.raises(AddressError, match="an address is a str") as caught:
        Address.parse(thing)
    assert "secret" not in str(caught.value)


def test_errors_of_options_pass_through_and_spoil_no_later_parse() -> None:
    with pytest.raises(UnknownOption) as unknown:
        Address.parse("tcp://h:1?Socket.SendTTTL=3")
    assert unknown.value.suggestion == "socket.send_ttl"
    with pytest.raises(BadOptionValue, match="from 0 to 255"):
        Address.parse("tcp://h:1?Socket.SendTTL=300")
    assert Address.parse("tcp://h:1?Socket.SendTTL=30").options == {"socket.send_ttl": 30}


def test_an_unknown_option_in_an_address_spoils_no_later_one() -> None:
    for _ in range(3):
        with pytest.raises(UnknownOption, match="socket.send_ttl"):
            Address.parse("tcp://127.0.0.1:1?socket.sendttl_=1")
        with pytest.raises(BadOptionValue):
            Address.parse("tcp://127.0.0.1:1?socket.send_ttl=many")
        assert Address.parse("tcp://127.0.0.1:1?socket.send_ttl=3").options


WITH_PASSWORDS = [
    "tcp://user:secret@h:1",
    "tcp://secret@h:1",
    "tcp://:secret@h:1#dial",
    "ws://user:secret@h:1/path",
    "wss://user:secret@h/path?socket.send_ttl=3",
    "smoke://user:secret@h",
    "ipc://user:secret@h/path",
    "inproc://user:secret@name",
    "tcp://user:sec@ret@h:1",
    "tcp://user:secret/x@h:1",
    "tcp://user:secret?x@h:1",
    "tcp://user:secret?x=1&y@h:1",
    "tcp://user:secret#x@h:1",
    "tcp://user:sec ret@h:1",
    "tcp://user:sec\nret@h:1",
    "tcp://secret@",
    "user:secret@h:1",
    "tcp:user:secret@h:1",
    "t_p://user:secret@h:1",
    "user:secret://x@h:1",
]


def test_a_password_is_refused_and_never_repeated() -> None:
    with every_case() as case:
        for text in WITH_PASSWORDS:
            with case(repr(text)):
                with pytest.raises(AddressError) as caught:
                    Address.parse(text)
                error = caught.value
                for shown in (str(error), repr(error), repr(error.__context__), error.address):
                    assert "sec" not in str(shown)
                    assert "ret" not in str(shown)
                if ":" in text.split("@")[0] and text.startswith("tcp://"):
                    assert "does not belong in an address" in str(error)


def test_an_address_is_its_own_parse_and_compares_by_what_it_says() -> None:
    one, two = Address.parse("tcp://h:1?Socket.SendTTL=3#dial"), Address.parse("TCP://h:1?socket.send_ttl=3#dial")
    assert Address.parse(one) is one
    assert one == two
    assert hash(one) == hash(two)
    assert one != Address.parse("tcp://h:1?socket.send_ttl=4#dial")
    with pytest.raises(AttributeError):
        one.scheme = "ipc"  # type: ignore[misc]


def test_an_address_made_from_parts_has_a_text() -> None:
    assert str(Address("tcp", "h:1")) == "tcp://h:1"


def test_another_location_leaves_the_rest_as_it_was() -> None:
    address = Address.parse("TCP://h:0?Socket.SendTTL=3#listen").with_location("h:4711")
    assert str(address) == "tcp://h:4711?Socket.SendTTL=3#listen"
    assert address == Address.parse(str(address))
    assert str(Address("tcp", "h:0").with_location("h:4711")) == "tcp://h:4711"


@pytest.mark.parametrize(("connect_type", "result"), [("dial", "a dialer"), ("listen", 7)])
def test_connect_does_what_the_address_says(connect_type: str, result: object) -> None:
    sock, address = Recorder(), Address.parse(f"tcp://h:1?socket.send_ttl=3&socket.no_recv=1#{connect_type}")
    assert address.connect(sock) == result
    assert address.connect(sock, {options.socket.send_ttl: 4, "Socket.SendQueueSize": 5}) == result
    first = {"socket.send_ttl": 3, "socket.no_recv": True}
    second = {"socket.send_ttl": 4, "socket.no_recv": True, "socket.send_queue_size": 5}
    assert sock.calls == [(connect_type, address, first), (connect_type, address, second)]
    assert address.options == first


def test_connect_does_nothing_without_a_connect_type_or_with_bad_options() -> None:
    sock = Recorder()
    with pytest.raises(AddressError, match="the connect type is missing"):
        Address.parse("tcp://h:1").connect(sock)
    for bad in ({"socket.nothing": 1}, {"socket.send_ttl": 300}):
        with pytest.raises(OptionError):
            Address.parse("tcp://h:1#dial").connect(sock, bad)
    assert sock.calls == []


HOSTS = [
    ("127.0.0.1:80", "127.0.0.1", 80),
    ("localhost:0", "localhost", 0),
    ("a-b.example:65535", "a-b.example", 65535),
    ("[::1]:80", "::1", 80),
    ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
    ("[::ffff:127.0.0.1]:80", "::ffff:127.0.0.1", 80),
    ("*:80", "*", 80),
]


def test_host_and_port_are_split() -> None:
    with every_case() as case:
        for location, host, port in HOSTS:
            with case(location):
                assert split_host_port(location, f"tcp://{location}") == (host, port)


BAD_HOSTS = [
    ("", "the port is missing"),
    ("localhost", "the port is missing"),
    ("localhost:", "the port is missing"),
    ("[::1]", "the port is missing"),
    ("[::1]:", "the port is missing"),
    (":80", "the host is missing"),
    ("localhost:http", "the port must be a number from 0 to 65535"),
    ("localhost:65536", "the port must be a number"),
    ("localhost:-1", "the port must be a number"),
    ("localhost:٣", "the port must be a number"),
    ("localhost:80/path", "nothing may follow it"),
    ("[::1]:80/path", "nothing may follow it"),
    ("localhost:" + "9" * 10_000, "the port must be a number"),
    ("::1:80", "needs brackets, like [::1]:80"),
    ("a:b:80", "needs brackets"),
    ("[::1:80", "in brackets and a port"),
    ("[::1]80", "in brackets and a port"),
    ("[]:80", "in brackets and a port"),
    ("[name]:80", "in brackets and a port"),
    ("[[::1]]:80", "in brackets and a port"),
    ("**:80", "* alone"),
    ("*.example:80", "* alone"),
    ("a/b:80", "the host must be"),
    ("a]:80", "the host must be"),
    ("@host:80", "the host must be"),
]


def test_a_bad_host_or_port_is_an_error_that_says_what_is_right() -> None:
    with every_case() as case:
        for location, why in BAD_HOSTS:
            with case(repr(location)):
                with pytest.raises(AddressError) as caught:
                    split_host_port(location, Address("tcp", location))
                assert why in str(caught.value)
                assert f"tcp://{location[:20]}" in str(caught.value) or not location.isascii()


def test_a_password_in_a_location_that_cannot_be_split_is_not_repeated() -> None:
    with pytest.raises(AddressError) as caught:
        split_host_port("user:1234/secret@h:1", "tcp://user:1234/secret@h:1")
    assert "secret" not in str(caught.value)


@given(st.text(alphabet="ab1.:/@?#&=%[]*\\ \nä", max_size=30))
def test_any_text_is_an_address_or_the_documented_error(rest: str) -> None:
    for text in (rest, f"tcp://{rest}", f"ipc://{rest}"):
        try:
            address = Address.parse(text)
        except MultiSocketError as error:
            assert isinstance(error, (AddressError, OptionError))
            assert "\n" not in str(error)
        else:
            assert Address.parse(str(address)) == address
            assert address.with_location(address.location) == address


@given(st.text(alphabet="abc:/?#&=%[]. ", max_size=12), st.sampled_from(["tcp", "ws", "tls+tcp", "smoke"]))
def test_no_password_of_any_shape_gets_into_the_error(noise: str, scheme: str) -> None:
    for password in (f"{noise}SECRET", f"SECRET{noise}", f"{noise}SECRET{noise}"):
        try:
            address = Address.parse(f"{scheme}://user:{password}@host:80")
        except AddressError as error:
            assert "SECRET" not in str(error)
        else:
            raise AssertionError(f"{address} was taken for an address without a password")
