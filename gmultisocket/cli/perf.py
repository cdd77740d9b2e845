"""``gmultisocket perf``: measure latency and throughput, and publishing to many.

The first six tests are those of the perf tools of the Go library, with the same arguments, messages and lines of
output, so each side can be either library. What is new is the percentiles. ``fanout`` measures what no such tool does:
the time from ``publish`` until each of many subscribers has the message in its hands.
"""

from __future__ import annotations

from argparse import Namespace
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Final

import gevent

from .. import Socket
from ..errors import Closed, MultiSocketError
from .arguments import Parser, WrongUsage, add_socket_options, count, suggestion
from .connecting import make
from .notes import note
from .progress import Progress

__all__ = ["percentiles", "perf", "print_lines"]

_EXAMPLES = (
    "gmultisocket perf local_lat tcp://127.0.0.1:5555 100 1000",
    "gmultisocket perf remote_lat tcp://127.0.0.1:5555 100 1000",
)
#: Messages that were lost with a connection are missing in the numbers.
_ONCE: Final = {"connector.dialer.reconnect": False}
_INPROC: Final = "inproc://gmultisocket-perf"
_PERCENTILES: Final = (50, 90, 99, 99.9)


def perf(parser: Parser) -> None:
    """Declare the command."""
    parser.describe(
        "Measure as the perf tools of the Go library do; each side may be one of them.", _EXAMPLES, "TEST ..."
    )
    parser.add("test", metavar="TEST")
    parser.add("rest", metavar="ARGUMENT", nargs="*", default=[])
    parser.add_row("local_lat ADDRESS SIZE N", "listen, and send N messages of SIZE bytes back")
    parser.add_row("remote_lat ADDRESS SIZE N", "dial, and measure N round trips")
    parser.add_row("local_thr ADDRESS SIZE N", "listen, and measure how fast N messages come")
    parser.add_row("remote_thr ADDRESS SIZE N", "dial, and send N messages")
    parser.add_row("inproc_lat SIZE N", "round trips inside of one process")
    parser.add_row("inproc_thr SIZE N", "messages inside of one process")
    parser.add_row("fanout PEERS [SIZE N]", "publish N times to PEERS Subs in another process")
    add_socket_options(parser)
    parser.set_defaults(run=_perf)


def _perf(arguments: Namespace) -> int:
    if arguments.test not in _TESTS:
        raise WrongUsage(f"perf: {arguments.test!r} is no test{suggestion(arguments.test, _TESTS)}")
    run, names = _TESTS[arguments.test]
    least = len([name for name in names if not name.endswith("?")])
    if not least <= len(arguments.rest) <= len(names):
        wanted = " ".join(name.strip("?").upper() for name in names)
        raise WrongUsage(f"perf: {arguments.test} needs {wanted} ('gmultisocket perf --help' explains)")
    address = arguments.rest[0] if names[0] == "address" else ""
    numbers = []
    for name, text in zip(names, arguments.rest, strict=False):
        if name != "address":
            numbers.append(_number(name.strip("?"), text))
    run(arguments, address, *numbers)
    return 0


def _number(name: str, text: str) -> int:
    # The messages that measure throughput may be empty.
    try:
        if name == "size" and text == "0":
            return 0
        return count(text)
    except Exception as error:
        raise WrongUsage(f"perf: {name.upper()}: {error}") from None


# Latency


def _local_lat(arguments: Namespace, address: str, size: int, times: int) -> None:
    with make(Socket, arguments) as sock:
        note(f"listening at {sock.listen(address).address}")
        with Progress("local_lat", times) as progress, _ending_with_peers(sock):
            _send_back(sock, size, times, progress.show)


def _send_back(sock: Socket, size: int, times: int, show: Callable[[int], object]) -> None:
    for number in range(times):
        message = sock.recv_msg()
        _check_size(len(message.content), size)
        sock.send_to(message.source, message.content)
        show(number)


def _remote_lat(arguments: Namespace, address: str, size: int, times: int) -> None:
    with make(Socket, arguments, _ONCE) as sock:
        content = bytes(size)
        trips = array("d")
        with Progress("remote_lat", times) as progress, _ending_with_peers(sock):
            sock.dial(address)
            begin = start = perf_counter()
            for number in range(times):
                sock.send(content)
                sock.recv()
                now = perf_counter()
                trips.append(now - start)
                start = now
                progress.show(number)
            total = start - begin
    halves = [trip / 2 * 1e6 for trip in trips]
    print_lines(
        f"message size: {size} [B]",
        f"round trip count: {times}",
        f"average latency: {total / times / 2 * 1e6:.3f} [us]",
        f"percentiles: {percentiles(halves)} [us]",
    )


