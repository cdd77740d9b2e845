"""``gmultisocket demo``: see everything work, without a server, a network or an argument.

One Socket listens on tcp, ipc and inproc at once, a client dials each, and messages go every way there is: to one,
along a path back, to all. Then a connection is cut, and comes back. Every message is checked.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections import Counter
from collections.abc import Callable
from time import perf_counter

import gevent
from gevent import Greenlet
from gevent.event import Event

from .. import __version__
from ..core.socket import Socket
from ..errors import Closed, MultiSocketError, Timeout
from ..wire import Message
from .common import Subparsers, count

__all__ = ["add"]

#: The longest wait for any one message, in seconds.
_PATIENCE = 10.0
#: How many questions are on their way at the same time.
_WINDOW = 32
#: What a client gets last.
_END = b"end"


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "demo",
        help="see everything work, without a server or an argument",
        description="Start a Socket on tcp, ipc and inproc, exchange and check messages with clients over each, cut a "
        "connection and watch it come back. Ends with status 0 only if every message came back right.",
    )
    parser.add_argument(
        "-n", "--count", metavar="N", type=count, default=2000, help="messages of each kind (default 2000)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo. Returns 1 if anything went wrong."""
    demo = Demo(arguments.count)
    with tempfile.TemporaryDirectory(prefix="gmultisocket-") as folder:
        try:
            demo.connect(folder)
            demo.exchange()
            demo.cut("tcp")
        except MultiSocketError as error:
            demo.failures.append(f"{type(error).__name__}: {error}")
        finally:
            demo.close()
    return demo.conclude()


