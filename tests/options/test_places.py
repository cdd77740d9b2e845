"""Where an option may be set: where it has no effect it is refused, by an error that says where it belongs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from gmultisocket import Socket
from gmultisocket.errors import MisplacedOption
from gmultisocket.options import DialerOptions, ListenerOptions, Option, Options, PipeOptions, PlaneOptions, describe
from gmultisocket.options.places import PLACES, Place
from tests.cases import every_case

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
