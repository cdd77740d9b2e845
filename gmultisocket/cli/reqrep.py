"""``gmultisocket req`` and ``rep``: ask and print the answer, and answer."""

from __future__ import annotations

from argparse import Namespace

from ..errors import HandlerFailed, PeerGone, Timeout
from ..protocol import Rep, Req
from .answering import add_answering, answer
from .arguments import Parser, add_addresses, add_format, add_pace, add_source
from .connecting import connect, make, wait_peers
from .notes import report
from .output import Printer
from .receiving import Silence, until_signal
from .sending import is_endless, send_items
from .sources import Item, Source

__all__ = ["rep", "req"]

_EXAMPLES = (
    "gmultisocket rep -l tcp://127.0.0.1:5555 -n 2 'it is noon'",
    "gmultisocket req -d tcp://127.0.0.1:5555 'what time is it?'",
    "gmultisocket req -d tcp://127.0.0.1:5555 -f json 'and now?'",
)


def req(parser: Parser) -> None:
    """Declare ``req``."""
    parser.describe("Ask one Rep after the other, and print each answer before the next question.", _EXAMPLES, "[DATA]")
    add_addresses(parser)
    add_source(parser)
    add_pace(parser, answered=True, peers="Reps", timeout="longest wait for an answer (16)")
    add_format(parser)
    parser.set_defaults(run=_req)


def rep(parser: Parser) -> None:
    """Declare ``rep``."""
    parser.describe("Print what Reqs ask, and answer it, until a signal, -n or -t ends it.", _EXAMPLES, "[DATA]")
    add_answering(parser)
    parser.set_defaults(run=_rep)


def _req(arguments: Namespace) -> int:
    source = Source(arguments)
    timeout = 16.0 if arguments.timeout is None else arguments.timeout
    failed = 0
    with make(Req, arguments) as sock:
        connect(sock, arguments)
        wait_peers(sock, arguments)
        with Printer(arguments, None) as printer, until_signal(is_endless(arguments, source)):

            def ask(item: Item) -> None:
                nonlocal failed
                try:
                    with Silence(sock, "is the peer a Rep?"):
                        reply = sock.request(item.content, timeout)
                except (HandlerFailed, PeerGone, Timeout) as error:
                    # The next question may have an answer.
                    failed += 1
                    report(str(error))
                else:
                    printer.print(reply)

            send_items(arguments, source, ask, "", arguments.count)
    return 1 if failed else 0


def _rep(arguments: Namespace) -> int:
    return answer(Rep, arguments, "is it a Req, and has it asked anything?")
