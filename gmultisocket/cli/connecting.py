"""From the arguments of a command to a connected socket or protocol."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import gevent

from ..errors import MultiSocketError, Timeout
from .arguments import WrongUsage
from .notes import note, report

if TYPE_CHECKING:
    from .. import Dialer, Listener, PipeEvent, Socket
    from ..protocol import ProtocolBase

    Endpoint = Socket | ProtocolBase
    _E = TypeVar("_E", bound=Endpoint)

__all__ = ["SILENCE", "connect", "make", "reach_peers", "socket_options", "wait_peers"]

#: After so many seconds a command says what it waits for.
SILENCE: Final = 2.0


def socket_options(arguments: Namespace) -> dict[str, Any]:
    """Return the options that the arguments of a command with ``add_socket_options`` set."""
    chosen: dict[str, Any] = {}
    files = {"cafile": "cacert", "certfile": "cert", "keyfile": "key"}
    for option, argument in files.items():
        if value := getattr(arguments, argument):
            chosen[f"transport.tls.{option}"] = value
    if arguments.insecure:
        chosen["transport.tls.insecure"] = True
    if arguments.header:
        chosen["transport.ws.headers"] = dict(arguments.header)
    if arguments.dial_async:
        chosen["connector.dialer.dial_async"] = True
    if arguments.max_size:
        chosen["connector.pipe.max_recv_content_length"] = arguments.max_size
        chosen["socket.max_send_content_length"] = arguments.max_size
    return chosen | dict(arguments.options)


def make(kind: Callable[[dict[str, Any]], _E], arguments: Namespace, defaults: Mapping[str, Any] | None = None) -> _E:
    """Return a socket or a protocol with the options of the arguments.

    Args:
        kind: its class.
        arguments: of the command.
        defaults: more options, unless the arguments set them.
    """
    made = kind({**(defaults or {}), **socket_options(arguments)})
    if arguments.verbose:
        made.on_pipe(_show)
    return made


def _show(event: PipeEvent) -> None:
    pipe = event.pipe
    if event.kind == "add":
        report(f"{pipe.peer_address} connected: pipe {pipe.id}, {'dialed' if pipe.dialed else 'accepted'}")
    else:
        report(f"{pipe.peer_address} disconnected: {event.reason}")


def connect(endpoint: Endpoint, arguments: Namespace) -> None:
    """Listen and dial at the given addresses, and report each. Blocks until every dial is connected.

    Raises:
        WrongUsage: no address was given.
        MultiSocketError: one of them failed.
    """
    if not arguments.listen and not arguments.dial:
        raise WrongUsage("no address was given: use --listen or --dial, e.g. --dial tcp://127.0.0.1:5555")
    made: list[Listener | Dialer] = [endpoint.listen(address) for address in arguments.listen]
    made += [endpoint.dial(address) for address in arguments.dial]
    for each in made:
        verb = "listening at" if not each.dials else "dialing" if arguments.dial_async else "dialed"
        note(f"{verb} {each.address}")


def wait_peers(endpoint: Endpoint, arguments: Namespace) -> None:
    """Block until ``--peers`` are connected.

    Raises:
        MultiSocketError: there are not so many within ``--timeout``.
    """
    if arguments.peers:
        with reach_peers(arguments):
            endpoint.wait_pipes(arguments.peers, arguments.timeout)


@contextmanager
def reach_peers(arguments: Namespace, whom: str = "") -> Iterator[None]:
    """Report, while the body waits for ``--peers``, that it waits; and explain the error if it fails.

    Args:
        arguments: of a command with ``add_pace``.
        whom: what follows their number, instead of "peer" or "peers".
    """
    whom = f"{arguments.peers} {whom or ('peer' if arguments.peers == 1 else 'peers')}"
    saying = gevent.spawn_later(SILENCE, note, f"waiting for {whom}")
    try:
        yield
    except Timeout as error:
        raise MultiSocketError(f"{whom} did not come within {error.seconds} s") from error
    finally:
        saying.kill(block=False)
