"""The ``gmultisocket`` command.

Each subcommand is declared by the function of its name in the module that :data:`COMMANDS` says: it gets a ``Parser``,
declares the arguments, and sets ``run``. Only the module of the command that was called is imported. ``run(arguments)``
runs in a greenlet, does the work and returns the exit status. Signals, errors and exit statuses are handled here.

What the commands share: ``arguments`` (groups of arguments, and help that fits a screen), ``connecting`` (from
arguments to a connected socket), ``sources`` and ``sending`` (what is sent, and when), ``formats``, ``output`` and
``receiving`` (what is printed), ``talking`` (both at once), ``notes`` and ``progress`` (standard error).

Exit statuses: 0 success, 1 something failed, 2 wrong arguments, 130 a signal ended the command before its work was
done, 141 nobody reads the output any more. A signal is the normal end of a command that has no other: then the status
is 0.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import gevent
from gevent import Greenlet, GreenletExit
from gevent.exceptions import LoopExit

from .. import __version__
from ..errors import AddressError, BadTopic, MultiSocketError, OptionError
from .arguments import Parser, WrongUsage, suggestion
from .notes import note, report, set_verbosity

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["COMMANDS", "HELP", "main"]

_INTERRUPTED = 130
#: 128 + SIGPIPE, as if the system had ended the program because it wrote to a pipe that nobody reads.
_PIPE_CLOSED = 141
#: Seconds that a command takes to close its sockets before it says so.
_PATIENCE = 0.5
_CLOSING = "waiting until what was sent has left; another signal ends this at once"

#: Command -> the module that declares it.
COMMANDS = {
    "pub": "pubsub",
    "sub": "pubsub",
    "req": "reqrep",
    "rep": "reqrep",
    "push": "pipeline",
    "pull": "pipeline",
    "bus": "bothways",
    "pair": "bothways",
    "survey": "survey",
    "respond": "survey",
    "send": "plain",
    "recv": "plain",
    "cat": "bothways",
    "switch": "switch",
    "hub": "hub",
    "perf": "perf",
    "demo": "demo",
    "options": "options",
}

HELP = """\
usage: gmultisocket COMMAND [ARGUMENT]...
Send, receive and forward messages over tcp, ipc, inproc, WebSocket and TLS.

  pub, sub           publish under topics; print what is published
  req, rep           ask, and print the answers; answer
  push, pull         distribute work; take it
  bus                send to all neighbours, and print what they send
  pair               talk to one peer
  survey, respond    ask all peers, and print the answers; answer
  send, recv, cat    without a protocol: send, print, or both
  switch             join two addresses, for any protocol
  hub                pass publications on between the processes of a Backplane
  perf               measure latency, throughput, and publishing to many
  demo               show that everything works; needs no arguments
  options            list the options that --option and addresses can set

'gmultisocket COMMAND --help' explains a command; --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Blocks until it has ended.

    Args:
        argv: the arguments, without the program's name; None for the arguments of the process.
    """
    try:
        try:
            return _main(list(sys.argv[1:] if argv is None else argv))
        except MultiSocketError as error:
            report(str(error))
            # What is wrong with an address, an option or a topic shows only when it is used.
            wrong = isinstance(error, (WrongUsage, AddressError, OptionError, BadTopic))
            return 2 if wrong else 1
        finally:
            # The interpreter itself would only print that it has ignored an error.
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        # Before the command has begun.
        return _INTERRUPTED
    except BrokenPipeError:
        # Nobody reads our output any more.
        _drop_output()
        return _PIPE_CLOSED
    except OSError as error:
        from ..transport.stream import describe_os_error

        _drop_output()
        report(f"input or output failed: {describe_os_error(error)}")
        return 1


def _drop_output() -> None:
    """Drop what standard output could not write: the interpreter would try again when it exits."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(argv: list[str]) -> int:
    """Run the command that the arguments of the process name."""
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if name in ("-V", "--version"):
        print(f"gmultisocket {__version__}")
        return 0
    if name not in COMMANDS:
        what = f"{name!r} is no command{suggestion(name, COMMANDS)}" if name else "a command is missing"
        raise WrongUsage(f"{what}: 'gmultisocket --help' lists them")
    parser = Parser(name)
    getattr(import_module(f".{COMMANDS[name]}", __package__), name)(parser)
    try:
        arguments = parser.parse_args(argv[1:])
    except SystemExit:
        # After --help.
        return 0
    if "verbose" in arguments:
        set_verbosity(arguments.verbose, arguments.quiet)
    return _run(arguments)


def _run(arguments: Namespace) -> int:
    """Run the command in a greenlet, which a signal kills: the sockets close, and nothing is printed.

    A second signal ends the closing, too. A signal that the caller ignores stays ignored: nohup and the background jobs
    of a script do that.
    """
    worker: Greenlet[..., Any] = gevent.spawn(_catch, arguments)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handled = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
    saying: list[Greenlet[..., Any]] = []

    def stop() -> None:
        worker.kill(block=False)
        if not saying:
            saying.append(gevent.spawn_later(_PATIENCE, note, _CLOSING))

    handlers = [gevent.signal_handler(number, stop) for number in handled]
    try:
        outcome = worker.get()
    except LoopExit:
        worker.kill()
        raise MultiSocketError("nothing can come any more: nobody in another process reaches inproc") from None
    finally:
        for handler in handlers:
            handler.cancel()
        gevent.killall(saying)
    if isinstance(outcome, GreenletExit):
        return _INTERRUPTED
    if isinstance(outcome, Exception):
        raise outcome
    return int(outcome)


def _catch(arguments: Namespace) -> int | Exception:
    """Run the command, and return an exception instead of raising it: gevent would print a traceback."""
    try:
        status: int = arguments.run(arguments)
        return status
    except Exception as error:
        return error
