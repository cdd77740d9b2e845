"""The ``gmultisocket`` command. Each subcommand has a module; they share ``common`` and ``printing``.

A subcommand's module has two functions. ``add(subparsers)`` declares the arguments. ``run(arguments)`` runs in a
greenlet, does the work and returns the exit status. Signals, errors and exit statuses are handled here.

Exit statuses: 0 success, 1 something failed, 2 wrong arguments, 130 a signal ended the command before its work was
done. A signal is the normal end of ``switch``, and of ``recv`` and ``cat`` without ``--count``: then the status is 0.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import gevent
from gevent import Greenlet, GreenletExit

from .. import __version__
from ..errors import MultiSocketError
from ..transport.stream import describe_os_error
from . import cat, demo, hub, options, recv, send, switch
from .common import report

__all__ = ["main"]

_INTERRUPTED = 130
#: 128 + SIGPIPE, as if the system had ended the program because it wrote to a pipe that nobody reads.
_PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Blocks until it has ended.

    Args:
        argv: the arguments, without the program's name; None for the arguments of the process.
    """
    try:
        try:
            return _run(_parser().parse_args(argv))
        except MultiSocketError as error:
            report(str(error))
            return 1
        finally:
            # Also after --help. The interpreter itself would only print that it has ignored an exception.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads our output any more.
        _drop_output()
        return _PIPE_CLOSED
    except OSError as error:
        _drop_output()
        report(f"input or output failed: {describe_os_error(error)}")
        return 1


def _drop_output() -> None:
    """Drop what standard output could not write: the interpreter would try again when it exits."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """Does not ignore that its help cannot be written, as argparse does."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is not None:
            file.write(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gmultisocket",
        description="Send, receive and forward messages over tcp, ipc, inproc and WebSocket.",
        epilog="'gmultisocket COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"gmultisocket {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, send, recv, cat, switch, hub, options):
        command.add(subparsers)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    """Run the command in a greenlet, which a signal kills: the sockets close, and nothing is printed.

    A signal that the caller ignores stays ignored: nohup and the background jobs of a script do that.
    """
    worker: Greenlet[..., Any] = gevent.spawn(_catch, arguments)
    handled = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    handlers = [gevent.signal_handler(number, worker.kill, block=False) for number in handled]
    try:
        outcome = worker.get()
    finally:
        for handler in handlers:
            handler.cancel()
    if isinstance(outcome, GreenletExit):
        return _INTERRUPTED
    if isinstance(outcome, Exception):
        raise outcome
    return int(outcome)


def _catch(arguments: argparse.Namespace) -> int | Exception:
    """Run the command, and return an exception instead of raising it: gevent would print a traceback."""
    try:
        status: int = arguments.run(arguments)
        return status
    except Exception as error:
        return error
