"""``gmultisocket demo``: show that everything works, without a server, a network or an argument.

One Socket listens on tcp, ipc and inproc at once, and a client dials each. Messages are sent to one peer, back along a
path, and to all peers. Then one connection is cut, and its client connects again. Every message is checked.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from time import perf_counter

import gevent
from gevent import Greenlet
from gevent.event import Event

from .. import Message, Socket, __version__
from ..errors import Closed, MultiSocketError, Timeout
from .arguments import Parser, count
from .progress import Progress

__all__ = ["demo"]

_EXAMPLES = ("gmultisocket demo", "gmultisocket demo -n 100")

#: The longest wait for one message, in seconds.
_TIMEOUT = 10.0
#: How many questions of a client are unanswered at the same time.
_MAX_UNANSWERED = 32
#: The content of the last message to a client.
_END = b"end"


def demo(parser: Parser) -> None:
    """Declare the command."""
    parser.describe(
        "Start a Socket on tcp, ipc and inproc, exchange and check messages with a\n"
        "client over each, cut one connection, and wait until its client is back.\n"
        "The status is 0 only if every message was right.",
        _EXAMPLES,
    )
    parser.add("-n", "--count", metavar="N", type=count, default=2000, help="messages of each kind (2000)")
    parser.add(
        "--web", metavar="PORT", nargs="?", type=_port, const=0,
        help="serve a live page of --peers until a signal",
    )  # fmt: skip
    parser.add("--peers", metavar="N", type=count, default=200, help="how many peers the page shows (200)")
    parser.set_defaults(run=_demo)


def _port(text: str) -> int:
    number = 0 if text == "0" else count(text)
    if number > 65535:
        raise argparse.ArgumentTypeError("a port is at most 65535")
    return number


def _demo(arguments: argparse.Namespace) -> int:
    """Run the demo. Returns 1 if something went wrong."""
    if arguments.web is not None:
        # With a web server, which nothing else needs.
        from .webdemo import serve

        return serve(arguments.web, arguments.peers)
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
    """A server, a client over each transport, and the number of right messages.

    Args:
        count: how many messages of each kind to send.

    Attributes:
        failures: a text for each thing that went wrong.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._server = Socket()
        self._clients: dict[str, Socket] = {}
        self._serving: Greenlet[..., None] = gevent.spawn(self._serve)
        #: The contents that the server has received, without the questions.
        self._arrived: list[bytes] = []
        self._expected = 0
        self._right = 0
        self._seconds = 0.0
        self._progress: Progress
        self.failures: list[str] = []

    # The steps

    def connect(self, folder: str) -> None:
        """Listen at three addresses with one Socket, and connect a client to each."""
        python = f"{platform.python_implementation()} {platform.python_version()}"
        _print(f"gmultisocket {__version__}, {python}, gevent {gevent.__version__}", "", "one Socket listens at")
        for address in ("tcp://127.0.0.1:0", f"ipc://{folder}/demo.sock", "inproc://gmultisocket-demo"):
            listener = self._server.listen(address)
            client = self._clients[address.partition(":")[0]] = Socket()
            client.dial(listener.address)
            _print(f"    {listener.address}")
        self._server.wait_pipes(len(self._clients), _TIMEOUT)
        _print("and a client has dialed each", "")
        _print(f"{'':36}{'messages':>10}{'right':>10}{'seconds':>10}{'a second':>11}")

    def exchange(self) -> None:
        """Send messages in every way."""
        for name, client in self._clients.items():
            self._show(f"{name}: questions and answers", 2 * self._count, self._ask, client)
        for name, client in self._clients.items():
            self._show(f"{name}: one way", self._count, self._send_one_way, client)
        self._show("to one of the three, in turn", self._count, self._send_to_one)
        self._show("to all three", len(self._clients) * self._count, self._send_to_all)

    def cut(self, name: str) -> None:
        """Close a client's connection at the server's end, and exchange messages over the client's next connection.

        Raises:
            Timeout: the client did not reconnect.
        """
        client = self._clients[name]
        (pipe,) = (pipe for pipe in self._server.pipes.values() if pipe.endpoint.address.startswith(f"{name}:"))
        back = Event()
        client.on_pipe(lambda event: back.set() if event.kind == "add" else None)
        start = perf_counter()
        pipe.close("cut by the demo")
        if not back.wait(_TIMEOUT):
            raise Timeout("redialing", _TIMEOUT)
        seconds = perf_counter() - start
        _print("", f"cut the {name} connection; the client redialed and was back after {seconds:.2f} s", "")
        self._show(f"{name}: questions and answers", 2 * self._count, self._ask, client)

    def close(self) -> None:
        """Close everything."""
        lost = sum(sock.close() for sock in (*self._clients.values(), self._server))
        if lost:
            self.failures.append(f"{lost} messages were not sent before the end")
        self._serving.kill()

    def conclude(self) -> int:
        """Print the result, and return the exit status."""
        for failure in self.failures:
            _print(f"failed: {failure}")
        rate = self._right / self._seconds if self._seconds else 0.0
        total = f"{self._right:,} of {self._expected:,} messages came right, {rate:,.0f} a second"
        if self._right == self._expected and not self.failures:
            _print("", f"all well: {total}")
            return 0
        _print("", f"NOT WELL: {total}")
        return 1

    # The kinds of exchange: each returns the number of right messages

    def _serve(self) -> None:
        """Answer each question back along its path, and keep all other contents (the server's greenlet)."""
        for message in self._server:
            if message.content.startswith(b"?"):
                self._server.send_to(message.source, self._answer(message), _TIMEOUT)
            else:
                self._arrived.append(message.content)

    def _answer(self, message: Message) -> bytes:
        return b"answer to " + message.content

    def _ask(self, client: Socket) -> int:
        right = 0
        contents = self._contents(b"?")
        for start in range(0, len(contents), _MAX_UNANSWERED):
            asked = contents[start : start + _MAX_UNANSWERED]
            self._progress.show(2 * start)
            for content in asked:
                client.send(content, _TIMEOUT)
            right += sum(client.recv(_TIMEOUT) == b"answer to " + content for content in asked)
        # A right answer proves that the question was right, too.
        return 2 * right

    def _send_one_way(self, client: Socket) -> int:
        self._arrived.clear()
        contents = self._contents(b"!")
        for content in self._watched(contents):
            client.send(content, _TIMEOUT)
        # A pipe keeps the order: when the answer is here, all messages before the question have arrived.
        client.send(b"?", _TIMEOUT)
        client.recv(_TIMEOUT)
        return _in_order(self._arrived, contents)

    def _send_to_one(self) -> int:
        contents = self._contents(b"!")
        readers = self._read_all()
        for content in self._watched(contents):
            self._server.send(content, _TIMEOUT)
        received = [content for contents in self._finish(readers) for content in contents]
        # Each message goes to any one client, and to no second one.
        return sum((Counter(received) & Counter(contents)).values()) - max(0, len(received) - len(contents))

    def _send_to_all(self) -> int:
        contents = self._contents(b"!")
        readers = self._read_all()
        for content in self._watched(contents):
            self._server.send_all(content, _TIMEOUT)
        return sum(_in_order(received, contents) for received in self._finish(readers))

    def _read_all(self) -> list[Greenlet[..., list[bytes]]]:
        """Start a greenlet for each client that reads until the end."""
        return [gevent.spawn(_read_until_end, client) for client in self._clients.values()]

    def _finish(self, readers: list[Greenlet[..., list[bytes]]]) -> list[list[bytes]]:
        """Send the end to all clients, and return what each has received before it."""
        self._server.send_all(_END, _TIMEOUT)
        return [reader.get() for reader in readers]

    def _contents(self, mark: bytes) -> list[bytes]:
        """Return ``count`` different contents of 92 bytes."""
        return [b"%s%d " % (mark, number) + bytes(90 - len(str(number))) for number in range(self._count)]

    def _watched(self, contents: list[bytes]) -> Iterator[bytes]:
        """Yield the contents that are sent, and show how many were."""
        for number, content in enumerate(contents):
            self._progress.show(number)
            yield content

    def _show(self, what: str, messages: int, exchange: Callable[..., int], *arguments: Socket) -> None:
        """Do one exchange, and print its numbers."""
        self._expected += messages
        start = perf_counter()
        with Progress(what, messages) as self._progress:
            right = exchange(*arguments)
        seconds = perf_counter() - start
        self._right += right
        self._seconds += seconds
        _print(f"{what:36}{messages:>10,}{right:>10,}{seconds:>10.3f}{right / seconds:>11,.0f}")


def _read_until_end(client: Socket) -> list[bytes]:
    """Return the contents that a client receives before the end, or until none has come for ``_TIMEOUT`` seconds."""
    received = []
    try:
        while (content := client.recv(_TIMEOUT)) != _END:
            received.append(content)
    except (Timeout, Closed):
        # The numbers show how many are missing.
        pass
    return received


def _in_order(received: list[bytes], sent: list[bytes]) -> int:
    """Return how many messages are in their place, minus one for each message too many."""
    extra = max(0, len(received) - len(sent))
    return sum(one == other for one, other in zip(received, sent, strict=False)) - extra


def _print(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)