class Demo:
    """A server, a client over each transport, and the tally of what came right.

    Args:
        count: how many messages of each kind to send.

    Attributes:
        failures: what went wrong, in words.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._server = Socket()
        self._clients: dict[str, Socket] = {}
        self._serving: Greenlet[..., None] = gevent.spawn(self._serve)
        #: What came to the server and was no question.
        self._arrived: list[bytes] = []
        self._expected = 0
        self._right = 0
        self._seconds = 0.0
        self.failures: list[str] = []

    # What happens

    def connect(self, folder: str) -> None:
        """Listen at three addresses with one Socket, and connect a client to each."""
        python = f"{platform.python_implementation()} {platform.python_version()}"
        _say(f"gmultisocket {__version__}, {python}, gevent {gevent.__version__}", "", "one Socket listens at")
        for address in ("tcp://127.0.0.1:0", f"ipc://{folder}/demo.sock", "inproc://gmultisocket-demo"):
            listener = self._server.listen(address)
            client = self._clients[address.partition(":")[0]] = Socket()
            client.dial(listener.address)
            _say(f"    {listener.address}")
        self._server.wait_pipes(len(self._clients), _PATIENCE)
        _say("and a client has dialed each", "")
        _say(f"{'':36}{'messages':>10}{'right':>10}{'seconds':>10}{'a second':>11}")

    def exchange(self) -> None:
        """Send messages every way that there is."""
        for name, client in self._clients.items():
            self._show(f"{name}: questions and answers", 2 * self._count, self._ask, client)
        for name, client in self._clients.items():
            self._show(f"{name}: one way", self._count, self._send_one_way, client)
        self._show("to one of the three, in turn", self._count, self._send_to_one)
        self._show("to all three", len(self._clients) * self._count, self._send_to_all)

    def cut(self, name: str) -> None:
        """Cut a client's connection at the server's end, and go on over the one that the client makes.

        Raises:
            Timeout: the client did not come back.
        """
        client = self._clients[name]
        (pipe,) = (pipe for pipe in self._server.pipes.values() if pipe.endpoint.address.startswith(f"{name}:"))
        back = Event()
        client.on_pipe(lambda event: back.set() if event.kind == "add" else None)
        start = perf_counter()
        pipe.close("cut by the demo")
        if not back.wait(_PATIENCE):
            raise Timeout("redialing", _PATIENCE)
        seconds = perf_counter() - start
        _say("", f"cut the {name} connection; the client redialed and was back after {seconds:.2f} s", "")
        self._show(f"{name}: questions and answers", 2 * self._count, self._ask, client)

    def close(self) -> None:
        """Close everything."""
        lost = sum(sock.close() for sock in (*self._clients.values(), self._server))
        if lost:
            self.failures.append(f"{lost} messages did not leave before the end")
        self._serving.kill()

    def conclude(self) -> int:
        """Say how it went, and return the exit status."""
        for failure in self.failures:
            _say(f"failed: {failure}")
        rate = self._right / self._seconds if self._seconds else 0.0
        total = f"{self._right:,} of {self._expected:,} messages came right, {rate:,.0f} a second"
        if self._right == self._expected and not self.failures:
            _say("", f"all well: {total}")
            return 0
        _say("", f"NOT WELL: {total}")
        return 1

    # The kinds of exchange: each returns how many messages came right

    def _serve(self) -> None:
        """Answer questions along the path that they came, and keep the rest (the server's greenlet)."""
        for message in self._server:
            if message.content.startswith(b"?"):
                self._server.send_to(message.source, self._answer(message), _PATIENCE)
            else:
                self._arrived.append(message.content)

    def _answer(self, message: Message) -> bytes:
        return b"answer to " + message.content

    def _ask(self, client: Socket) -> int:
        right = 0
        contents = self._contents(b"?")
        for start in range(0, len(contents), _WINDOW):
            asked = contents[start : start + _WINDOW]
            for content in asked:
                client.send(content, _PATIENCE)
            right += sum(client.recv(_PATIENCE) == b"answer to " + content for content in asked)
        # A right answer says that the question was right as well.
        return 2 * right

    def _send_one_way(self, client: Socket) -> int:
        self._arrived.clear()
        contents = self._contents(b"!")
        for content in contents:
            client.send(content, _PATIENCE)
        # On one pipe nothing overtakes: what was sent before the question has arrived before its answer.
        client.send(b"?", _PATIENCE)
        client.recv(_PATIENCE)
        return _in_order(self._arrived, contents)

    def _send_to_one(self) -> int:
        contents = self._contents(b"!")
        readers = self._read_all()
        for content in contents:
            self._server.send(content, _PATIENCE)
        received = [content for contents in self._finish(readers) for content in contents]
        # Each goes to one client, whichever; none to two.
        return sum((Counter(received) & Counter(contents)).values()) - max(0, len(received) - len(contents))

    def _send_to_all(self) -> int:
        contents = self._contents(b"!")
        readers = self._read_all()
        for content in contents:
            self._server.send_all(content, _PATIENCE)
        return sum(_in_order(received, contents) for received in self._finish(readers))

    def _read_all(self) -> list[Greenlet[..., list[bytes]]]:
        """Have every client read until the end."""
        return [gevent.spawn(_read_until_end, client) for client in self._clients.values()]

    def _finish(self, readers: list[Greenlet[..., list[bytes]]]) -> list[list[bytes]]:
        self._server.send_all(_END, _PATIENCE)
        return [reader.get() for reader in readers]

    def _contents(self, mark: bytes) -> list[bytes]:
        """Return different contents of 100 bytes."""
        return [b"%s%d " % (mark, number) + bytes(90 - len(str(number))) for number in range(self._count)]

    def _show(self, what: str, messages: int, exchange: Callable[..., int], *arguments: Socket) -> None:
        """Do one exchange, and print how it went."""
        self._expected += messages
        start = perf_counter()
        right = exchange(*arguments)
        seconds = perf_counter() - start
        self._right += right
        self._seconds += seconds
        _say(f"{what:36}{messages:>10,}{right:>10,}{seconds:>10.3f}{right / seconds:>11,.0f}")


def _read_until_end(client: Socket) -> list[bytes]:
    """Return what a client gets before the end, or before nothing came for too long."""
    received = []
    try:
        while (content := client.recv(_PATIENCE)) != _END:
            received.append(content)
    except (Timeout, Closed):
        # What is missing shows in the tally.
        pass
    return received


def _in_order(received: list[bytes], sent: list[bytes]) -> int:
    """Return how many messages came right: in their place, and none that was not sent."""
    extra = max(0, len(received) - len(sent))
    return sum(one == other for one, other in zip(received, sent, strict=False)) - extra


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)
