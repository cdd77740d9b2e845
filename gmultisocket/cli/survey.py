"""``gmultisocket survey`` and ``respond``: ask all peers and print the answers, and answer."""

from __future__ import annotations

from argparse import Namespace

from ..protocol import Respondent, Surveyor
from .answering import add_answering, answer
from .arguments import Parser, add_addresses, add_format, add_pace, add_source
from .connecting import connect, make, reach_peers
from .notes import report
from .output import Printer
from .receiving import until_signal
from .sending import is_endless, send_items
from .sources import Item, Source

__all__ = ["respond", "survey"]

_EXAMPLES = (
    "gmultisocket survey -l ipc:///run/poll.sock --peers 2 'who is there?'",
    "gmultisocket respond -d ipc:///run/poll.sock -n 1 Ada",
    "gmultisocket respond -d ipc:///run/poll.sock -n 1 Bob",
)


def survey(parser: Parser) -> None:
    """Declare ``survey``."""
    parser.describe("Ask all Respondents at once, and print the answers that come in time.", _EXAMPLES, "[DATA]")
    add_addresses(parser)
    add_source(parser)
    add_pace(parser, answered=True, peers="Respondents", timeout="how long answers are taken (1)")
    add_format(parser)
    parser.set_defaults(run=_survey)


def respond(parser: Parser) -> None:
    """Declare ``respond``."""
    parser.describe("Print what Surveyors ask, and answer it, until a signal, -n or -t ends it.", _EXAMPLES, "[DATA]")
    add_answering(parser)
    parser.set_defaults(run=_respond)


def _survey(arguments: Namespace) -> int:
    source = Source(arguments)
    timeout = 1.0 if arguments.timeout is None else arguments.timeout
    unanswered = 0
    with make(Surveyor, arguments) as sock:
        connect(sock, arguments)
        with reach_peers(arguments):
            # The timeout is for the answers.
            sock.wait_pipes(arguments.peers)
        with Printer(arguments, None) as printer, until_signal(is_endless(arguments, source)):

            def ask(item: Item) -> None:
                nonlocal unanswered
                asked = sock.survey(item.content, timeout)
                answers = 0
                for reply in asked:
                    printer.print(reply)
                    answers += 1
                if not answers:
                    unanswered += 1
                    why = f"are the {asked.sent} peers Respondents?" if asked.sent else "nobody is connected"
                    report(f"no answer within {timeout} s: {why}")

            send_items(arguments, source, ask, "", arguments.count)
    return 1 if unanswered else 0


def _respond(arguments: Namespace) -> int:
    return answer(Respondent, arguments, "is it a Surveyor, and has it asked anything?")