def _inproc_lat(arguments: Namespace, address: str, size: int, times: int) -> None:
    with make(Socket, arguments) as sock:
        sock.listen(_INPROC)
        _both(
            lambda: _remote_lat(arguments, _INPROC, size, times),
            lambda: _send_back(sock, size, times, _show_nothing),
        )


# Throughput


def _local_thr(arguments: Namespace, address: str, size: int, times: int) -> None:
    with make(Socket, arguments) as sock:
        note(f"listening at {sock.listen(address).address}")
        with _ending_with_peers(sock):
            _take(sock, size, times)


def _take(sock: Socket, size: int, times: int) -> None:
    # The first message only says that the others begin.
    sock.recv()
    with Progress("local_thr", times) as progress:
        start = perf_counter()
        for number in range(times):
            _check_size(len(sock.recv()), size)
            progress.show(number)
        seconds = perf_counter() - start
    print_lines(
        f"message size: {size} [B]",
        f"message count: {times}",
        f"throughput: {times / seconds:.0f} [msg/s]",
        f"throughput: {times * 8 * size / seconds / 1e6:.3f} [Mb/s]",
    )


def _remote_thr(arguments: Namespace, address: str, size: int, times: int) -> None:
    with make(Socket, arguments, _ONCE) as sock:
        with Progress("remote_thr", times) as progress, _ending_with_peers(sock):
            sock.dial(address)
            _send_many(sock, size, times, progress.show)


def _send_many(sock: Socket, size: int, times: int, show: Callable[[int], object]) -> None:
    content = bytes(size)
    sock.send(b"")
    for number in range(times):
        sock.send(content)
        show(number)
    sock.flush()


def _inproc_thr(arguments: Namespace, address: str, size: int, times: int) -> None:
    with make(Socket, arguments) as sock:
        sock.listen(_INPROC)
        with make(Socket, arguments) as sending:
            sending.dial(_INPROC)
            _both(lambda: _take(sock, size, times), lambda: _send_many(sending, size, times, _show_nothing))


@contextmanager
def _ending_with_peers(sock: Socket) -> Iterator[None]:
    """End a body that receives when all peers have gone and what had arrived was received: raise an error."""
    stop = sock.on_pipe(lambda event: sock.close(0) if event.kind == "remove" and not sock.pipes else None)
    try:
        yield
    except Closed:
        raise MultiSocketError("the other side has gone before the end") from None
    finally:
        stop()


def _both(one: Callable[[], None], other: Callable[[], None]) -> None:
    """Run both sides at once until both have ended, or one has failed."""
    sides = [gevent.spawn(_outcome, side) for side in (one, other)]
    try:
        for side in gevent.iwait(sides):
            if side.value is not None:
                raise side.value
    finally:
        gevent.killall(sides)


def _outcome(side: Callable[[], None]) -> Exception | None:
    """Return an exception instead of raising it: gevent would print a traceback."""
    try:
        side()
    except Exception as error:
        return error
    return None


def _show_nothing(number: int) -> None:
    """Do nothing: the progress of the side that shows none."""


def _check_size(size: int, wanted: int) -> None:
    if size != wanted:
        raise MultiSocketError(f"a message has {size} bytes instead of {wanted}: both sides need the same SIZE")


def _fanout(arguments: Namespace, address: str, peers: int, size: int = 100, times: int = 50) -> None:
    # Most measurements need no second process.
    from .fanout import measure

    lines = measure(arguments, peers, size, times, lambda values: percentiles(values, 3))
    print_lines(*lines)


def _subscribers(arguments: Namespace, address: str, peers: int, times: int) -> None:
    from .fanout import subscribe

    subscribe(arguments, address, peers, times)


# Output


def percentiles(values: Sequence[float], digits: int = 1) -> str:
    """Return the percentiles of some values as a text, the greatest one too."""
    ordered = sorted(values)
    last = len(ordered) - 1
    found = {f"{percent}%": ordered[min(last, int(len(ordered) * percent / 100))] for percent in _PERCENTILES}
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in (found | {"max": ordered[-1]}).items())


def print_lines(*lines: str) -> None:
    """Print the results."""
    for line in lines:
        print(line, flush=True)


#: Test -> what runs it, and its arguments. The last one is the other side of ``fanout``, which starts it.
_TESTS: Final[dict[str, tuple[Callable[..., None], tuple[str, ...]]]] = {
    "local_lat": (_local_lat, ("address", "size", "n")),
    "remote_lat": (_remote_lat, ("address", "size", "n")),
    "local_thr": (_local_thr, ("address", "size", "n")),
    "remote_thr": (_remote_thr, ("address", "size", "n")),
    "inproc_lat": (_inproc_lat, ("size", "n")),
    "inproc_thr": (_inproc_thr, ("size", "n")),
    "fanout": (_fanout, ("peers", "size?", "n?")),
    "_subscribers": (_subscribers, ("address", "peers", "n")),
}
