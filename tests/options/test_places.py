"""Where an option may be set: where it has no effect it is refused, by an error that says where it belongs."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from gmultisocket import Socket
from gmultisocket.errors import MisplacedOption
from gmultisocket.options import DialerOptions, ListenerOptions, Option, Options, PipeOptions, PlaneOptions, describe
from gmultisocket.options.places import PLACES, Place
from gmultisocket.protocol import Bus, Pair, Pub, Pull, Push, Rep, Req, Respondent, Stream, Sub, Surveyor
from tests.cases import every_case
from tests.certificates import listen_options

SCOPES: dict[Place, type[Options]] = {
    "socket": Options,
    "dialer": DialerOptions,
    "listener": ListenerOptions,
    "pipe": PipeOptions,
    "plane": PlaneOptions,
}

OPTIONS = [option for option in describe() if ".smoke." not in option.name]

#: What matters at one side only, or only to the socket, by its whole name. All others follow their beginning.
BY_NAME = {
    "connector.pipe_limit": {"socket"},
    "connector.pipe.raw": {"socket", "dialer", "listener"},
    "connector.pipe.decide_timeout": {"socket", "dialer", "listener"},
    "connector.pipe.hold_until_heard": {"socket", "dialer", "listener"},
    "connector.pipe.negotiate_timeout": {"socket", "dialer", "listener"},
    "transport.tcp.reuse_port": {"socket", "listener"},
    "transport.tls.server_hostname": {"socket", "dialer", "plane"},
    "transport.tls.insecure": {"socket", "dialer", "plane"},
    "transport.ws.headers": {"socket", "dialer"},
}
BY_START = {
    "socket.": {"socket"},
    "protocol.": {"socket"},
    "connector.dialer.": {"socket", "dialer"},
    "connector.listener.": {"socket", "listener"},
    "connector.pipe.": {"socket", "dialer", "listener", "pipe"},
    "transport.ws.listener.": {"socket", "listener"},
    "transport.ipc.": {"socket", "listener"},
    "transport.tcp.": {"socket", "dialer", "listener", "plane"},
    "transport.tls.": {"socket", "dialer", "listener", "plane"},
    "transport.": {"socket", "dialer", "listener"},
    "plane.": {"plane"},
}


def _places(option: Option[Any]) -> set[str]:
    if option.name in BY_NAME:
        return BY_NAME[option.name]
    return next(places for start, places in BY_START.items() if option.name.startswith(start))


@pytest.mark.parametrize("place", PLACES)
def test_an_option_is_accepted_where_it_has_an_effect_and_refused_elsewhere(place: Place) -> None:
    with every_case() as case:
        for option in OPTIONS:
            with case(option.name):
                _check(option, place)


def _check(option: Option[Any], place: Place) -> None:
    parent = Options()
    scope = SCOPES[place](parent=parent)
    if place in _places(option):
        assert SCOPES[place]({option: option.default}).has_own(option)
        scope.set(option, option.default)
        return
    for attempt in (lambda: SCOPES[place]({option.name: option.default}), lambda: scope.set(option, option.default)):
        with pytest.raises(MisplacedOption) as caught:
            attempt()
        error = caught.value
        assert (error.name, error.place, set(error.places)) == (option.name, place, _places(option))
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert not scope.has_own(option)


CALLS: dict[str, Callable[[Socket, str, Any], object]] = {
    "a dict": lambda sock, call, value: getattr(sock, call)("inproc://places", value),
    "an address": lambda sock, call, value: getattr(sock, call)(
        "inproc://places?" + "&".join(f"{name}={each}" for name, each in value.items())
    ),
    "connect": lambda sock, call, value: sock.connect(f"inproc://places#{call}", value),
}


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize(
    ("call", "name", "value", "right"),
    [
        ("listen", "socket.send_queue_size", 100, "set it on the Socket"),
        ("dial", "socket.no_recv", True, "set it on the Socket"),
        ("listen", "connector.pipe_limit", 10, "set it on the Socket"),
        ("listen", "connector.dialer.reconnect", False, "set it on the Socket or a dialer"),
        ("dial", "transport.ws.listener.check_origin", False, "set it on the Socket or a listener"),
        ("dial", "protocol.pubsub.expiry", 1, "set it on the Socket"),
    ],
)
def test_an_endpoint_with_an_option_that_has_no_effect_there_is_not_made(
    how: str, call: str, name: str, value: Any, right: str
) -> None:
    place = {"dial": "dialer", "listen": "listener"}[call]
    with Socket() as sock:
        with pytest.raises(MisplacedOption, match=f"^option {name} has no effect on a {place}: {right}$"):
            CALLS[how](sock, call, {name: value})
        assert not sock.dialers and not sock.listeners


def test_an_option_of_another_library_may_be_set_everywhere() -> None:
    option = Option("transport.smoke.signal", "bool", False)
    assert option.places == PLACES


#: One option of each transport, that a dialer and a listener may have.
OF_TRANSPORT = {
    "tcp": ("transport.tcp.no_delay", False),
    "tls": ("transport.tls.cafile", ""),
    "ws": ("transport.ws.ping_interval", 20.0),
    "ipc": ("transport.ipc.mode", 0o600),
    "inproc": ("transport.inproc.read_buffer", 8192),
}
#: By the beginning of an address: whose options are read.
READ = {
    "tcp://127.0.0.1:0": {"tcp"},
    "tls+tcp://127.0.0.1:0": {"tcp", "tls"},
    "ws://127.0.0.1:0/": {"tcp", "ws"},
    "wss://127.0.0.1:0/": {"tcp", "tls", "ws"},
    "ipc://@places": {"ipc"},
    "inproc://places": {"inproc"},
}


@pytest.mark.parametrize("address", READ)
@pytest.mark.parametrize("call", ["dial", "listen"])
def test_an_option_of_another_transport_is_refused(address: str, call: str) -> None:
    scheme = address.partition(":")[0]
    place = {"dial": "dialer", "listen": "listener"}[call]
    for transport, (name, value) in OF_TRANSPORT.items():
        if transport in READ[address]:
            continue
        with Socket() as sock:
            with pytest.raises(MisplacedOption) as caught:
                getattr(sock, call)(address, {name: value})
            assert not sock.dialers and not sock.listeners
        error = caught.value
        if transport == "ipc" and call == "dial":
            continue  # An ipc dialer does not read it either.
        assert (error.name, error.place) == (name, f"{scheme} {place}")
        read = " and ".join(f"transport.{each}.*" for each in OF_TRANSPORT if each in READ[address])
        article = "an" if scheme[0] == "i" else "a"
        assert str(error) == f"option {name} has no effect on {article} {scheme} {place}, which reads {read}"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


#: By the scheme of a listener with a descriptor: what the socket at the descriptor may be.
READ_AT_DESCRIPTORS = {
    "fd": {"tcp", "ipc"},
    "tls+fd": {"tcp", "tls"},
    "ws+fd": {"tcp", "ipc", "ws"},
    "wss+fd": {"tcp", "tls", "ws"},
}


@pytest.mark.parametrize("scheme", READ_AT_DESCRIPTORS)
def test_a_listener_with_a_descriptor_takes_the_options_of_all_that_it_may_be(scheme: str) -> None:
    certificate = listen_options() if "tls" in READ_AT_DESCRIPTORS[scheme] else {}
    with socket.create_server(("127.0.0.1", 0)) as given, Socket() as sock:
        for transport, (name, value) in OF_TRANSPORT.items():
            right = transport in READ_AT_DESCRIPTORS[scheme]
            with nullcontext() if right else pytest.raises(MisplacedOption):
                sock.listen(f"{scheme}://{given.fileno()}", {**certificate, name: value}).close()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "ws://127.0.0.1:0/", "inproc://places"])
def test_a_listener_takes_the_options_of_its_transport_later_too(address: str) -> None:
    with Socket() as sock:
        listener = sock.listen(address)
        for transport, (name, value) in OF_TRANSPORT.items():
            if transport in READ[address]:
                listener.options.set(name, value)
                assert listener.options.get(name) == value
            else:
                with pytest.raises(MisplacedOption):
                    listener.options.set(name, value)
                assert not listener.options.has_own(name)


def test_a_socket_takes_the_options_of_all_transports() -> None:
    with Socket(dict(OF_TRANSPORT.values())) as sock:
        for name, value in OF_TRANSPORT.values():
            assert sock.options.get(name) == value


OF_PROTOCOL = {
    "answers": ("protocol.answers.max_waiting", 10),
    "reqrep": ("protocol.reqrep.probe_interval", 1.0),
    "pubsub": ("protocol.pubsub.expiry", 10.0),
    "stream": ("protocol.stream.window", 65536),
}
PROTOCOLS: dict[Callable[..., Any], set[str]] = {
    Socket: set(),
    Bus: set(),
    Pair: set(),
    Push: set(),
    Pull: set(),
    Surveyor: set(),
    Respondent: {"answers"},
    Req: {"reqrep"},
    Rep: {"answers", "reqrep"},
    Pub: {"pubsub"},
    Sub: {"pubsub"},
    Stream: {"stream"},
}


@pytest.mark.parametrize("make", PROTOCOLS)
def test_a_protocol_takes_its_own_options_only(make: Callable[..., Any]) -> None:
    kind = "bare Socket" if make is Socket else make.__name__
    read = " and ".join(f"protocol.{each}.*" for each in OF_PROTOCOL if each in PROTOCOLS[make]) or "no protocol.*"
    for protocol, (name, value) in OF_PROTOCOL.items():
        if protocol in PROTOCOLS[make]:
            with (make(None, {name: value}) if make in (Rep, Respondent) else make({name: value})) as made:
                assert made.options.get(name) == value
            continue
        with pytest.raises(MisplacedOption, match=rf"^option {name} has no effect on a {kind}, which reads {read}$"):
            make(None, {name: value}) if make in (Rep, Respondent) else make({name: value})
        with make() as made:
            with pytest.raises(MisplacedOption):
                made.options.set(name, value)
            assert not made.options.has_own(name)
