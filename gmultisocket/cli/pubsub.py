"""``gmultisocket pub`` and ``sub``: publish under topics, and print what is published."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

import gevent

from ..errors import Closed, MultiSocketError, SubscriptionRefused, Timeout
from ..protocol import Pub, Sub
from ..protocol.subscriptions import check_pattern
from .arguments import Parser, add_addresses, add_count_received, add_format, add_pace, add_source
from .connecting import connect, make, reach_peers
from .notes import note, report
from .output import Printer
from .receiving import receive, until_signal
from .sending import close, is_endless, send_items
from .sources import Item, Source

__all__ = ["pub", "sub"]

_EXAMPLES = (
    "gmultisocket pub -l ipc:///run/feed.sock --peers 2 -T prices.eur 1.09",
    "gmultisocket sub -d ipc:///run/feed.sock -s 'prices.*' -n 1",
    "gmultisocket sub -d ipc:///run/feed.sock -n 1 --topics",
)
#: A publisher that has not acknowledged a subscription for so many seconds may be none.
_PATIENCE: Final = 2.0
#: Contents that people read; a topic may stand in front of them.
_READABLE: Final = ("line", "quoted", "ascii")


def pub(parser: Parser) -> None:
    """Declare ``pub``."""
    parser.describe("Publish messages, and end when all have left. A slow Sub is waited for.", _EXAMPLES, "[DATA]")
    add_addresses(parser)
    add_source(parser)
    add_pace(parser, peers="subscribers to TOPIC", timeout="longest wait for subscribers")
    parser.add("-T", "--topic", metavar="TOPIC", help="otherwise the first word of each message is its topic")
    parser.add("--retain", action="store_true", help="new subscribers get a topic's last message")
    parser.set_defaults(run=_pub)


def sub(parser: Parser) -> None:
    """Declare ``sub``."""
    parser.describe("Print what is published, until a signal, -n or -t ends it.", _EXAMPLES)
    add_addresses(parser)
    parser.add(
        "-s", "--subscribe", metavar="PATTERN", action="append", default=[],
        shown="-s, --subscribe PATTERN", help="'a.b', 'a.*', 'a.>'; repeatable (all)",
    )  # fmt: skip
    add_count_received(parser)
    add_format(parser)
    parser.add("--topics", action="store_true", help="print the topic and a space in front of each message")
    parser.set_defaults(run=_sub)


# Pub


def _pub(arguments: Namespace) -> int:
    source = Source(arguments)
    # The lines of a file come faster than a Sub reads them. Nobody else waits here.
    with make(Pub, arguments, {"socket.send_overflow": "block"}) as sock:
        connect(sock, arguments)
        missing = arguments.peers

        def publish(item: Item) -> None:
            nonlocal missing
            topic, content = _topic_and_content(arguments.topic, item)
            if missing:
                with reach_peers(arguments, f"subscriber{'s' if missing > 1 else ''} to {topic}"):
                    sock.wait_subscribers(topic, missing, arguments.timeout)
                missing = 0
            sock.publish(topic, content, retain=arguments.retain)

        with until_signal(is_endless(arguments, source)):
            send_items(arguments, source, publish, "pub", arguments.count)
        return close(sock)


def _topic_and_content(topic: str | None, item: Item) -> tuple[str, bytes]:
    """Return both of an item: the topic of the arguments, of the input, or in the first word."""
    if topic or item.topic:
        return topic or item.topic, item.content
    word, space, content = item.content.partition(b" ")
    if not space:
        raise MultiSocketError("a message has no topic: use --topic, or begin it with the topic and a space")
    return word.decode(errors="backslashreplace"), content


# Sub


def _sub(arguments: Namespace) -> int:
    patterns = arguments.subscribe or [">"]
    with make(Sub, arguments) as sock:
        sock.on_refused(lambda refusal: report(str(refusal)))
        for pattern in patterns:
            check_pattern(pattern)
        connect(sock, arguments)
        subscribing = [gevent.spawn(_subscribe, sock, pattern) for pattern in patterns]
        shows_topics = arguments.topics and arguments.format in _READABLE
        try:
            with Printer(arguments, arguments.count) as printer, until_signal(not arguments.count):

                def handle(publication: tuple[str, bytes]) -> None:
                    topic, content = publication
                    printer.print(topic.encode() + b" " + content if shows_topics else content, topic=topic)

                shown = ", ".join(patterns)
                return receive(sock, arguments, printer, sock.recv, handle, f"nothing was published under {shown}")
        finally:
            gevent.killall(subscribing)
    return 0


def _subscribe(sock: Sub, pattern: str) -> None:
    """Subscribe, and say so if those that are connected may be no publishers (in a greenlet of its own)."""
    try:
        sock.subscribe(pattern, _PATIENCE)
    except Timeout:
        note(f"no answer to the subscription to {pattern}: is the peer a Pub?")
    except SubscriptionRefused as refusal:
        report(str(refusal))
    except Closed:
        pass
